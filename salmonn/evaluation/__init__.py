"""Evaluation: tasks as data, answers, judges, scores by libraries, reports (paper, Table 3, Figures 3 and 4).

May import preflight, data, model and what is below them. Tests: tests/evaluation/.

    from salmonn.evaluation import METRICS, EvalTask, Metric, evaluate_tasks

`EvalTask` declares a set, `METRICS["mine"] = Metric(...)` adds a score, `evaluate_tasks(config, [task], folder)`
answers, scores and reports.
"""

from typing import TYPE_CHECKING, Any

from salmonn.evaluation.metrics import METRICS, Metric
from salmonn.evaluation.tasks import EvalTask

if TYPE_CHECKING:
    from salmonn.evaluation.pipeline import evaluate_tasks

__all__ = ["METRICS", "EvalTask", "Metric", "evaluate_tasks"]


def __getattr__(name: str) -> Any:
    if name == "evaluate_tasks":  # brings torch and transformers: only who evaluates loads them
        from salmonn.evaluation.pipeline import evaluate_tasks

        return evaluate_tasks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
