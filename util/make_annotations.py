"""Turn recordings of your own, however they are listed, into an annotation file to train and evaluate on.

  python util/make_annotations.py recordings.csv --to ann/own.json --split 0.9 0.1 0
  python util/make_annotations.py recordings/ --to ann/own.json               NAME.txt beside NAME.wav
  python util/make_annotations.py metadata.csv --to ann/own.json --columns path=1 text=3      without a header
  python util/make_annotations.py train/*.parquet --to ann/own.json --task audiocaption

What is read: CSV, TSV and other tables; JSON Lines or a JSON list, NeMo's manifests and lhotse's cuts among them, also
.gz; a list with a clip a line, or a folder, with .txt files beside the clips; Kaldi folders (wav.scp, text, segments);
folders of Hugging Face's datasets (Parquet, save_to_disk, metadata.csv). Columns are found by the usual names (path,
file, audio, audio_filepath ...; text, transcript, sentence, caption ...; task; question), or by --columns.

Paths begin at the list's own folder, its clips/, wavs/, wav/ or audio/, or here; else at --audio. Pieces of recordings
and recordings inside tables are written to --clips. What has no clip that can be read, or no text, is left out and
told; clips that are silent, or too short for their text, are told. The paths in the annotation file are below the
prefix that is printed: it is your datasets.prefix. Exit code 2 where nothing is left or some input is wrong.
"""

import difflib
import json
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from salmonn.audio.silence import SHORTEST
from salmonn.common.cli import command_parser, run_cli
from salmonn.common.errors import UserError, examples
from salmonn.common.spelling import did_you_mean
from salmonn.config.loading import load_config
from salmonn.data.annotation_format import write_annotations
from salmonn.data.annotation_scan import DEFAULT_TASK, SPEECH_MARKERS, list_problems
from salmonn.data.annotations import Annotations
from salmonn.model.prompts import asks_question, load_test_prompts, load_train_prompts
from util.eval_sets.annotation import annotated_path
from util.inspector.split import SPLITS, add_split, check_shares, split, split_file, told_split
from util.own_data.base import NAMES, Reading, Row
from util.own_data.clips import NO_TEXT, Collection, collect, listen
from util.own_data.formats import read

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 3  # of what was left out
_TEXTS_WANTED = (
    "have no text: put it into NAME.txt beside NAME.wav, or into a column of the list (--columns text=COLUMN where its "
    "name is not known); --without-text writes a file to be answered only"
)
_FASTEST = 30  # characters of a transcript in a second: twice as many as are spoken, and more than anybody speaks
_TEXT_SHOWN = 40  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")


def main() -> None:
    args = parse_arguments()
    base = load_config(ROOT / "configs/base.yaml")
    parts = [split_file(args.to, name, args.to.parent) for name in SPLITS] if args.split else []
    if (there := [str(path) for path in (args.to, *parts) if path.exists()]) and not args.force:
        raise UserError(f"{', '.join(there)} would be written and is there already; --force replaces it")
    made = args.clips or Path("data") / args.to.stem
    collection = collect(read_all(args), args.audio, made, not args.without_text)
    if not collection.files:
        lines = left_out(collection) or ["there is no entry in it"]
        raise UserError("\n  ".join(["nothing is left of what was read, and nothing was written:", *lines]))
    files = [file for _, files in collection.files for file in files]
    prefix = args.prefix or prefix_of(files, base.datasets.prefix)
    entries = [entry_of(row, files, prefix, args) for row, files in collection.files]
    require_plain(entries, collection, base.model.end_sym)
    try:
        write_annotations(args.to, entries)
    except OSError as error:
        raise UserError(f"--to {args.to}: {error}") from error
    annotations = Annotations(args.to, need_text=not args.without_text, end_sym=base.model.end_sym)
    print("\n  ".join([f"{args.to}: {counted(annotations, collection)}", *left_out(collection)]))
    hindrances = list(hindrances_of(annotations, pools_of(base.model, args.without_text)))
    doubts = (*notes(entries, collection, base.model.max_seconds), *notes_on_sound(entries, collection))
    for note in (*hindrances, *doubts):
        print(f"note: {note}")
    cut = {}
    if args.split:
        everything = np.ones(len(annotations), bool)
        counts = split(annotations, everything, args.split, args.seed, False, args.to.parent, args.force)
        print(told_split(counts, args.to, args.to.parent, args.seed))
        cut = {name: path for name, path in zip(SPLITS, parts, strict=True) if counts[name]}
    print(how_to_go_on(args, cut, prefix, bool(hindrances)))


def read_all(args: Namespace) -> Iterator[tuple[Row, Path]]:
    """The rows of all that was given, each with the folder of its list."""
    for source in args.sources:
        folder = source if source.is_dir() else source.parent
        for row in read(Reading(source, args.columns, not args.without_text)):
            yield row, folder


