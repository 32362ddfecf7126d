"""summary.json, report.md, curves and bars of the quickstart, from what its parts wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from salmonn.common.files import read_json, read_json_lines, write_json, write_text
from salmonn.evaluation.report.tables import table

STAGES = (0, 1, 2, 3)
EVALUATED_STAGES = (1, 3)
TASKS = ("asr", "aac")  # of configs/mini/eval_tasks.yaml
SCORES = {  # name in the summary: task, name in its report
    "asr_wer": ("asr", "wer"),
    "aac_cider_d": ("aac", "cider_d"),
    "aac_rouge_l": ("aac", "rouge_l"),
    "aac_exact": ("aac", "exact"),
}
SAMPLES_SHOWN = 6  # per evaluation
_HOW = {
    True: ", as published",
    False: " after stage 0, in which the connector alone learned to spell (not in the paper; without it: --published)",
}


class Recipe(NamedTuple):
    """How a quickstart trains."""

    seed: int
    published: bool = False  # without stage 0

    @property
    def stages(self) -> tuple[int, ...]:
        return STAGES[1:] if self.published else STAGES

    def __str__(self) -> str:
        """As it was asked for."""
        return f"--seed {self.seed}{' --published' if self.published else ''}"


@dataclass(frozen=True)
class Bar:
    """What a score must reach for the model to count as listening."""

    stage: int
    score: str
    at_least: bool
    limit: float


BARS = (
    Bar(1, "asr_wer", False, 0.30),
    Bar(1, "asr_wer_shuffled", True, 0.80),
    Bar(1, "aac_exact", True, 0.65),
    Bar(1, "aac_exact_shuffled", False, 0.25),
    Bar(3, "asr_wer", False, 0.35),
    Bar(3, "aac_exact", True, 0.65),
    Bar(3, "aac_exact_shuffled", False, 0.25),
)


@dataclass(frozen=True)
class Check:
    """A bar and what was reached."""

    bar: Bar
    value: float

    @property
    def passed(self) -> bool:
        return self.value >= self.bar.limit if self.bar.at_least else self.value <= self.bar.limit

    @property
    def line(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        limit = f"{'at least' if self.bar.at_least else 'at most'} {self.bar.limit:.2f}"
        return f"{verdict}  {self.bar.score} after stage {self.bar.stage}: {self.value:.3f} ({limit})"


def summarise(out: Path, recipe: Recipe, seconds: dict[str, float]) -> dict[str, Any]:
    """Gather the numbers of all parts. Scores at the top level are the final model's."""
    runs = {f"stage{stage}": read_json(out / f"stage{stage}" / "summary.json") for stage in recipe.stages}
    lists = [read_json_lines(out / f"stage{stage}" / "quarantine.jsonl", "a verdict") for stage in recipe.stages]
    skipped = {verdict["path"] for verdicts in lists for verdict in verdicts}
    return {
        **recipe._asdict(),
        "seconds": seconds,
        **_scores(out, EVALUATED_STAGES[-1]),
        **{f"stage{stage}": _scores(out, stage) for stage in EVALUATED_STAGES[:-1]},
        "trainable_parameters": runs["stage1"]["trainable_parameters"],
        "iterations": {name: run.get("iterations", run.get("steps")) for name, run in runs.items()},
        "valid_loss": {name: run["valid_loss"] for name, run in runs.items()},
        "valid_loss_shuffled": {name: run["valid_loss_shuffled"] for name, run in runs.items()},
        "skipped_files": len(skipped),
        "broken_files": len(read_json(out / "world" / "world.json")["broken"]),
    }


def _scores(out: Path, stage: int) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, (task, metric) in SCORES.items():
        found = read_json(out / "results" / f"stage{stage}" / task / "report.json")["scores"]
        scores |= {name: found[metric], f"{name}_shuffled": found[f"{metric}_shuffled"]}
    return scores


def check_bars(summary: dict[str, Any]) -> list[Check]:
    """One verdict per bar."""
    return [Check(bar, _of_stage(summary, bar.stage)[bar.score]) for bar in BARS]


def _of_stage(summary: dict[str, Any], stage: int) -> dict[str, float]:
    return summary if stage == EVALUATED_STAGES[-1] else summary[f"stage{stage}"]


def write_report(out: Path, summary: dict[str, Any], verdicts: Sequence[Check]) -> None:
    """Write summary.json and report.md, which shows the curves that each stage has drawn."""
    write_json(out / "summary.json", summary)
    parts = [
        "# SALMONN on the miniature world",
        "A small corpus was synthesised, tiny Whisper, BEATs and LLaMA were made and frozen, and SALMONN was trained "
        f"on them in three stages{_HOW[summary['published']]}: window-level Q-Former, projection and LoRA, "
        f"{summary['trainable_parameters']:,} trainable parameters. All scores are on held-out clips; "
        "*shuffled* means that each question was answered with the audio of another clip: a model that "
        "listens is far worse then.",
        "## Did it learn to listen?",
        "\n".join(f"- {verdict.line}" for verdict in verdicts),
        "## Scores",
        _score_table(summary),
        "## Training",
        _training_table(out, summary),
        f"Unreadable files met and skipped: {summary['skipped_files']} of the {summary['broken_files']} that the "
        "world holds on purpose (each stage lists its own in quarantine.jsonl).",
        *(f"![{name}]({name}/training_curves.png)" for name in summary["iterations"]),
        "## Sample answers of the final model",
        *(_samples(out, task) for task in TASKS),
        "## Seconds",
        table(["part", "seconds"], [[part, f"{value:.0f}"] for part, value in summary["seconds"].items()]),
    ]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _score_table(summary: dict[str, Any]) -> str:
    stages = [_of_stage(summary, stage) for stage in EVALUATED_STAGES]
    header = ["score"]
    for stage in EVALUATED_STAGES:
        header += [f"after stage {stage}", "shuffled"]
    rows = [
        [name, *(f"{scores[key]:.3f}" for scores in stages for key in (name, f"{name}_shuffled"))] for name in SCORES
    ]
    return table(header, rows)


def _training_table(out: Path, summary: dict[str, Any]) -> str:
    files = {Path(report["file"]).stem: report for report in read_json(out / "inspector.json")["files"]}
    rows = []
    for name, iterations in summary["iterations"].items():
        of_ctc = name == "stage0"
        tasks = files[f"{'stage1' if of_ctc else name}_train"]["tasks"]
        heard = ", ".join(f"{row['task']} {row['total']}" for row in tasks)
        losses = [f"{summary[key][name]:.3f}" for key in ("valid_loss", "valid_loss_shuffled")]
        heard += " (loss of CTC)" if of_ctc else ""
        rows.append([name.removeprefix("stage"), str(iterations), *losses, heard])
    return table(["stage", "iterations", "validation loss", "shuffled", "training entries"], rows)


def _samples(out: Path, task: str) -> str:
    path = out / "results" / f"stage{EVALUATED_STAGES[-1]}" / task / "predictions.jsonl"
    heard = [line for line in read_json_lines(path, "an answer") if not line["unreadable"]][:SAMPLES_SHOWN]
    rows = [[line["references"][0], line["text"], line["text_shuffled"]] for line in heard]
    return table(["truth", f"answer ({task})", "answer to another clip's audio"], rows)
