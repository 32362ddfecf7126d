"""What can be evaluated: each task is a declaration, each set a list of clips. No torch here."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.annotation_scan import DEFAULT_TASK
from salmonn.config import read_yaml, typed_section
from salmonn.errors import UserError
from salmonn.evaluation.judge_prompts import JUDGED_TASKS
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.normalisers import NAMES

_NAMED = 5  # of a list in a message


@dataclass
class EvalTask:
    """One set, what is asked of it, and how the answers are scored; without metrics they are only written down."""

    name: str = ""  # set by the key under which a tasks file has it
    title: str = ""
    annotation: str = ""  # file
    accepts: list[str] = field(default_factory=list)  # task names that entries may carry; the first where one has none
    prompt: str = ""  # key of the test prompts; "" = the entry's own task
    normaliser: str = "plain"  # a name of salmonn.evaluation.normalisers
    metrics: list[str] = field(default_factory=list)  # names of salmonn.evaluation.metrics
    judge: str = ""  # of the metric `judged`: the judge's question, a name of judge_prompts.JUDGED_TASKS
    generate: dict[str, Any] = field(default_factory=dict)  # changes to the settings
    paper: dict[str, float] = field(default_factory=dict)  # published scores by metric
    reproduced: dict[str, float] = field(default_factory=dict)  # another reproduction's
    by_scaling: dict[str, list[float]] = field(default_factory=dict)  # its scores at LoRA scalings 0, 1, 2, 3, 4
    clips: int = 0  # of the published set; with another number its scores are not compared; 0 = not known
    submission: bool = False  # a submission.csv is written: every clip needs its testset_id

    @property
    def is_scored(self) -> bool:
        """Whether there is a ground truth to score against."""
        return bool(self.metrics)


_ASR, _AAC = ["asr"], ["audiocaption", "audiocaption_v2"]
# The modes of the hackathon, one set each, and the key under `datasets` that names it.
MODES = {
    "valid_asr": ("valid_ann_path_asr", _ASR, "english", ["wer"]),
    "valid_aac": ("valid_ann_path_aac", _AAC, "caption", ["spider", "meteor", "cider_d", "rouge_l", "exact"]),
    "submission_asr": ("test_ann_path_asr", _ASR, "plain", []),
    "submission_aac": ("test_ann_path_aac", _AAC, "plain", []),
}


def annotation_key(mode: str, datasets: DictConfig) -> str:
    """The key under `datasets` that gives a mode's set: its own, or test_ann_path where that is empty."""
    own = MODES[mode][0]
    return "test_ann_path" if not datasets[own] and datasets.test_ann_path else own


def task_of_mode(mode: str, datasets: DictConfig) -> EvalTask:
    """The task of a mode of the hackathon."""
    _, accepts, normaliser, metrics = MODES[mode]
    title = "speech recognition" if accepts == _ASR else "audio captioning"
    path = datasets[annotation_key(mode, datasets)]
    return EvalTask(mode, title, path, accepts, "", normaliser, metrics, submission=not metrics)