def prefix_of(files: Sequence[str], usual: str) -> str:
    """The folder above all clips: the usual one where they lie there, else the one above the folder that they share."""
    shared = os.path.commonpath([os.path.dirname(file) for file in files])
    usual = os.path.abspath(usual)
    return usual if f"{shared}/".startswith(f"{usual}/") and shared != usual else os.path.dirname(shared)


def entry_of(row: Row, files: Sequence[str], prefix: str, args: Namespace) -> dict[str, Any]:
    """An entry of the annotation file. Raises UserError for a clip outside the prefix."""
    clip, *more = (annotated_path(file, Path(os.path.abspath(prefix)), row.source) for file in files)
    entry: dict[str, Any] = {"path": clip}
    if not args.without_text:
        entry["text"] = row.text
    entry["task"] = row.task or args.task
    return entry | ({"Q": row.question} if row.question else {}) | ({"expand_wav": more} if more else {})


def require_plain(entries: Sequence[dict[str, Any]], collection: Collection, end_sym: str) -> None:
    """Raise UserError for texts that hold what prompts and answers are marked with, and for what is no UTF-8."""
    given = [(entry, row.source) for entry, (row, _) in zip(entries, collection.files, strict=True)]
    problems = [
        f"{source}: {key!r} holds {symbol!r}: take it out"
        for entry, source in given
        for key in ("text", "Q")
        for symbol in (*SPEECH_MARKERS, end_sym)
        if symbol in (entry.get(key) or "")
    ]
    problems += [
        f"{source}: {value!r} holds what is no UTF-8: change it, or rename the file"
        for entry, source in given
        for value in (entry["path"], entry.get("text"), entry["task"], entry.get("Q"), *entry.get("expand_wav", ()))
        if value and _SURROGATE.search(value)
    ]
    if problems:
        raise UserError(list_problems("that would be written", problems, len(problems)))


def counted(annotations: Annotations, collection: Collection) -> str:
    """Entries by task, hours, shortest and longest clip."""
    tasks = ", ".join(f"{task} {n}" for task, n in annotations.task_counts().items())
    seconds = list(collection.seconds.values())
    known = [length for length in seconds if length]
    span = f", {min(known):.1f} to {max(known):.1f} s" if known else ""
    total = sum(seconds)
    time = f"{total / 3600:.1f} hours" if total > 3600 else f"{total / 60:.1f} minutes"
    return f"{len(annotations)} entries ({tasks}), {len(seconds)} clips, {time}{span}"


def left_out(collection: Collection) -> list[str]:
    """What was left out, a few with their reasons; what texts may be given by."""
    found = sorted(collection.left_out, key=lambda one: one[1] == NO_TEXT)  # other reasons first
    lines = [f"left out: {source}: {reason}" for source, reason in found[:_SHOWN]]
    lines += [f"... {len(found)} left out in all"] if len(found) > _SHOWN else []
    silent = sum(reason == NO_TEXT for _, reason in found)
    return lines + ([f"{silent} of these {_TEXTS_WANTED}"] if silent else [])


def pools_of(model: Any, is_answered: bool) -> dict[str, list[str]]:
    """The prompts of each task: those of tests where the entries are to be answered only."""
    if is_answered:
        return {task: [one] for task, one in load_test_prompts(ROOT / model.test_prompt_path, "{}").items()}
    return load_train_prompts(ROOT / model.prompt_path, "{}")


