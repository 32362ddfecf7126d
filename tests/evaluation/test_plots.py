"""What the pictures of evaluation results show: every score at its place, and a gap where there is none."""

from dataclasses import replace

import numpy as np
import pytest

from salmonn.common.charts import distinct_parts, write_png
from salmonn.evaluation.metrics import METRICS, Texts, measure
from salmonn.evaluation.published import Published
from salmonn.evaluation.report import curve_plots, plots
from salmonn.evaluation.report.curve_plots import Curve, PerplexityCurve
from salmonn.evaluation.report.plots import PAPER, REPRODUCED, SHUFFLED, THIS_RUN
from salmonn.evaluation.tasks import EvalTask, load_tasks
from tests.fixtures.paths import ROOT

PUBLISHED = {
    "paper": {"wer": [Published(0.021, "all", 9, "edit distance")]},
    "reproduced": {"wer": [Published(0.0224, "all", 9, "edit distance")]},
}
ASR = EvalTask("asr", "speech recognition", metrics=["wer"], **PUBLISHED)
STORY = EvalTask("story", "stories", metrics=["diversity", "repeat_rate", "following_story"])


def report(task: EvalTask, value: float | None = 0.5, shuffled: bool = True) -> dict:
    """A report with one score for all metrics, and an interval of 0.1 to both sides."""
    return {
        "name": task.name,
        "title": task.title,
        "scores": {name: value for metric in task.metrics for name in (metric, *[f"{metric}_shuffled"] * shuffled)},
        "intervals": dict.fromkeys(task.metrics, None if value is None else [value - 0.1, value + 0.1]),
        "scores_finished": dict.fromkeys(task.metrics, value),
        "n": 9,
        "finished": 9,
        "unfinished": 0,
        "scoring": {"substitute": dict.fromkeys(task.metrics, "")},
        "scored_clips": dict.fromkeys(task.metrics, 1234),
        "details": {},
    }


def bars(panel) -> list[tuple[str, float]]:
    """(kind, length) from top to bottom."""
    assert panel.yaxis_inverted()
    found = [(box.get_label(), bar.get_y(), bar.get_width()) for box in panel.containers for bar in box]
    return [(kind, length) for kind, _, length in sorted(found, key=lambda bar: bar[1])]


def texts(panel) -> list[str]:
    return [text.get_text() for text in panel.texts]


def drawn(figure):
    """The figure after it was laid out, as a picture shows it."""
    figure.draw_without_rendering()
    return figure


def test_a_bar_for_this_run_its_control_and_each_published_score():
    [panel] = plots.overview([ASR], {"asr": {**report(ASR, 0.03), "intervals": {"wer": [0.02, 0.05]}}}).axes
    assert bars(panel) == [(THIS_RUN, 0.03), (SHUFFLED, 0.03), (PAPER, 0.021), (REPRODUCED, 0.0224)]
    assert texts(panel) == ["WER ↓   n = 1,234", "3.00 %", "3.00 %", "2.10 %", "2.24 %"]
    assert panel.get_title("left") == "asr: speech recognition"
    [interval] = panel.lines
    assert list(interval.get_xdata()) == [0.02, 0.05]
    assert panel.get_xlim()[1] > 0.05


def test_each_panel_has_an_axis_in_its_unit():
    words, shares = drawn(plots.overview([STORY], {"story": report(STORY)})).axes
    of = {panel: [label.get_text() for label in panel.get_xticklabels()] for panel in (words, shares)}
    assert all(2 <= len(labels) <= 6 for labels in of.values())
    assert all(label.endswith(" %") for label in of[shares])
    assert not any("%" in label for label in of[words])


@pytest.mark.parametrize("change", [{"outputs": "finished"}, {"clips": 8}, {"tool": "another"}])
def test_a_published_score_of_another_measure_has_no_bar(change):
    task = replace(ASR, reproduced={"wer": [replace(PUBLISHED["reproduced"]["wer"][0], **change)]})
    [panel] = plots.overview([task], {"asr": report(task)}).axes
    assert [kind for kind, _ in bars(panel)] == [THIS_RUN, SHUFFLED, PAPER]


