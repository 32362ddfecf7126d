"""Perplexity of the right answers with and without the instruction: how over-fitted to tasks a model is.

A model that transcribes or captions whatever it is asked finds the text of that task as likely without
an instruction as with it, and everything else unlikely (paper, section 3.2 and Figure 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common import distributed
from salmonn.common.charts import distinct_parts
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.answering import answer_all
from salmonn.evaluation.metrics.base import Metric, interval_of, ratio, value_of
from salmonn.evaluation.pipeline import load_model, session
from salmonn.evaluation.provenance import build_provenance, earlier_commits, fingerprint
from salmonn.evaluation.report import curve_plots
from salmonn.evaluation.report.curve_plots import PerplexityCurve
from salmonn.evaluation.report.pages import tell, write_page
from salmonn.evaluation.report.tables import shown_interval, shown_score, table
from salmonn.evaluation.requests import Outcome, Request
from salmonn.evaluation.sets import EvalSet, open_sets
from salmonn.evaluation.tasks import EvalTask, scored_tasks
from salmonn.model import checkpoint
from salmonn.model.hearing import require_same_hearing
from salmonn.model.prompts import SPEECH_MARKER
from salmonn.model.salmonn import SALMONN

# Over all target tokens of a set, the end symbol included.
PERPLEXITY = Metric("perplexity", statistics=np.asarray, value=lambda sums: np.exp(ratio(sums)), percent=False)
ONLY_AUDIO = f"<Speech>{SPEECH_MARKER}</Speech>"
WITH, WITHOUT = "P(Y|X,I)", "P(Y|X)"


@dataclass(frozen=True)
class Likelihood(Outcome):
    """How likely the model finds the right answer."""

    n_tokens: int = 0
    loss: float = 0.0  # mean over its tokens, asked with the instruction
    loss_without: float = 0.0  # hearing the audio only


@dataclass(frozen=True)
class Point:
    """A model to measure: parameters, and how much its adapters count."""

    label: str
    ckpt: str
    scaling: float | None  # None: as the config says


def points_of(config: DictConfig, checkpoints: Sequence[str], scalings: Sequence[float]) -> list[Point]:
    """Several checkpoints at one scaling, or one checkpoint at several; the config's where none is given.

    Raises UserError for several of both: a curve has one axis.
    """
    files = list(checkpoints) or [config.model.ckpt]
    values: Sequence[float | None] = scalings or [None]
    if len(files) > 1 and len(values) > 1:
        raise UserError("several --checkpoints or several --scalings, not both: the curves are over one of them")
    if len(files) > 1 or values == [None]:
        labels = distinct_parts(files)
        return [Point(label or "no checkpoint", file, values[0]) for label, file in zip(labels, files, strict=True)]
    return [Point(f"{scaling:g}", files[0], scaling) for scaling in values]


def measure_perplexity(config: DictConfig, tasks: Sequence[EvalTask], points: Sequence[Point], folder: Path) -> None:
    """Perplexities of every task at every point with one loading of the big models; table and curves on one page.

    Raises UserError for checkpoints that cannot be read before anything big is loaded.
    """
    _require_comparable(config, points)
    config = OmegaConf.merge(config, {"model": {"ckpt": points[0].ckpt}})
    there = scored_tasks(tasks)
    results: dict[str, dict[str, Any]] = {}  # by label of the point, then task
    with session(config):
        sets = open_sets(there, config)
        model = load_model(config, folder, sets)
        trained_scaling = model.lora_scaling
        for point in points:
            if point.ckpt and point.ckpt != config.model.ckpt:
                checkpoint.load_parameters(model, point.ckpt)
            config.model.ckpt = point.ckpt
            if config.model.lora:
                model.lora_scaling = trained_scaling if point.scaling is None else point.scaling
            measure = partial(_measure_set, model, config, folder, point.label)
            results[point.label] = {one.task.name: measure(one) for one in sets}
        is_main = distributed.is_main()
    if is_main:
        tell(write_perplexity(folder, there, results), folder)


def _require_comparable(config: DictConfig, points: Sequence[Point]) -> None:
    """Raise UserError for scalings without adapters, and for checkpoints that would leave parameters of another."""
    if not config.model.lora and any(point.scaling is not None for point in points):
        raise UserError("model.lora = False: without adapters there is no scaling to vary")
    contents = {file: checkpoint.read(file, lazily=True) for file in {p.ckpt for p in points} if file}
    for file, content in contents.items():
        require_same_hearing(config.model, content, file)
    names = {file: content["model"].keys() for file, content in contents.items()}
    first = next(iter(names), "")
    for file, keys in names.items():
        if differing := sorted(keys ^ names[first]):
            raise UserError(f"{first} and {file} hold other parameters ({differing[0]}); measure them one by one")


def _measure_set(model: SALMONN, config: DictConfig, folder: Path, label: str, one: EvalSet) -> dict[str, Any]:
    """Perplexities of a set, with how they were come by; the same on every rank."""
    dataset = one.open_clips(config.datasets, model.max_seconds)
    provenance = build_provenance(config, one.task.annotation, model.lora_scaling)
    name = fingerprint(provenance, [request.prompt for request in one.requests])
    store = AnswerStore(folder / "answers" / one.task.name, name, provenance["commit"], Likelihood)
    ask = partial(likelihoods, model, config)
    answers = answer_all(ask, dataset, one.requests, config, f"{one.task.name}, {label}", store, model.lending())
    heard = [answer for answer in answers.values() if not answer.unreadable]
    longest = sum(answer.n_tokens == config.model.max_txt_len for answer in heard)
    result: dict[str, Any] = {"n": len(answers), "heard": len(heard), "as_long_as_max_txt_len": longest}
    for key, loss in ((WITH, "loss"), (WITHOUT, "loss_without")):
        statistics = np.array([[getattr(a, loss) * a.n_tokens, a.n_tokens] for a in heard]).reshape(-1, 2)
        result[key] = value_of(PERPLEXITY, statistics)
        result[f"{key} interval"] = interval_of(PERPLEXITY, statistics)
    return {**result, "provenance": provenance | earlier_commits(provenance, store.commits)}


@torch.no_grad()
def likelihoods(model: SALMONN, config: DictConfig, batch: Samples, heard: Sequence[Request]) -> list[Likelihood]:
    """How likely each clip's text (its first reference) is, asked with its prompt and hearing the audio alone."""
    bare = config.model.prompt_template.replace("{}", ONLY_AUDIO, 1)
    with autocast(config.run, model.device):
        embeds = model.encode_clips(batch["raw_wav"], batch["padding_mask"])  # each [A, H]
        asked = model.answer_loss(embeds, [request.prompt for request in heard], batch["text"])
        unasked = model.answer_loss(embeds, [bare] * len(heard), batch["text"])
    n_tokens = asked["sample_total"].long().tolist()
    losses = zip(asked["sample_loss"].tolist(), unasked["sample_loss"].tolist(), strict=True)
    return [Likelihood(n, *loss) for n, loss in zip(n_tokens, losses, strict=True)]