def hindrances_of(annotations: Annotations, prompts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is refused: tasks without prompt, and entries without the question that the prompts of theirs ask."""
    for task, n in annotations.task_counts().items():
        if task not in prompts:
            near = difflib.get_close_matches(task, prompts, n=1)
            meant = f"did you mean {near[0]}? " if near else f"known: {', '.join(prompts)}; "
            yield f"{n} entries have the task {task!r}, which has no prompt: {meant}docs/extending.md makes a new one"
        elif any(map(asks_question, prompts[task])) and (silent := len(annotations.without_question(task))):
            yield f"{silent} entries of the task {task} ask nothing: it needs a column question (or Q)"


def notes(entries: Sequence[dict[str, Any]], collection: Collection, max_seconds: float) -> Iterator[str]:
    """What may not be as it was meant."""
    long = [file for file, seconds in collection.seconds.items() if seconds > max_seconds]
    if long:
        yield f"{len(long)} clips are longer than the {max_seconds:g} s that are heard, such as {long[0]}"
    texts: dict[str, dict[str, str]] = {}  # by all else that an entry has; {text: clip}
    for entry in entries:
        asked = json.dumps({key: value for key, value in entry.items() if key != "text"})
        texts.setdefault(asked, {})[entry.get("text", "")] = entry["path"]
    if several := [found for found in texts.values() if len(found) > 1]:
        first, second = list(several[0].items())[:2]
        shown = f"{first[1]}: {first[0][:_TEXT_SHOWN]!r} and {second[0][:_TEXT_SHOWN]!r}"
        yield f"{len(several)} clips come with different texts for the same question, such as {shown}"
    repeated = len(entries) - len({json.dumps(entry) for entry in entries})
    if repeated:
        yield f"{repeated} entries stand twice"


def notes_on_sound(entries: Sequence[dict[str, Any]], collection: Collection) -> Iterator[str]:
    """Which clips hold nothing, break, or are too short for what is said to be in them."""
    listened = listen(collection)
    if listened is None:
        yield "so many clips are not decoded here: util/anns_inspector.py --check-integrity tells which are silent"
    else:
        silent, broken = listened
        if silent:
            yield f"{len(silent)} clips are silent, as of a muted microphone: {examples(silent)}"
        if broken:
            yield f"{len(broken)} clips break before their end: {examples([*map(': '.join, broken.items())])}"
    short = [file for file, seconds in collection.seconds.items() if 0 < seconds < SHORTEST]
    if short:
        yield f"{len(short)} clips are shorter than {SHORTEST:g} s: {examples(short)}"
    crammed = []
    for entry, (_, files) in zip(entries, collection.files, strict=True):
        lengths = [collection.seconds[file] for file in files]
        is_told = entry["task"] == DEFAULT_TASK and min(lengths) >= SHORTEST  # 0: a length that no header tells
        if is_told and len(entry.get("text", "")) > _FASTEST * sum(lengths):
            crammed.append(f"{files[0]} ({len(entry['text'])} characters in {sum(lengths):.1f} s)")
    if crammed:
        yield f"{len(crammed)} texts are longer than can be spoken in their clips' time: {examples(crammed)}"


def how_to_go_on(args: Namespace, made: Mapping[str, Path], prefix: str, is_hindered: bool) -> str:
    """The next command, as it can be typed here, or what is needed before. `made`: {part of a split: file}."""
    at_root = Path.cwd() == ROOT
    holds = str if at_root else os.path.abspath
    below = shlex.quote(f"datasets.prefix={holds(prefix)}")
    if is_hindered:
        return f"to be mended before it can be used: what the notes say; the paths in it are below {below}"
    if args.without_text:
        command = ["python", "evaluate.py", "--mode", "generate", "--ann", holds(args.to), "--options"]
        return f"to have it answered, see docs/evaluation.md:\n  {_typed(command, at_root)} {below}"
    if not {"train", "valid"} <= made.keys():
        return (
            "to train on it a validation file is needed, too: the same command with --split 0.9 0.1 0 --force makes "
            f"both; the paths in them are below {below}"
        )
    files = [f"datasets.{part}_ann_path={holds(made[part])}" for part in ("train", "valid")]
    command = ["python", "train.py", "--cfg-path", "configs/own.yaml", "--options"]
    return f"to train on it, see docs/own-data.md:\n  {_typed(command, at_root)} {below} {shlex.join(files)}"


def _typed(command: Sequence[str], at_root: bool) -> str:
    return ("" if at_root else f"cd {shlex.quote(str(ROOT))} && ") + shlex.join(command)


def columns_given(given: Sequence[str]) -> dict[str, str]:
    """{field: column} of `--columns FIELD=COLUMN ...`. Raises UserError."""
    columns = {}
    for text in given:
        wanted, equals, column = text.partition("=")
        wanted = "Q" if wanted == "question" else wanted
        if not (equals and column) or wanted not in NAMES:
            raise UserError(f"--columns {text}: write it as FIELD=COLUMN, FIELD one of path, text, task, question")
        columns[wanted] = column
    if len({column.isdecimal() for column in columns.values()}) > 1:
        raise UserError("--columns: names of columns, or numbers where the first line is no header, and not both")
    return columns


def parse_arguments() -> Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="FILE", help="lists or folders of recordings")
    add("--to", type=Path, required=True, metavar="FILE.json", help="the annotation file to write")
    add("--task", default=DEFAULT_TASK, metavar="NAME", help="of entries that name none (default: %(default)s)")
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help="where path, text, task and question stand; numbers from 1 where the first line is no header",
    )
    add("--audio", type=Path, metavar="DIR", help="where the paths in a list begin (default: the folder of the list)")
    add("--clips", type=Path, metavar="DIR", help="for clips that are cut or taken out of tables (default: data/NAME)")
    add("--prefix", metavar="DIR", help="paths in the file are below it (default: data, or the folder above all clips)")
    add("--without-text", action="store_true", help="write no texts: a file for evaluate.py --mode generate")
    add_split(add, "also write NAME_{train,valid,test}.json with these shares, no clip in two of them")
    add("--force", action="store_true", help="replace files that are there")
    args = parser.parse_args()
    if args.to.suffix != ".json":
        raise UserError(f"--to {args.to}: the name of an annotation file ends in .json")
    if not args.task.strip():
        raise UserError("--task is empty: name one, such as asr")
    if args.audio and not args.audio.is_dir():
        raise UserError(f"--audio {args.audio} is no folder{did_you_mean(args.audio, Path.is_dir)}")
    if args.split:
        check_shares(args.split)
    args.columns = columns_given(args.columns)
    return args


if __name__ == "__main__":
    run_cli(main)