def test_only_what_there_is_has_a_bar_and_a_place_in_the_legend():
    task = replace(ASR, paper={}, reproduced={})
    figure = plots.overview([task], {"asr": report(task, shuffled=False)})
    assert [kind for kind, _ in bars(figure.axes[0])] == [THIS_RUN]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [THIS_RUN]


def test_a_missing_score_is_told_and_the_published_one_still_shown():
    [panel] = plots.overview([ASR], {"asr": report(ASR, None)}).axes
    assert texts(panel)[1:] == ["no score", "no score", "2.10 %", "2.24 %"]
    assert not panel.lines  # no interval
    assert plots.overview([STORY], {"story": report(STORY, None)}).axes[0].get_xlim() == (0, 1)


def test_metrics_of_one_unit_share_a_panel_and_arrows_say_which_way_is_better():
    words, shares = plots.overview([STORY], {"story": report(STORY)}).axes
    assert texts(words) == ["distinct words ↑   n = 1,234", "0.50", "0.50"]
    assert texts(shares)[::3] == ["repeat rate (4 words) ↓   n = 1,234", "following rate ↑   n = 1,234"]


def test_lower_is_better_for_errors_and_repetitions_only():
    assert {name for name, metric in METRICS.items() if metric.lower_is_better} == {
        "wer",
        "per",
        "wer_separated",
        "repeat_rate",
    }


def test_tasks_without_a_report_are_named():
    figure = plots.overview([ASR, STORY, replace(ASR, name="giga")], {"asr": report(ASR), "story": None})
    assert len(figure.axes) == 1
    assert "Not evaluated: story, giga" in figure.get_supxlabel()


def test_every_task_of_table_3_has_its_scores_in_the_picture_and_nothing_overlaps():
    tasks = load_tasks(ROOT / "configs/eval_tasks.yaml")
    figure = drawn(plots.overview(tasks, {task.name: report(task) for task in tasks}))
    shown = [text for panel in figure.axes for text in texts(panel)]
    assert sum("n = 1,234" in text for text in shown) == sum(len(task.metrics) for task in tasks)
    boxes = [panel.get_tightbbox().padded(-1) for panel in figure.axes]
    boxes += [part.get_window_extent() for part in (*figure.legends, *figure.texts)]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert all(figure.bbox.padded(1).containsx(x) for box in boxes for x in (box.x0, box.x1))


def test_the_confusion_matrix_has_counts_in_its_cells_and_shares_as_colours():
    words = ["male", "female", "male", "who knows"]
    metric = METRICS["accuracy_gr"]
    measured = measure(metric, Texts(words, [["male"], ["male"], ["male"], ["male"]]), [True] * 4)
    found = {"name": "gr", "title": "gender", "scores": {"accuracy_gr": measured.value}}
    figure = plots.confusion({**found, "details": {"accuracy_gr": measured.details, "wer": {"note": "none here"}}})
    panel, _ = figure.axes  # and the scale of colours
    assert np.array(texts(panel)).reshape(2, 3).tolist() == [["2", "1", "1"], ["0", "0", "0"]]
    assert panel.images[0].get_array().tolist() == [[0.5, 0.25, 0.25], [0, 0, 0]]
    assert panel.get_title() == "gender accuracy 50.00 %"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["man", "woman", "none"]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["man (4)", "woman (0)"]


