"""Evaluation examples from annotation entries: clip, question, references. No torch here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salmonn.common.errors import UserError, examples
from salmonn.data.annotation_scan import DEFAULT_TASK, SPEECH_MARKERS
from salmonn.evaluation.choices import MOST_OPTIONS, with_options
from salmonn.evaluation.tasks import EvalTask


@dataclass(frozen=True)
class EvalExample:
    """One output to be generated: what is heard, what is asked, what would be right."""

    index: int  # of the first entry of the annotation file that names it
    id: str
    path: str
    task: str
    question: str
    references: tuple[str, ...]
    spoken: str = ""  # what is said in the clip, where the reference is something else
    choices: tuple[str, ...] = ()  # of multiple choice, in the order in which they are asked

    @property
    def asked(self) -> str:
        """The question, with its options where there are some."""
        return with_options(self.question, self.choices) if self.choices else self.question


def clips_of(entries: Sequence[Mapping[str, Any]], task: EvalTask, source: str) -> list[EvalExample]:
    """The clips of an annotation file in its order; entries of one clip give it several references.

    `entries` as they stand in the file, checked by salmonn.data.annotations. Raises UserError for
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
    if task.has_choices:
        unusable = [(i, why) for i, e in enumerate(entries) if (why := _unusable(e.get("choices")))]
        _refuse(source, f"have no options to choose from ({task.name})", unusable, "give each a list 'choices'")
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
    return _heard(entry), entry.get("task"), entry.get("Q") or "", str(entry.get("choices"))


def _unusable(choices: Any) -> str:
    """Why these are no options; "" if they are."""
    if not isinstance(choices, list) or not all(isinstance(option, str) and option.strip() for option in choices):
        return "no list of texts"
    if not 2 <= len(choices) <= MOST_OPTIONS:
        return f"{len(choices)} options, of 2 to {MOST_OPTIONS}"
    if marked := [marker for marker in SPEECH_MARKERS if any(marker in option for option in choices)]:
        return f"one holds {marked[0]}, where the audio stands in prompts"
    return "one stands there twice" if len(set(choices)) < len(choices) else ""


def _testset_id(entry: Mapping[str, Any]) -> str:
    value = entry.get("testset_id")
    return "" if value is None else str(value).strip()


def _heard(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (entry["path"], *(entry.get("expand_wav") or ()))


def _clip(entries: Sequence[Mapping[str, Any]], indices: Sequence[int], task: EvalTask) -> EvalExample:
    first = entries[indices[0]]
    return EvalExample(
        index=indices[0],
        id=_testset_id(first) or str(indices[0]),
        path=first["path"],
        task=task.prompt or first.get("task") or (task.accepts or [DEFAULT_TASK])[0],
        question=first.get("Q") or "",
        spoken=first.get("spoken") or "",
        choices=tuple(first["choices"]) if task.has_choices else (),
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
