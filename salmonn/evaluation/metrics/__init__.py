"""Metrics by name: `METRICS[name]`; a metric of one's own is one more entry.

Knows texts alone: no model, no file, no task. Tests: tests/evaluation/test_*_scores.py, test_metrics.py.
"""

from salmonn.evaluation.metrics import answers, captions, choices, stories, translation, word_errors
from salmonn.evaluation.metrics.base import Measured, Metric, Texts, UnavailableError, measure

METRICS: dict[str, Metric] = {
    **word_errors.METRICS,
    **translation.METRICS,
    **captions.METRICS,
    **answers.METRICS,
    **choices.METRICS,
    **stories.METRICS,
}

__all__ = ["METRICS", "Measured", "Metric", "Texts", "UnavailableError", "measure"]
