"""Evaluation tasks as declarations: set, prompt, normaliser, metrics, published scores. No torch here."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.loading import typed_section
from salmonn.config.reading import read_yaml
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.normalisers import NAMES
from salmonn.evaluation.published import Published

# Tasks whose answers a judge compares; it is asked their question (judge/prompts.py).
JUDGED_TASKS = ("SQQA", "slot_filling", "SAC")


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
    judge: str = ""  # of the metric `judged`: the judge's question, one of JUDGED_TASKS
    generate: dict[str, Any] = field(default_factory=dict)  # changes to the settings
    paper: dict[str, list[Published]] = field(default_factory=dict)  # published scores by metric
    reproduced: dict[str, list[Published]] = field(default_factory=dict)  # another reproduction's
    # its scores of finished answers alone, at LoRA scalings 0, 1, 2, 3, 4
    by_scaling: dict[str, list[float]] = field(default_factory=dict)
    submission: bool = False  # a submission.csv is written: every clip needs its testset_id

    @property
    def is_scored(self) -> bool:
        """Whether there is a ground truth to score against."""
        return bool(self.metrics)

    @property
    def is_judged(self) -> bool:
        """Whether a judge is asked about the answers."""
        return "judged" in self.metrics

    @property
    def has_choices(self) -> bool:
        """Whether its clips have options of which one is right."""
        return any(METRICS[name].needs == "picks" for name in self.metrics if name in METRICS)


_PUBLISHED = ("paper", "reproduced")
_ASR, _AAC = ["asr"], ["audiocaption", "audiocaption_v2"]
# The modes of the hackathon, one set each, and the key under `datasets` that names it.
MODES = {
    "valid_asr": ("valid_ann_path_asr", _ASR, "english", ["wer"]),
    "valid_aac": ("valid_ann_path_aac", _AAC, "caption", ["spider", "meteor", "cider_d", "rouge_l", "exact"]),
    "submission_asr": ("test_ann_path_asr", _ASR, "plain", []),
    "submission_aac": ("test_ann_path_aac", _AAC, "plain", []),
}


def annotation_key(mode: str, datasets: DictConfig) -> str:
    """The key under `datasets` that gives a mode's set: its own, else test_ann_path, else test_ann_path_asr or _aac.

    The last as in the hackathon's evaluator, which scores the test set by its own texts where nothing else is named.
    """
    own = MODES[mode][0]
    return next((key for key in (own, "test_ann_path", own.replace("valid", "test")) if datasets[key]), own)


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
            tasks[name] = _read_task(values, f"{path}, task {name}")
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


def _read_task(values: Any, source: str) -> EvalTask:
    """The task of these values. Raises UserError."""
    published = {key: values[key] for key in _PUBLISHED if values.get(key)} if isinstance(values, dict) else {}
    plain = {key: value for key, value in values.items() if key not in published} if published else values
    task: EvalTask = OmegaConf.to_object(typed_section(plain, EvalTask, source))
    for key, by_metric in published.items():
        if not isinstance(by_metric, dict):
            raise UserError(f"{source}: {key} must be published scores by metric, got {by_metric!r}")
        setattr(task, key, {name: _published(given, f"{source}: {key}.{name}") for name, given in by_metric.items()})
    return task


def _published(given: Any, source: str) -> list[Published]:
    """The published scores of a metric: a list of them, one alone, or its bare value. Raises UserError."""
    scores = [
        OmegaConf.to_object(typed_section(one if isinstance(one, dict) else {"value": one}, Published, source))
        for one in (given if isinstance(given, list) else [given])
    ]
    if any(math.isnan(one.value) for one in scores):
        raise UserError(f"{source}: value is not set: the published score, a number")
    return scores


def named_tasks(config: DictConfig, names: Sequence[str]) -> list[EvalTask]:
    """The tasks of evaluate.tasks_file; of those named every set has to be there, else UserError."""
    tasks = load_tasks(config.evaluate.tasks_file, names)
    if names and (absent := [task for task in tasks if not Path(task.annotation).is_file()]):
        raise UserError(absent_sets(absent))
    return tasks


def scored_tasks(tasks: Sequence[EvalTask]) -> list[EvalTask]:
    """The tasks that have metrics and whose set is there. Raises UserError if there is none."""
    if not any(task.is_scored for task in tasks):
        raise UserError(f"no metrics: {', '.join(task.name for task in tasks)}; there is nothing to score")
    return present_tasks([task for task in tasks if task.is_scored])


def present_tasks(tasks: Sequence[EvalTask]) -> list[EvalTask]:
    """The tasks whose set is there. Raises UserError if there is none."""
    there = [task for task in tasks if Path(task.annotation).is_file()]
    if not there:
        raise UserError(absent_sets(tasks))
    return there


def absent_sets(tasks: Sequence[EvalTask]) -> str:
    """The message for sets that are not there."""
    lines = "".join(f"\n  {task.name}: {task.annotation}" for task in tasks)
    return f"these sets are not here; util/prepare_eval_sets.py makes them:{lines}"


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
    if task.is_judged and not task.judge:
        raise UserError(f"{source}: metric judged needs judge: one of {', '.join(JUDGED_TASKS)}")


def is_plain_name(name: str) -> bool:
    """Whether this can be the name of a folder that lies where it should."""
    return bool(re.fullmatch(r"\w[\w.+-]*", name))