def load_tasks(path: str | Path, names: Sequence[str] = ()) -> list[EvalTask]:
    """The tasks of a YAML file {name: values}, or those named, in that order.

    Raises UserError for unknown names and keys, and for values of a wrong type, all of them at once.
    """
    tasks, problems = {}, []
    for name, values in OmegaConf.to_container(read_yaml(Path(path))).items():
        try:
            tasks[name] = OmegaConf.to_object(typed_section(values, EvalTask, f"{path}, task {name}"))
            tasks[name].name = name
            check_names(tasks[name], f"{path}, task {name}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    if not tasks:
        raise UserError(f"{path}: no task in it; configs/eval_tasks.yaml shows how one looks")
    if unknown := [name for name in names if name not in tasks]:
        raise UserError(f"--tasks {', '.join(unknown)}: not in {path}, which has {', '.join(tasks)}")
    return [tasks[name] for name in names or tasks]


def check_names(task: EvalTask, source: str) -> None:
    """Raise UserError for a normaliser, metric or judge's question that there is not."""
    known: dict[str, Collection[str]] = {"normaliser": NAMES, "judge": JUDGED_TASKS}
    known |= {key: METRICS.keys() for key in ("metrics", "paper", "reproduced", "by_scaling")}
    for key, names in known.items():
        value = getattr(task, key)
        for name in [value] if isinstance(value, str) and value else value:
            if name not in names:
                raise UserError(f"{source}: {key} {name!r} is not known; there are {', '.join(names)}")
    if not is_plain_name(task.name):
        raise UserError(f"{source}: {task.name!r} is the name of a folder, too: letters, digits, and . _ + - within")
    if not task.annotation:
        raise UserError(f"{source}: annotation is not set")
    if "judged" in task.metrics and not task.judge:
        raise UserError(f"{source}: metric judged needs judge: one of {', '.join(JUDGED_TASKS)}")


def is_plain_name(name: str) -> bool:
    """Whether this can be the name of a folder that lies where it should."""
    return bool(re.fullmatch(r"\w[\w.+-]*", name))


@dataclass(frozen=True)
class Clip:
    """One output to be generated: what is heard, what is asked, what would be right."""

    index: int  # of the first entry of the annotation file that names it
    id: str
    path: str
    task: str
    question: str
    references: tuple[str, ...]
    spoken: str = ""  # what is said in the clip, where the reference is something else


def clips_of(entries: Sequence[Mapping[str, Any]], task: EvalTask, source: str) -> list[Clip]:
    """The clips of an annotation file in its order; entries of one clip give it several references.

    `entries` as they stand in the file, checked by salmonn.annotations. Raises UserError for
    entries of another task and, where a submission is written, missing or repeated testset_ids.
    """
    accepts = task.accepts
    _refuse(
        source,
        f"belong to another task than {' or '.join(accepts)} ({task.name})",
        [(i, e["task"]) for i, e in enumerate(entries) if accepts and e.get("task", accepts[0]) not in accepts],
        "give a file with only these",
    )
    if task.submission:
        _check_ids(entries, source)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, entry in enumerate(entries):
        groups.setdefault(_identity(entry), []).append(index)
    for indices in groups.values():
        different = [(i, entries[i]["path"]) for i in indices if _heard(entries[i]) != _heard(entries[indices[0]])]
        one_id = f"share the testset_id of entry {indices[0]} but not its clip ({entries[indices[0]]['path']})"
        _refuse(source, one_id, different, "entries with one id are references of one clip")
    return [_clip(entries, indices, task) for indices in groups.values()]


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes entries the same clip: the testset_id, else all that the model is given."""
    if _testset_id(entry):
        return (_testset_id(entry),)
    return _heard(entry), entry.get("task"), entry.get("Q") or ""


def _testset_id(entry: Mapping[str, Any]) -> str:
    value = entry.get("testset_id")
    return "" if value is None else str(value).strip()


def _heard(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (entry["path"], *(entry.get("expand_wav") or ()))


def _clip(entries: Sequence[Mapping[str, Any]], indices: Sequence[int], task: EvalTask) -> Clip:
    first = entries[indices[0]]
    return Clip(
        index=indices[0],
        id=_testset_id(first) or str(indices[0]),
        path=first["path"],
        task=task.prompt or first.get("task") or (task.accepts or [DEFAULT_TASK])[0],
        question=first.get("Q") or "",
        spoken=first.get("spoken") or "",
        references=() if task.submission else tuple(entries[i]["text"] for i in indices if entries[i].get("text")),
    )


def _check_ids(entries: Sequence[Mapping[str, Any]], source: str) -> None:
    ids = [_testset_id(entry) for entry in entries]
    missing = [(i, entry["path"]) for i, entry in enumerate(entries) if not ids[i]]
    _refuse(source, "have no testset_id", missing, "a submission names every clip by it")
    counts = Counter(ids)
    repeated = [(i, name) for i, name in enumerate(ids) if counts[name] > 1]
    _refuse(source, "repeat a testset_id", repeated, "every id must occur once")


def _refuse(source: str, problem: str, found: Sequence[tuple[int, Any]], remedy: str) -> None:
    if found:
        named = examples([f"entry {index} ({detail})" for index, detail in found])
        raise UserError(f"{source}: {len(found)} entries {problem}: {named}; {remedy}")


def examples(names: Sequence[str]) -> str:
    """The first few of what is named in a message, and how many there are besides."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
