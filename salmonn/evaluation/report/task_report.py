"""The report of one set: scores, counts and notes, and the files and tables that tell them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from salmonn.common.errors import examples
from salmonn.common.files import write_text
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.judge.judging import Judgement
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.normalisers import normaliser
from salmonn.evaluation.report.pages import write_page
from salmonn.evaluation.report.plots import confusion
from salmonn.evaluation.report.tables import heard_clips, metrics_of, shown_interval, shown_score, table
from salmonn.evaluation.requests import ChoiceAnswers, Prediction, Request
from salmonn.evaluation.scoring import Scores, score
from salmonn.evaluation.tasks import EvalTask

CONFUSION_PNG = "confusion.png"
SAMPLES_SHOWN = 12
UNREADABLE_SHOWN = 20
COMPARED = ("references", "spoken", "picks")
NAMING = (
    "An answer names an option by its letter, alone, in front or told (the answer is B), or by the words of one option "
    "alone, not behind a not; likelihoods are of the options' texts, mean over tokens and over the orders."
)
UNCONTROLLED = "asks once more with other clips' audio, and with none"


class Control(NamedTuple):
    """Answers to the same prompts in which what is heard cannot help."""

    title: str
    note: str
    hearing: str


CONTROLS = {
    "shuffled": Control(
        "shuffled audio",
        "Shuffled audio: every prompt answered once more, hearing another clip of the set.",
        "with other audio",
    ),
    "no_audio": Control("no audio", "No audio: every prompt answered once more with no audio in it.", "without audio"),
}


def build_report(
    task: EvalTask,
    clips: Sequence[EvalExample],
    predictions: Mapping[int, Prediction],
    shuffled: Mapping[int, Prediction] | None,
    whisper_path: str,
    judgement: Judgement | None = None,
    choices: ChoiceAnswers | None = None,
) -> dict[str, Any]:
    """Counts, scores and notes; what is known only to the run (config, time) is added by the caller."""
    report = _counted(task, clips, predictions)
    if not task.is_scored:
        return report | _shown(Scores()) | {"scoring": {}}
    normalise, normaliser_note, substitute = normaliser(task.normaliser, whisper_path)
    scores = score(task, clips, predictions, normalise, judgement, choices.heard if choices else None)
    report |= _shown(scores) | {
        "scoring": {
            "metrics": {name: METRICS[name].title for name in scores.all},  # a title names the tokenizer
            "normaliser": task.normaliser,
            "normaliser_note": normaliser_note,
            "substitute": {name: METRICS[name].substitute or substitute for name in scores.all},
            "references_sha256": scores.references_sha256,
            "prompt": task.prompt,
            "judge": judgement.judge if judgement else "",
        },
        "references": sum(len(clip.references) for clip in clips),
        "empty_references": scores.empty_references,
    }
    report["notes"] += [normaliser_note, *_notes_on(scores, normaliser_note)]
    _add_controls(report, partial(score, _compared(task), clips, normalise=normalise), shuffled, choices)
    return report


def _counted(task: EvalTask, clips: Sequence[EvalExample], predictions: Mapping[int, Prediction]) -> dict[str, Any]:
    """How many answers there are of which kind, and the clips that cannot be read, with a note on them."""
    heard = [prediction for prediction in predictions.values() if not prediction.unreadable]
    finished = sum(prediction.finished for prediction in heard)
    unreadable = [
        {"id": clip.id, "path": clip.path, "reason": predictions[position].unreadable}
        for position, clip in enumerate(clips)
        if predictions[position].unreadable
    ]
    notes = []
    if unreadable:
        fate = "are in the submission without an answer" if task.submission else "are not part of the scores"
        named = examples([clip["path"] for clip in unreadable])
        notes.append(f"Unreadable clips: {len(unreadable)}; they {fate}: {named}.")
    return {
        "name": task.name,
        "title": task.title,
        "n": len(clips),
        "finished": finished,
        "unfinished": len(heard) - finished,
        "empty_outputs": sum(not prediction.text for prediction in heard),
        "unreadable": unreadable,
        "notes": notes,
    }


def _shown(scores: Scores) -> dict[str, Any]:
    """What the report holds of scores."""
    return {
        "scores": dict(scores.all),
        "scores_finished": scores.finished,
        "intervals": scores.intervals,
        "scored_clips": scores.clips,
        "details": scores.details,
        "unavailable": scores.unavailable,
        "statistics": scores.statistics,
    }


def _add_controls(
    report: dict[str, Any],
    score_control: Callable[..., Scores],
    shuffled: Mapping[int, Prediction] | None,
    choices: ChoiceAnswers | None,
) -> None:
    """Scores of the answers to other clips' audio and, of multiple choice, to none; `score_control`: of answers."""
    if shuffled is not None:
        picks = choices.shuffled if choices else None
        _add_control(report, "shuffled", score_control(shuffled, picks=picks))
    if choices is None:
        return
    report["notes"].append(NAMING)
    if choices.unheard is not None:
        _add_control(report, "no_audio", score_control(choices.unheard, picks=choices.of_unheard))
    else:
        unasked = f"The options were asked without controls: evaluate.shuffled_control=True {UNCONTROLLED}."
        report["notes"].append(unasked)


