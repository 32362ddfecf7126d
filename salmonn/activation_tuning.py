"""Let a stage-2 model write the stories that stage 3, activation tuning, trains it on.

  python util/make_activation_data.py --clips ann/stage2_train.json --out ann/stage3_activation.json \\
      --options model.ckpt=output/stage2/checkpoint_best.pth

A model after stage 2 answers everything as briefly as the tasks it knows. With its adapters turned
down (--lora-scaling, trained with 4) it still tells long stories about what it hears, and a dozen of
them teach it to do so at full scaling (paper, 3.2 and 4.2: 12 stories, 12 steps, one story a step).

Clips are taken at random until --n stories are kept, each clip once; those that are not on this
disk or cannot be read are named and passed over. A story is dropped, with the reason, when
  - it has fewer than --min-words words (as the paper counts whether a story was told at all);
  - it goes round in circles: its repetition, the share of its four-word sequences that occurred in
    it before, is above --max-repetition (texts of people: about 0.01; a loop: near 1);
  - an earlier clip got the same one.
A story that did not end within generate.max_new_tokens is cut back to its last whole sentence
before it is judged, for a target that breaks off would teach the model to do so. These are measures
of form: read what was kept, a long transcript passes them, too.

Writes an annotation file for stage 3. Exit code 1 when it holds fewer than --n stories; 2, and no
file, when none was kept or something in the input is wrong.
"""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from salmonn.audio.decode import AudioError
from salmonn.common.cli import argument_parser
from salmonn.common.errors import UserError, examples
from salmonn.common.files import make_folder
from salmonn.config.loading import load_config
from salmonn.data.annotation_format import write_annotations
from salmonn.data.annotation_scan import SPEECH_MARKERS
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache
from salmonn.evaluation.metrics.stories import STORY_WORDS, repeated_share
from salmonn.evaluation.requests import Prediction, Request
from salmonn.model.prompts import load_test_prompts

TASK = "audio_story_telling"
CLIPS_PER_STORY = 20  # tried before giving up: a model that writes nothing usable is known by then
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?]+[\"'”’)\]]*(?=\s|$)")

Entry = dict[str, Any]  # of an annotation file


def main() -> None:
    """Choose clips, let the model tell about them, keep what is of use. Raises UserError for bad input."""
    args = parse_arguments()
    config = load_config(args.cfg_path, args.options)
    check_inputs(args, config)
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)
    if TASK not in prompts:
        raise UserError(f"model.test_prompt_path = {config.model.test_prompt_path} has no prompt for the task {TASK}")
    clips, absent = choose_clips(read_clips(args.clips), config.datasets, args.max_clips, args.seed)
    if absent:
        print(f"{len(absent)} clips of {args.clips} are not on this disk: {examples(absent)}")
    if not clips:
        raise UserError(f"{args.clips}: no clip is there; is datasets.prefix = {config.datasets.prefix!r} right?")

    told = tell_stories(clips, prompts[TASK], config, args.lora_scaling)
    stories = select_stories(told, args.n, args.min_words, args.max_repetition)
    remedy = (
        "more may come of other clips (--clips, --max-clips, --seed), another --lora-scaling, other limits "
        "and, where stories did not end, more generate.max_new_tokens"
    )
    if not stories:
        raise UserError(f"none of {len(clips)} clips gave a usable story, so {args.out} was not written; {remedy}")
    save(args.out, stories)
    print(f"{args.out}: {len(stories)} stories. Read them; to train on them (validation sees the same dozen):")
    print(f"    python train.py --cfg-path configs/stage3.yaml --options run.exp_name={args.out.stem} \\")
    print(f"        datasets.train_ann_path={args.out} datasets.valid_ann_path={args.out}", flush=True)
    if len(stories) < args.n:
        missing = f"{args.n - len(stories)} of {args.n} stories are missing, all {len(clips)} clips were tried"
        print(f"{missing}; {remedy}", file=sys.stderr)
        sys.exit(1)