def test_a_sweep_has_a_panel_per_metric_with_gaps_bands_and_published_points():
    published = {4.0: 0.02, 0.0: 0.4}
    clean = Curve(
        "clean", "wer", [0, 2, 4], [0.5, None, 0.1], [[0.4, 0.6], None, [0.05, 0.2]], [0.4, None, 0.1], published
    )
    other = Curve("other", "wer", [0, 2], [0.6, 0.3], [None, None])
    story = Curve("clean", "diversity", [0, 1], [None, None], [None, None])
    errors, words = drawn(curve_plots.sweep([clean, other, story])).axes
    assert [line.get_label() for line in errors.lines] == [
        "clean",
        "clean, finished only",
        "clean, published, finished only",
        "other",
    ]
    mine, finished, theirs, another = errors.lines
    np.testing.assert_equal(finished.get_ydata(), [0.4, np.nan, 0.1])
    np.testing.assert_equal(mine.get_ydata(), [0.5, np.nan, 0.1])
    assert (list(theirs.get_xdata()), list(theirs.get_ydata())) == ([0, 4], [0.4, 0.02])
    assert theirs.get_linestyle() == "--"
    assert mine.get_color() == theirs.get_color() == words.lines[0].get_color() != another.get_color()
    top = np.concatenate([path.vertices for path in errors.collections[0].get_paths()])
    assert top[:, 1].max() == 0.6
    assert errors.get_ylabel() == "WER ↓"
    assert [tick.get_text() for tick in errors.get_xticklabels()] == ["0", "2", "4"]
    assert errors.get_yticklabels()[1].get_text().endswith(" %")
    assert (texts(errors), texts(words)) == ([], ["no score"])


def test_perplexities_are_logarithmic_and_the_same_colour_with_and_without_the_instruction():
    asr = PerplexityCurve("asr", [0.0, 4.0], [30.0, 2.0], [40.0, None])
    story = PerplexityCurve("story", [0.0], [None], [8.0])
    left, right = drawn(curve_plots.perplexity([asr, story])).axes
    assert (left.get_yscale(), left.get_title("left"), right.get_title("left")) == ("log", "asr", "story")
    solid, dashed = left.lines
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_color() == dashed.get_color() != right.lines[0].get_color()
    np.testing.assert_equal(dashed.get_ydata(), [40.0, np.nan])
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xlabel() == "LoRA scaling"


def test_checkpoints_stand_at_equal_distances_under_short_names():
    paths = [f"output/mini/stage{stage}/checkpoint_best.pth" for stage in (1, 3)]
    later = PerplexityCurve("later", paths[1:], [2.0], [3.0])
    first, second = drawn(curve_plots.perplexity([PerplexityCurve("both", paths, [3.0, 2.0], [4.0, 3.0]), later])).axes
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["stage1", "stage3"]
    assert list(second.lines[0].get_xdata()) == [1]
    assert first.get_xlabel() == "checkpoint"


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["a/b/c.pth"], ["c"]),
        (["a/s1/x.pth", "a/s1/y.pth"], ["x", "y"]),
        (["a/s1/x.pth", "a/s2/y.pth", "a/s1/y.pth"], ["s1/x", "s2/y", "s1/y"]),
        (["salmonn_v1.pth", "output/stage3/salmonn_v1.pth"], ["salmonn_v1", "output/stage3/salmonn_v1"]),
        (["a/b", "a/b/c"], ["b", "b/c"]),
    ],
)
def test_a_short_name_has_the_parts_that_differ(paths, short):
    assert distinct_parts(paths) == short


def test_there_is_no_picture_of_nothing():
    assert plots.overview([ASR], {}) is None
    assert plots.overview([ASR], {"asr": {**report(ASR), "scores": {}}}) is None  # answers without scores
    assert plots.confusion(report(ASR)) is None
    assert curve_plots.sweep([]) is None
    assert curve_plots.perplexity([]) is None


def test_a_picture_is_written_into_a_folder_that_was_not_there(tmp_path):
    write_png(plots.overview([ASR], {"asr": report(ASR)}), tmp_path / "new/overview.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["overview.png"]
    assert (tmp_path / "new/overview.png").read_bytes().startswith(b"\x89PNG")