def _compared(task: EvalTask) -> EvalTask:
    """The task with the metrics that a control has.

    A judge is asked about real answers only, and what needs no truth is the same for answers in another order.
    """
    return replace(task, metrics=[name for name in task.metrics if METRICS[name].needs in COMPARED])


def _notes_on(scores: Scores, said: str) -> list[str]:
    """What there is to know of the scores; a reason that was `said` before, or is that of several, is told once."""
    without: dict[str, list[str]] = {}  # by reason
    for name, why in scores.unavailable.items():
        without.setdefault(why, []).append(METRICS[name].title)
    notes = [
        f"{' and '.join(titles)} {'have' if len(titles) > 1 else 'has'} no score"
        f"{', for the same reason' if why in said else f': {why}'}."
        for why, titles in without.items()
    ]
    noted = {name: details["note"] for name, details in scores.details.items() if "note" in details}
    notes += [f"{METRICS[name].title}: {note}." for name, note in noted.items()]
    if scores.empty_references:
        notes.append(
            f"Clips without a reference word after normalisation: {scores.empty_references}; they are left out of "
            f"scores against references, and were answered with {scores.words_without_reference} words."
        )
    return notes


def _add_control(report: dict[str, Any], kind: str, control: Scores) -> None:
    """Scores of the answers to other clips' audio or to none, `kind` of CONTROLS; says where they are as good."""
    report["scores"] |= {f"{name}_{kind}": value for name, value in control.all.items()}
    report["intervals"] |= {f"{name}_{kind}": edges for name, edges in control.intervals.items()}
    report["notes"].append(CONTROLS[kind].note)
    report["notes"] += filter(None, (_deafness(report, name, kind) for name in control.all))


def _deafness(report: Mapping[str, Any], name: str, kind: str) -> str:
    """A warning where the control serves as well; "" where it does not, or where there is no telling."""
    edges, controlled = report["intervals"][name], report["scores"][f"{name}_{kind}"]
    if not edges or controlled is None or not edges[0] <= controlled <= edges[1]:
        return ""
    title, hearing = METRICS[name].title, CONTROLS[kind].hearing
    return f"{title}: {hearing} the score is within the interval: no sign that these answers depend on hearing."


def prediction_lines(
    clips: Sequence[EvalExample],
    requests: Sequence[Request],
    predictions: Mapping[int, Prediction],
    shuffled: Mapping[int, Prediction] | None,
    judgement: Judgement | None = None,
    choices: ChoiceAnswers | None = None,
) -> list[dict[str, Any]]:
    """One JSON object per clip, in the order of the set."""
    lines = []
    for position, (clip, request) in enumerate(zip(clips, requests, strict=True)):
        line: dict[str, Any] = {"id": clip.id, "path": clip.path, "task": clip.task, "prompt": request.prompt}
        line |= {"references": list(clip.references), **asdict(predictions[position])}
        if shuffled is not None and position in shuffled:
            line["text_shuffled"] = shuffled[position].text
        if judgement and (reply := judgement.replies.get(position)):
            line["verdict"] = {"correct": reply.correct, "raw": reply.raw}
        if choices and (pick := choices.heard.get(position)):
            named = None if pick.named is None else clip.choices[pick.named]
            line |= {"choices": clip.choices, "named": named, "likeliest": clip.choices[pick.likeliest]}
        lines.append(line)
    return lines


