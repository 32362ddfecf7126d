"""Benchmarks of multiple choice: MMAU, MMAR, AIR-Bench (foundation), MuChoMusic, and one of the miniature world.

Options are kept in the order in which they are published, without the letters in front of them; the text of an entry
is the right option. Audio that lies inside parquet files is written to --cut-to.
"""

import ast
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from salmonn.common.errors import UserError
from salmonn.common.files import replacing
from salmonn.data.annotations import Annotations
from salmonn.evaluation.choices import labelled, without_labels
from util.eval_sets.arrow import ending_of, open_table
from util.eval_sets.base import Item, MissingError, Request
from util.eval_sets.tables import bad, csv_rows, json_lines, named_clip, read_text, source

_MMAU = {"test-mini": ("mmau-test-mini.json", "test_mini"), "test": ("mmau-test.json", "test")}
_MINI_OPTIONS = 4


class _Question(msgspec.Struct, kw_only=True):
    """A row of MMAU or MMAR, which call the clip by different names."""

    id: str | int
    question: str
    choices: list[str] | str
    answer: str | None = None
    audio_id: str = ""  # MMAU
    audio_path: str = ""  # MMAR


class _Foundation(msgspec.Struct, kw_only=True):
    """A row of AIR-Bench's foundation part."""

    uniq_id: str | int
    path: str
    task_name: str
    dataset_name: str
    question: str
    choice_a: str
    choice_b: str
    choice_c: str | None = None
    choice_d: str | None = None
    answer_gt: str


def read_mmau(request: Request) -> Iterator[Item]:
    """MMAU: 1,000 questions (test-mini), and 9,000 whose answers are withheld (test).

    github.com/Sakshi113/MMAU: mmau-test-mini.json (id, audio_id, question, choices, answer, ...) and the clips of its
    drive in test-mini-audios/; or the parquet files of lmms-lab/mmau on Hugging Face in data/. v05.15.25 corrects
    earlier ones. CC BY-NC 4.0.
    """
    if request.split not in _MMAU:
        raise UserError(f"--split {request.split}: one of {', '.join(_MMAU)}")
    name, split = _MMAU[request.split]
    return _questions(request, name, split)


def read_mmar(request: Request) -> Iterator[Item]:
    """MMAR: 1,000 questions. huggingface.co/datasets/BoJack/MMAR: MMAR-meta.json (id, audio_path, question, choices,
    answer, ...) and mmar-audio.tar.gz, which unpacks to audio/. CC BY-NC 4.0."""
    return _questions(request, "MMAR-meta.json", "test")


def _questions(request: Request, name: str, split: str) -> Iterator[Item]:
    table = request.table or request.root / name
    stored = sorted((request.root / "data").glob(f"{split}-*.parquet"))
    if table.suffix == ".parquet" or (not request.table and not table.exists() and stored):
        yield from _stored(request, [table] if table.suffix == ".parquet" else stored)
        return
    for where, row in _rows(table, _Question):
        named = row.audio_id or row.audio_path
        if not named:
            raise UserError(f"{where}: neither audio_id nor audio_path")
        clip = request.audio / Path(named).name if request.audio else request.root / named
        yield from _item(request, str(row.id), clip, row.question, row.choices, row.answer, where)


def read_air_bench(request: Request) -> Iterator[Item]:
    """AIR-Bench, foundation part: about 25,000 questions of 19 tasks.

    huggingface.co/datasets/qyang1021/AIR-Bench-Dataset: Foundation/Foundation_meta.json and the clips in
    Foundation/TASK_DATASET/; those of Audio_Grounding are named .wav and stored as .flac. CC BY-NC 4.0.
    """
    folder = request.audio or request.root / "Foundation"
    for where, row in _rows(request.table or request.root / "Foundation" / "Foundation_meta.json", _Foundation):
        clip = folder / f"{row.task_name}_{row.dataset_name}" / row.path
        if not clip.exists() and clip.with_suffix(".flac").exists():
            clip = clip.with_suffix(".flac")
        options = [option for option in (row.choice_a, row.choice_b, row.choice_c, row.choice_d) if option]
        name = f"{row.task_name}_{row.dataset_name}_{row.uniq_id}"
        yield from _item(request, name, clip, row.question, options, row.answer_gt, where)


def read_muchomusic(request: Request) -> Iterator[Item]:
    """MuChoMusic: 1,187 questions on 644 tracks. zenodo.org/records/12709974, muchomusic.csv, CC BY-SA 4.0.

    The tracks are those of the Song Describer Dataset (zenodo.org/records/10072001), in sdd/audio/, and MusicCaps', in
    musiccaps/audio/ by --name, with musiccaps/musiccaps-public.csv. The file has the right answer first, and its own
    script deals the options at random: here by the question's id, the same each time.
    """
    columns = ["dataset", "dataset_identifier", "question", "correct_answer"]
    columns += [f"distractor_{number}_answer" for number in (1, 2, 3)]
    times: dict[str, dict[str, str]] = {}
    asked: dict[str, int] = {}
    table = request.table or request.root / "muchomusic.csv"
    for line, row in csv_rows(table, columns):
        where, track = source(table, line), row["dataset_identifier"].removesuffix(".json")
        if row["dataset"] == "sdd" and track.isdecimal():
            clip = request.root / "sdd" / "audio" / f"{int(track) % 100:02d}" / f"{track}.2min.mp3"
        elif row["dataset"] == "musiccaps":
            track = track.rpartition("_")[0]
            captions = request.root / "musiccaps" / "musiccaps-public.csv"
            times = times or {of["ytid"]: of for _, of in csv_rows(captions, ["ytid", "start_s", "end_s"])}
            if track not in times:
                raise bad(table, line, f"{track} is not in {captions}")
            clip = captions.parent / "audio" / named_clip(request.name, times[track], table, line)
        else:
            raise bad(table, line, f"dataset {row['dataset']!r} with {track!r}: sdd with a number, or musiccaps")
        number = asked[track] = asked.get(track, 0) + 1
        options = [option for column, option in row.items() if column in columns[3:] and option]
        random.Random(f"{track} {number}").shuffle(options)
        name = f"{track}_{number}"
        yield from _item(request, name, clip, row["question"], options, row["correct_answer"], where)


