"""Annotation files of all stages and of the test sets, of what the voices, a corpus and the recordings say."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from salmonn.common.errors import UserError
from salmonn.data.annotation_format import write_annotations
from salmonn.data.integrity import check_files
from util.eval_sets import librispeech
from util.eval_sets.base import Request
from util.small_model import corpus, recordings, report, tasks
from util.small_model.job import ALL, Small, spoken_name

_FEW_SPEAKERS = (
    "; the speakers of --valid-split are divided by their numbers between validation and test: name a folder of more"
)
_LINK = Path("corpus")  # to --corpus: the annotated paths lie below one folder
OF_A_TASK = {"train": 2000, "valid": 60, "test": 200}  # entries of stage 2 and its tests


def annotate(small: Small) -> None:
    """Annotation files of all stages, and the test sets."""
    agreement = _heard_by_whisper(small)
    asr, real = _divided(small, agreement)
    train = asr["train"] + corpus.REPEATS * real["train"]
    stages = {"stage1_train": train, "stage1_valid": asr["valid"] + real["valid"]}
    for split in recordings.SPLITS:
        of_split = [one for one in small.recordings if one.split == split and one.seconds <= small.max_seconds]
        spoken = [] if small.args.corpus else small.spoken(split)
        chosen = tasks.instruction_entries(
            asr[split] + real[split], of_split, spoken, spoken_name(split), OF_A_TASK[split]
        )
        if split == "test":
            for task in report.TASKS:
                write_annotations(small.annotations(f"test_{task}"), chosen[task])
        else:
            repeats = tasks.REPEATS if split == "train" else {}
            stages[f"stage2_{split}"] = [one for task in chosen for one in repeats.get(task, 1) * chosen[task]]
    for name, entries in stages.items():
        Random(name).shuffle(entries)
        write_annotations(small.annotations(name), entries)
        print(f"{small.annotations(name)}: {len(entries)} entries")
    write_annotations(small.annotations("test_corpus"), asr["test"])
    for kind in ("prompt", "word", "librivox", "speaker"):
        of_kind = [one for one in small.recordings if one.kind == kind]
        write_annotations(small.annotations(f"test_{kind}"), corpus.prompt_entries(of_kind, "test", small.max_seconds))
    write_annotations(small.annotations("test_agreement"), agreement)


def _divided(small: Small, agreement: Sequence[dict[str, str]]) -> list[dict[str, list[dict[str, str]]]]:
    """Recognition's entries of each split: the corpus's and the recordings'.

    Trained on is no sentence of the other splits, and none of `agreement`, of which the test is made, too.

    Raises UserError for a corpus with nothing to train on, to validate on or to test on.
    """
    if small.args.corpus:
        link = small.data / _LINK
        link.unlink(missing_ok=True)  # of another corpus, which was not good enough
        link.symlink_to(small.args.corpus.resolve())
    asr = {split: _transcribed(small, split) for split in recordings.SPLITS}
    real = {split: corpus.prompt_entries(small.recordings, split, small.max_seconds) for split in recordings.SPLITS}
    held_out = [entry["text"] for split in ("valid", "test") for entry in asr[split] + real[split]]
    held_out += [entry["text"] for entry in agreement]
    for what, entries in {"corpus": asr, "recordings": real}.items():
        before, entries["train"] = len(entries["train"]), corpus.without(entries["train"], held_out)
        if left_out := before - len(entries["train"]):
            print(f"{what}: {left_out} of {before} training clips say a sentence of validation or test, left out")
    if empty := [split for split in recordings.SPLITS if not asr[split]]:
        raise UserError(
            f"{small.args.corpus or small.data}: nothing is left for {' and for '.join(empty)} of clips of at most "
            f"{small.max_seconds:g} s"
            + (_FEW_SPEAKERS if small.args.corpus else ": remove --out, and ask for more --clips")
        )
    return [asr, real]


def _transcribed(small: Small, split: str) -> list[dict[str, str]]:
    """The corpus's clips of a split: spoken ones, or those of a folder in LibriSpeech's layout."""
    if small.args.corpus is None:
        return corpus.asr_entries(small.spoken(split), spoken_name(split), small.max_seconds)
    name = small.args.train_split if split == "train" else small.args.valid_split
    items = list(librispeech.read_speech(Request(small.args.corpus, name)))
    if split != "train":  # no speaker of one half is in the other
        items = [item for item in items if (recordings.split_of(item.path.parts[-3]) == "test") == (split == "test")]
    verdicts = check_files((str(item.path) for item in items), "header")
    longer = {Path(verdict.path) for verdict in verdicts if verdict.excess(small.max_seconds)}
    if longer:  # they would be cut, and their transcripts not
        remedy = f"--options {ALL}:model.max_seconds=N and another --out hear them"
        print(f"{split}: {len(longer)} of {len(items)} clips last over {small.max_seconds:g} s, left out; {remedy}")
    kept = [item for item in items if item.path not in longer]
    paths = [str(_LINK / item.path.relative_to(small.args.corpus)) for item in kept]
    return [{"path": path, "text": item.references[0], "task": "asr"} for path, item in zip(paths, kept, strict=True)]


def _heard_by_whisper(small: Small) -> list[dict[str, str]]:
    """What Whisper's own decoder hears in the prompts of the test, where nobody has written down what they say."""
    paths = [one.path for one in corpus.unwritten_prompts(small.recordings, small.max_seconds)]
    if not paths:
        return []
    print(f"{len(paths)} prompts of the test are not written down: Whisper's own decoder hears them", flush=True)
    heard = report.whisper_answers(small.whisper, [str(small.data / path) for path in paths])
    entries = [{"path": path, "text": text.strip(), "task": "asr"} for path, text in zip(paths, heard, strict=True)]
    return [entry for entry in entries if entry["text"]]