def write_report(folder: Path, report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the four files; each is complete whenever it exists."""
    write_text(folder / "predictions.jsonl", "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    write_text(folder / "statistics.json", json.dumps(report["statistics"], separators=(",", ":")) + "\n")
    pictures, title = {CONFUSION_PNG: confusion(report)}, f"{report['name']}: {report['title']}"
    values, parts = without_statistics(report), page_parts(report, lines)
    write_page(folder, title, parts, values, pictures, [report["provenance"]], subject="this")


def without_statistics(report: Mapping[str, Any]) -> dict[str, Any]:
    """What report.json holds: all but the numbers per clip, which have a file of their own."""
    return {key: value for key, value in report.items() if key != "statistics"}


def page_parts(report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The report in words: summary, confusions, what could not be read, sample answers."""
    parts = [summary(report)]
    if matrices := confusion_tables(report):
        parts += [*matrices, f"![confusion]({CONFUSION_PNG})"]
    if report["unreadable"]:
        rows = [[clip["id"], clip["path"], clip["reason"]] for clip in report["unreadable"]]
        parts += ["## Unreadable clips", table(["id", "path", "reason"], rows[:UNREADABLE_SHOWN])]
        if len(rows) > UNREADABLE_SHOWN:
            parts.append(f"... and {len(rows) - UNREADABLE_SHOWN} more in report.json.")
    heard = [line for line in lines if not line["unreadable"]]
    rows = [[one["id"], (one["references"] or [""])[0], one["text"]] for one in heard[:SAMPLES_SHOWN]]
    return [*parts, "## Sample answers", table(["id", "reference", "output"], rows)]


def summary(report: Mapping[str, Any]) -> str:
    """What a person sees at the end of a run: scores, counts, notes."""
    counts = (
        f"{report['n']} clips ({report['entries']} entries of {report['annotation']}), {heard_clips(report)} heard, "
        f"{len(report['unreadable'])} unreadable; {report['finished']} answers finished, "
        f"{report['unfinished']} unfinished, {report['empty_outputs']} empty"
    )
    notes = "\n".join(f"- {note}" for note in report["notes"])
    return "\n\n".join(part for part in (score_table(report), counts, notes) if part)


def score_table(report: Mapping[str, Any]) -> str:
    """Scores over all answers, over the finished ones, and of the controls; "" without scores."""
    if not report["scores"]:
        return ""
    scores, finished = report["scores"], report["scores_finished"]
    header = ["metric", f"all ({heard_clips(report)})", "95 % interval"]
    header.append(f"finished ({report['finished']})")
    controls = [kind for kind in CONTROLS if any(f"{name}_{kind}" in scores for name in METRICS)]
    rows = []
    for name in metrics_of(report):
        metric = METRICS[name]
        shown = [shown_score(metric, value) for value in (scores[name], finished[name])]
        for kind in controls:  # a judge is not asked about these answers
            control = f"{name}_{kind}"
            shown.append(shown_score(metric, scores[control]) if control in scores else "-")
        shown.insert(1, shown_interval(metric, report["intervals"][name]))
        rows.append([metric.title, *shown])
    return table([*header, *(CONTROLS[kind].title for kind in controls)], rows)


def confusion_tables(report: Mapping[str, Any]) -> list[str]:
    """A headed table for each metric that has a confusion matrix."""
    parts = []
    for name, details in report["details"].items():
        if "confusion" in details:
            names = details["classes"]
            rows = [[label, *map(str, row)] for label, row in zip(names, details["confusion"], strict=True)]
            parts += [f"## Confusion: {METRICS[name].title}", table(["reference / answer", *names, "none"], rows)]
    return parts