def write_perplexity(folder: Path, tasks: Sequence[EvalTask], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write report.json, report.md and perplexity.png from {point: {task: result}}; returns it in words."""
    header = ["task", "n", "perplexity", *results]
    shown = table(header, [row for task in tasks for row in _rows(task.name, results)])
    explained = (
        f"Perplexity per target token of the right answers (of several references the first), 95 % intervals over "
        f"clips. {WITH}: audio and instruction. {WITHOUT}: the audio alone."
    )
    provenances = [one["provenance"] for by_task in results.values() for one in by_task.values()]
    parts = [shown, explained, "![curves](perplexity.png)"]
    pictures = {"perplexity.png": curve_plots.perplexity([_curve(task.name, results) for task in tasks])}
    write_page(folder, "Perplexity of the right answers", parts, results, pictures, provenances)
    return f"{shown}\n\n{explained}"


def _rows(name: str, results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    of_points = [by_task[name] for by_task in results.values()]
    heard, n = of_points[0]["heard"], of_points[0]["n"]
    rows = []
    for key in (WITH, WITHOUT):
        cells = [
            f"{shown_score(PERPLEXITY, one[key])} ({shown_interval(PERPLEXITY, one[f'{key} interval'])})"
            for one in of_points
        ]
        rows.append([name, str(n) if heard == n else f"{heard} of {n}", key, *cells])
    return rows


def _curve(name: str, results: Mapping[str, Mapping[str, Any]]) -> PerplexityCurve:
    of_points = [by_task[name] for by_task in results.values()]
    numbers = [label for label in results if label.replace(".", "", 1).isdecimal()]
    x = [float(label) for label in numbers] if len(numbers) == len(results) else list(results)
    return PerplexityCurve(name, x, [one[WITH] for one in of_points], [one[WITHOUT] for one in of_points])