def parse_arguments() -> Namespace:
    """The command line."""
    parser = argument_parser(__doc__, default_cfg_path="configs/evaluate.yaml")
    add = parser.add_argument
    add(
        "--clips",
        type=Path,
        required=True,
        metavar="FILE",
        help="clips to tell about: annotation file, or .txt with a path a line",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="annotation file to write, .json")
    add("--n", type=int, default=12, metavar="N", help="stories to keep (default: %(default)s)")
    add(
        "--lora-scaling",
        type=float,
        default=2.0,
        metavar="S",
        help="weight of the adapters while writing (default: %(default)s)",
    )
    add(
        "--min-words", type=int, default=STORY_WORDS, metavar="N", help="fewest words of a story (default: %(default)s)"
    )
    add(
        "--max-repetition",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="most repetition in a story, 0 to 1 (default: %(default)s)",
    )
    add("--max-clips", type=int, metavar="N", help=f"give up after so many clips (default: {CLIPS_PER_STORY} a story)")
    add("--seed", type=int, default=42, metavar="N", help="of the choice of clips (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace the file --out")
    args = parser.parse_args()
    if args.max_clips is None:
        args.max_clips = CLIPS_PER_STORY * args.n
    return args


def check_inputs(args: Namespace, config: DictConfig) -> None:
    """Raises one UserError that lists everything that is missing or contradictory."""
    from salmonn.preflight import find_problems, refuse  # seconds, with torch: --help goes without

    model, generate = config.model, config.generate
    wrong = {
        f"--n {args.n}: at least 1": args.n < 1,
        f"--max-clips {args.max_clips}: at least 1": args.max_clips < 1,
        f"--min-words {args.min_words}: at least 1": args.min_words < 1,
        f"--seed {args.seed}: 0 or more": args.seed < 0,
        f"--max-repetition {args.max_repetition}: a share from 0 to 1": not 0 <= args.max_repetition <= 1,
        f"--lora-scaling {args.lora_scaling}: 0 or more": not 0 <= args.lora_scaling < float("inf"),
        f"--clips {args.clips} does not exist": not args.clips.is_file(),
        f"--out {args.out}: its name has to end in .json": args.out.suffix != ".json",
        f"--out {args.out} is there already; --overwrite replaces it": args.out.exists() and not args.overwrite,
        f"--out {args.out} is the file --clips": args.out.resolve() == args.clips.resolve(),
        "model.ckpt is not set: stories are written by a trained model, that of stage 2": not model.ckpt,
        "model.test_prompt_path is not set: it holds the prompt for stories": not model.test_prompt_path,
        "model.lora = False: there are no adapters to turn down": not model.lora,
        f"generate.max_new_tokens = {generate.max_new_tokens}: model.max_txt_len = {model.max_txt_len} would cut such "
        "stories in training; it has to be larger": generate.max_new_tokens >= model.max_txt_len,
    }
    refuse([problem for problem, is_wrong in wrong.items() if is_wrong] + find_problems(config, (), training=False))
    try:
        make_folder(args.out.parent)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error}") from error


def read_clips(path: Path) -> Annotations | list[Entry]:
    """The entries of an annotation file, or one for each path of a .txt; UserError where it holds none."""
    if path.suffix != ".txt":
        return Annotations(path, need_text=False)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--clips {path} cannot be read: {error}") from error
    if not any(lines):
        raise UserError(f"--clips {path} names no clip")
    return [{"path": line, "text": "", "task": TASK, "Q": "", "expand_wav": []} for line in lines if line]


def choose_clips(
    entries: Annotations | Sequence[Entry], datasets: DictConfig, at_most: int, seed: int
) -> tuple[list[Entry], list[str]]:
    """Up to `at_most` entries in random order, each path once; and the paths met that are not on this disk."""
    clip_paths, exists = ClipPaths(datasets.prefix, datasets.path_map), FolderCache().exists
    chosen: dict[str, Entry] = {}
    absent: dict[str, None] = {}  # of millions of entries perhaps: looked up at once, in their order
    for number in np.random.default_rng(seed).permutation(len(entries)):
        entry = entries[int(number)]
        try:
            there = all(map(exists, clip_paths.of(entry["path"], entry["expand_wav"], exists)))
        except AudioError:
            there = True  # a path that is refused: named with the reason when it is to be read
        if there:
            chosen.setdefault(entry["path"], entry)
        else:
            absent[entry["path"]] = None
        if len(chosen) == at_most:
            break
    return list(chosen.values()), [path for path in absent if path not in chosen]