def read_mini(request: Request) -> Iterator[Item]:
    """A choice set of the miniature world (--root output/mini/world): the questions of its test_QA.json.

    Options are what other clips of the set answer to the same question.
    """
    path = request.root / "ann" / "test_QA.json"
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    annotations = Annotations(path)
    entries = [annotations[i] for i in range(len(annotations))]
    answers: dict[str, set[str]] = {}
    for entry in entries:
        answers.setdefault(entry["Q"], set()).add(entry["text"])
    for number, entry in enumerate(entries):
        others = sorted(answers[entry["Q"]] - {entry["text"]})
        rng = random.Random(number)
        options = [entry["text"], *rng.sample(others, min(len(others), _MINI_OPTIONS - 1))]
        rng.shuffle(options)
        clip = request.root / "audio" / entry["path"].lstrip("/")
        where = f"{path}, entry {number}"
        yield from _item(request, f"choice_{number:04d}", clip, entry["Q"], options, entry["text"], where)


def _item(
    request: Request, name: str, clip: Path, question: str, given: Sequence[str] | str, answer: str | None, where: str
) -> Iterator[Item]:
    """The clip; none where it has fewer than two options. What is odd about it is counted in the request's notes."""
    listed = _as_list(given, where)
    options = list(dict.fromkeys(without_labels([option.strip() for option in listed if option.strip()])))
    if len(options) < len(listed):
        request.notes["clips with an option that stands there twice, or is empty: it is asked once, or not"] += 1
    if len(options) < 2:
        request.notes["clips left out: they have fewer than two options"] += 1
        return
    right = labelled(answer or "", options)
    if not right:
        request.notes["clips whose right answer is withheld"] += 1
    elif right not in options:
        request.notes["clips whose right answer is none of their options: they count as wrong"] += 1
    yield Item(name, clip, (right,), "QA", where, question=question, choices=tuple(options))


def _as_list(given: Sequence[str] | str, where: str) -> list[str]:
    """Options as a list, also where it is written as text, as in some parquet files."""
    if not isinstance(given, str):
        return list(given)
    try:
        found = ast.literal_eval(given)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{where}: choices {given[:60]!r} are no list") from error
    if not isinstance(found, list) or not all(isinstance(option, str) for option in found):
        raise UserError(f"{where}: choices {given[:60]!r} are no list of texts")
    return found


def _rows(table: Path, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """(where, row) of a JSON list, or of JSON lines in a file named .jsonl."""
    if table.suffix == ".jsonl":
        for line, row in json_lines(table, kind):
            yield source(table, line), row
        return
    try:
        rows = msgspec.json.decode(read_text(table), type=list[kind])  # type: ignore[valid-type]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f"{table}: {error}") from error
    for number, row in enumerate(rows):
        yield f"{table}, entry {number}", row


def _stored(request: Request, files: Iterable[Path]) -> Iterator[Item]:
    """Questions of parquet files, whose columns have these names or those of AudioLLMs' collection."""
    if not request.cut_to:
        raise MissingError("the clips lie inside parquet files: give --cut-to DIR, where they are written")
    for file in files:
        with open_table(file) as (schema, rows):
            for number, row in enumerate(rows(schema.names)):
                yield from _stored_item(request, request.cut_to, row, f"{file.stem}_{number}", f"{file}, row {number}")


def _stored_item(request: Request, folder: Path, row: Mapping[str, Any], name: str, where: str) -> Iterator[Item]:
    """The clip of a row, written to `folder`; `name`: of one that has no id."""
    audio, question = row.get("audio") or row.get("context"), row.get("question") or row.get("instruction")
    if not isinstance(audio, dict) or not isinstance(question, str) or not row.get("choices"):
        raise UserError(f"{where}: no audio, question and choices; it has {', '.join(row)}")
    name = str(row.get("id") or (row.get("other_attributes") or {}).get("id") or name)
    clip = _written(folder, name, audio.get("bytes") or b"", where)
    yield from _item(request, name, clip, question, row["choices"], row.get("answer"), where)


def _written(folder: Path, name: str, audio: bytes, where: str) -> Path:
    """The clip as a file of its own, as it is stored."""
    if not audio:
        raise UserError(f"{where}: its audio has no bytes")
    if "/" in name or name.startswith("."):
        raise UserError(f"{where}: the id {name!r} cannot name a file")
    clip = folder / f"{name}{ending_of(audio)}"
    try:
        if not clip.exists():
            with replacing(clip) as temporary:
                temporary.write_bytes(audio)
    except OSError as error:
        raise UserError(f"--cut-to {folder}: {error}") from error
    return clip