def tell_stories(
    clips: Sequence[Entry], prompt: str, config: DictConfig, lora_scaling: float
) -> Iterator[tuple[Entry, Prediction]]:
    """Load the model and yield each clip with what the model tells about it, as they come."""
    # seconds, with the model's libraries: not before everything is known to be there
    from salmonn.common.logging import setup_logging
    from salmonn.data.dataset import SALMONNDataset
    from salmonn.evaluation.answering import answer_batches, generate_batch
    from salmonn.model.salmonn import load_for_inference

    setup_logging()
    model = load_for_inference(config)
    print(f"{config.model.ckpt}: LoRA scaling {lora_scaling:g}, trained with {model.lora_scaling:g}", flush=True)
    model.lora_scaling = lora_scaling
    dataset = SALMONNDataset.from_config(
        clips, config.datasets, replace_unreadable=False, max_seconds=model.max_seconds
    )
    requests = [Request(number, number, prompt) for number in range(len(clips))]
    for outputs in answer_batches(partial(generate_batch, model, config), dataset, requests, config):
        for number, output in outputs:
            assert isinstance(output, Prediction)  # `generate_batch` gives no other kind of answer
            yield clips[number], output


def select_stories(
    told: Iterable[tuple[Entry, Prediction]], n: int, min_words: int, max_repetition: float
) -> list[Entry]:
    """Entries with the first `n` stories that are of use; prints a line for each clip that was tried."""
    kept: list[Entry] = []
    counts = {"kept": 0, "dropped": 0, "unreadable": 0}
    for clip, output in told:
        text = story_text(output)
        problem = output.unreadable or why_dropped(text, kept, min_words, max_repetition)
        fate = "unreadable" if output.unreadable else "dropped" if problem else "kept"
        counts[fate] += 1
        print(f"{fate} {clip['path']}: {describe(output, text, problem)}", flush=True)
        if fate == "kept":
            kept.append(story_entry(clip, text))
        if len(kept) == n:
            break
    print(f"{sum(counts.values())} clips tried: " + ", ".join(f"{count} {fate}" for fate, count in counts.items()))
    return kept


def story_text(output: Prediction) -> str:
    """The story, up to its last whole sentence where it did not end; "" where that has none."""
    if output.finished:
        return output.text
    ends = [match.end() for match in SENTENCE_END.finditer(output.text)]
    return output.text[: ends[-1]] if ends else ""


def why_dropped(text: str, kept: Sequence[Mapping[str, Any]], min_words: int, max_repetition: float) -> str:
    """The reason why a story is of no use beside those that were kept; "" where it is."""
    words = words_of(text)
    if marked := [marker for marker in SPEECH_MARKERS if marker in text]:
        return f"it holds {marked[0]!r}, which prompts have where the audio stands"
    if len(words) < min_words:
        return f"{len(words)} words, fewer than {min_words}"
    if repetition(words) > max_repetition:
        return f"repetition {repetition(words):.3f}, above {max_repetition:g}"
    same = [story["path"] for story in kept if words_of(story["text"]) == words]
    return f"the same story as {same[0]}" if same else ""


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def repetition(words: Sequence[str]) -> float:
    """As the metric of told stories; 0 where there are too few words to repeat any."""
    return repeated_share(words) or 0.0


def describe(output: Prediction, text: str, problem: str) -> str:
    """What came of a clip, in a line: the reason or the story's measures, and how it begins."""
    if output.unreadable:
        return output.unreadable
    words = words_of(text)
    found = problem or f"{len(words)} words, repetition {repetition(words):.3f}"
    cut = "" if output.finished else f" (not ended after {output.n_tokens} tokens: only its whole sentences count)"
    return f"{found}{cut}: {json.dumps(' '.join((text or output.text).split())[:80], ensure_ascii=False)}"


def story_entry(clip: Mapping[str, Any], text: str) -> Entry:
    """An entry of stage 3 for a clip."""
    more = {"expand_wav": clip["expand_wav"]} if clip["expand_wav"] else {}
    return {"path": clip["path"], **more, "text": text, "task": TASK}


def save(path: Path, stories: Sequence[Entry]) -> None:
    """Write an annotation file, whole or not at all."""
    try:
        write_annotations(path, stories)
    except OSError as error:
        raise UserError(f"--out {path}: {error}") from error
