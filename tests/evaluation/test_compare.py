"""Two results side by side: paired intervals, what differs, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonn.common.errors import UserError
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.compare import compare
from salmonn.evaluation.metrics import METRICS, Metric, UnavailableError
from salmonn.evaluation.metrics.base import interval_of, paired_interval_of
from salmonn.evaluation.report.task_report import build_report, prediction_lines, write_report
from salmonn.evaluation.requests import Prediction, Request
from salmonn.evaluation.table3 import write_overview
from salmonn.evaluation.tasks import EvalTask
from tests.fixtures.paths import ROOT

WHISPER = str(Path(__file__).parent)  # stands for a Whisper folder without a spelling mapping
ASR = EvalTask("asr", "speech recognition", "asr.json", ["asr"], "", "words", ["wer"])
QA = EvalTask("qa", "questions", "qa.json", ["QA"], "", "words", ["exact", "contains"])
TEXTS = [f"one two three four {i}" for i in range(40)]
CARD = {"annotation_sha256": "a" * 64, "lora_scaling": 4.0, "generate": {"num_beams": 4}, "versions": {"torch": "2"}}


def wrong_words(counts: list[int]) -> list[str]:
    """An answer per text, with its first words wrong."""
    return [
        " ".join(["x"] * count + text.split()[count:]) for count, text in zip(counts, TEXTS[: len(counts)], strict=True)
    ]


def evaluated(
    task: EvalTask, answers: list[str | None], folder: Path, texts: list[str] = TEXTS, **provenance: Any
) -> dict[str, Any]:
    """Write the result of these answers (None: an unreadable clip) as a run does; returns its report."""
    references = [() if task.submission else (text,) for text in texts[: len(answers)]]
    clips = [EvalExample(i, str(i), f"{i}.wav", "asr", "", texts) for i, texts in enumerate(references)]
    outputs = {
        i: Prediction(unreadable="gone") if text is None else Prediction(text, 1, True)
        for i, text in enumerate(answers)
    }
    report = build_report(task, clips, outputs, None, WHISPER)
    report |= {"annotation": task.annotation, "entries": len(clips), "provenance": CARD | provenance}
    requests = [Request(i, i, "prompt") for i in range(len(clips))]
    write_report(folder, report, prediction_lines(clips, requests, outputs, None))
    return report


def cells(page: str, first: str) -> list[str]:
    """The row of a page's table that begins with `first`."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_scores_difference_and_whether_it_may_be_chance(tmp_path):
    counts = [i % 4 for i in range(40)]
    evaluated(ASR, wrong_words([count + 1 for count in counts]), tmp_path / "a")
    evaluated(ASR, wrong_words(counts), tmp_path / "b")
    page = compare(tmp_path / "a", tmp_path / "b/report.json")
    # one word in five better in every clip: so in every resample
    expected = ["asr", "WER", "40", "50.00 %", "30.00 %", "-20.00 %", "-20.00 % to -20.00 %", "yes"]
    assert cells(page, "asr") == expected


def test_a_difference_of_few_clips_may_be_chance(tmp_path):
    evaluated(ASR, wrong_words([0] * 39 + [1]), tmp_path / "a")
    evaluated(ASR, wrong_words([0] * 38 + [1, 2]), tmp_path / "b")
    row = cells(compare(tmp_path / "a", tmp_path / "b"), "asr")
    assert row[5] == "+1.00 %"
    assert row[-1] == "no"


def test_equal_results_differ_by_nothing(tmp_path):
    for side in "ab":
        evaluated(ASR, wrong_words([i % 3 for i in range(40)]), tmp_path / side)
    page = compare(tmp_path / "a", tmp_path / "b")
    assert cells(page, "asr")[5:] == ["+0.00 %", "+0.00 % to +0.00 %", "no"]
    assert page.endswith("## What differs\n\nNothing of what the results are known to depend on.")


def test_the_paired_interval_is_narrower_than_of_independent_sets_and_holds_the_truth_95_times_of_100():
    rng, metric, held = np.random.default_rng(5), METRICS["exact"], 0
    widths = np.zeros(2)
    for _ in range(100):
        hard = rng.random(120)  # of a clip, for both models
        first, second = (np.stack([hard < share, np.ones(120)], axis=1) for share in (0.6, 0.7))
        second[:, 0] = np.where(rng.random(120) < 0.05, 1 - second[:, 0], second[:, 0])
        truth = (0.7 * 0.95 + 0.3 * 0.05) - 0.6
        means = (first[:, 0].mean(), second[:, 0].mean())
        low, high = paired_interval_of(metric, first, second, means)
        held += low <= truth <= high
        alone = [np.ptp(interval_of(metric, side)) for side in (first, second)]
        widths += high - low, np.hypot(*alone)
    assert 89 <= held <= 99
    assert widths[0] < 0.7 * widths[1]


def test_a_score_of_the_set_that_is_no_sum_over_clips_shifts_the_interval(tmp_path, monkeypatch):
    words = Metric(
        "words",
        lambda texts: [(len(set(output.split())), 1) for output in texts.outputs],
        percent=False,
        corpus=lambda texts: float(len({word for output in texts.outputs for word in output.split()})),
    )
    monkeypatch.setitem(METRICS, "words", words)
    task = replace(ASR, metrics=["words"])
    for side, texts in (("a", ["a b", "a c", "a"]), ("b", ["a b", "c d", "e f"])):
        evaluated(task, texts, tmp_path / side)
    row = cells(compare(tmp_path / "a", tmp_path / "b"), "asr")
    # of clips: 2 - 5/3 = 1/3, and 0 to 1 in resamples; of the sets: 6 - 3 = 3, so 8/3 more
    assert row[3:7] == ["3.00", "6.00", "+3.00", "+2.67 to +3.67"]


def test_what_the_results_depend_on_is_told_where_it_differs(tmp_path):
    answers = wrong_words([0] * 5)
    evaluated(ASR, answers, tmp_path / "a", checkpoint_sha256="c" * 64)
    evaluated(replace(ASR, prompt="asr_de"), answers, tmp_path / "b", generate={"num_beams": 1}, added=None)
    page = compare(tmp_path / "a", tmp_path / "b")
    found = [line.strip("|").split("|") for line in page.split("## What differs")[1].splitlines()[4:]]
    assert [[cell.strip() for cell in row] for row in found] == [
        ["generate.num_beams", "4", "1", "all"],
        ["checkpoint_sha256", "c" * 12, "(absent)", "all"],
        ["scoring.prompt", '""', "asr_de", "all"],
        ["added", "(absent)", "null", "all"],
    ]


@pytest.fixture
def tables(tmp_path) -> tuple[Path, Path]:
    """Two results of table3: asr in both, qa in both but with unreadable clips in B, er and story in one each."""
    for side, extra, unread in (("a", "er", 0), ("b", "story", 2)):
        folder = tmp_path / side / "table3"
        answered = [
            (ASR, wrong_words([0, 1, 2])),
            (QA, [*TEXTS[: 5 - unread], *[None] * unread]),
            (replace(QA, name=extra), TEXTS[:2]),
        ]
        reports = {task.name: evaluated(task, answers, folder / task.name) for task, answers in answered}
        write_overview(folder, [*(task for task, _ in answered), replace(QA, name="absent")], reports)
    return tmp_path / "a/table3", tmp_path / "b/table3"


def test_of_many_tasks_what_can_be_compared_is_and_the_rest_is_named(tables):
    page = compare(*tables)
    assert cells(page, "asr")[5] == "+0.00 %"
    apart = page.split("## Not compared\n\n")[1].split("\n\n")[0].splitlines()
    assert apart[0].startswith("- qa: B heard 3 of 5 clips, so its scores are of another set; mend")
    assert apart[1:] == ["- er: only in A", "- story: only in B"]
    assert "absent" not in page


def test_a_result_of_one_task_compares_with_the_same_task_of_many(tables):
    assert cells(compare(tables[0], tables[1] / "asr"), "asr")[1] == "WER"


def test_the_overview_does_not_repeat_the_numbers_per_clip(tables):
    overview = json.loads((tables[0] / "report.json").read_text())
    assert all(report is None or "statistics" not in report for report in overview.values())
    statistics = json.loads((tables[0] / "asr/statistics.json").read_text())
    assert statistics == {"wer": {"score": 0.2, "rows": [0, 1, 2], "values": [[0, 5], [1, 5], [2, 5]]}}


def test_rows_are_positions_in_the_set(tmp_path):
    evaluated(ASR, ["one", None, "one"], tmp_path, texts=["one", "one", "<MUSIC>"])
    assert json.loads((tmp_path / "statistics.json").read_text())["wer"]["rows"] == [0]
    evaluated(ASR, [None, "one", "one"], tmp_path, texts=["one", "<MUSIC>", "one"])
    assert json.loads((tmp_path / "statistics.json").read_text())["wer"]["rows"] == [2]


def test_a_metric_without_a_score_is_named_and_the_others_are_compared(tmp_path):
    task = replace(ASR, metrics=["repeat_rate", "wer"])
    evaluated(task, ["too short"], tmp_path / "a")
    evaluated(task, ["one two three four five"], tmp_path / "b")
    page = compare(tmp_path / "a", tmp_path / "b")
    assert cells(page, "asr")[1:3] == ["WER", "1"]
    assert cells(page, "asr")[-2:] == ["-", "-"]  # one clip tells nothing of how clips vary
    assert "- asr: repeat rate (4 words) has no score in A: there is nothing to count" in page


GOOD = wrong_words([0, 1, 2])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"annotation_sha256": "b" * 64}, "annotation files .* differ: aaaaaaaaaaaa in A, bbbbbbbbbbbb in B; evaluate"),
        ({"answers": GOOD[:2]}, "numbers of clips differ: 3 in A, 2 in B"),
        ({"answers": [*GOOD[:2], None]}, "B heard 2 of 3 clips"),
        ({"task": replace(ASR, metrics=["per"])}, "metrics differ: wer = WER in A, per = PER in B"),
        ({"task": replace(ASR, normaliser="plain")}, "normalisers differ: words in A, plain in B"),
        ({"texts": ["other", *TEXTS[1:]]}, "normalised references differ between A and B"),
        ({"task": replace(ASR, metrics=[])}, "B has no scores; nothing to compare"),
        ({"task": replace(ASR, name="aac")}, r"no task is in both.*\n  asr: only in A\n  aac: only in B"),
    ],
)
def test_results_of_different_sets_or_scoring_are_refused(tmp_path, changed, told):
    evaluated(ASR, GOOD, tmp_path / "a")
    evaluated(**{"task": ASR, "answers": GOOD, "folder": tmp_path / "b", **changed})
    with pytest.raises(UserError, match=told):
        compare(tmp_path / "a", tmp_path / "b")


def test_the_same_normaliser_without_its_helper_is_another_one(tmp_path, monkeypatch):
    """PTB's tokenizer needs Java; where it is absent captions are cut by simpler rules."""
    task = replace(ASR, normaliser="caption")

    def absent(_: list[str]) -> list[str]:
        raise UnavailableError("no Java")

    monkeypatch.setattr("salmonn.evaluation.metrics.captions.ptb_tokens", absent)
    evaluated(task, GOOD, tmp_path / "a")
    monkeypatch.setattr("salmonn.evaluation.metrics.captions.ptb_tokens", lambda texts: [f"{t} ." for t in texts])
    evaluated(task, GOOD, tmp_path / "b")
    with pytest.raises(UserError, match=r"normalised references differ: Caption tokens: lower .* in A, .*PTB.* in B"):
        compare(tmp_path / "a", tmp_path / "b")


def damage(folder: Path, how: str) -> None:
    report = json.loads((folder / "report.json").read_text())
    if how == "of another run":
        report["scores"]["wer"] = 0.5
    elif how == "older":
        del report["scoring"]
    elif how == "unknown metric":
        report["scoring"]["metrics"] = {"charm": "charm"}
    (folder / "report.json").write_text(json.dumps(report))
    if how == "no statistics":
        (folder / "statistics.json").unlink()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("of another run", r"asr: B: .*b/statistics\.json is of another run than the report; run evaluate\.py again"),
        ("older", r"asr: B was written before results could be compared; run evaluate\.py again"),
        ("unknown metric", "asr: B has metrics that this code does not know: charm"),
        ("no statistics", r"asr: B: .*b/statistics\.json cannot be read: .*No such file"),
    ],
)
def test_a_result_that_is_not_whole_is_refused(tmp_path, how, told):
    for side in "ab":
        evaluated(ASR, GOOD, tmp_path / side)
    damage(tmp_path / "b", how)
    with pytest.raises(UserError, match=told):
        compare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("side", "ab")
@pytest.mark.parametrize(
    ("file", "metric", "key", "value"),
    [
        ("statistics", "wer", "values", 3), ("statistics", "wer", "values", [[1]]), ("statistics", "wer", "rows", None),
        ("statistics", "wer", "values", "x"), ("statistics", "", "wer", 3), ("report", "", "scores", True),
        ("report", "", "provenance", 3), ("report", "scoring", "metrics", [3]), ("report", "", "finished", {}),
    ],
)  # fmt: skip
def test_damage_within_a_result_is_told(tmp_path, side, file, metric, key, value):
    for name in "ab":
        evaluated(ASR, GOOD, tmp_path / name)
    path = tmp_path / side / f"{file}.json"
    content = json.loads(path.read_text())
    (content[metric] if metric else content)[key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"evaluate\.py"):
        compare(tmp_path / "a", tmp_path / "b")


def test_values_of_clips_that_do_not_make_the_score_are_damaged(tmp_path):
    for name in "ab":
        evaluated(ASR, GOOD, tmp_path / name)
    path = tmp_path / "b/statistics.json"
    content = json.loads(path.read_text())
    content["wer"]["values"][0][0] += 4
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged.*are not those of the score"):
        compare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"B: .*report\.json cannot be read: No such file or directory; give a result folder"),
        ("# page", r"B: .*report\.json is not valid JSON"),
        ('{"wer": 0.1}', r"B: .*report\.json is not a report of evaluate\.py"),
        ("[]", "is not a report"),
        ('{"asr": null}', "has no evaluated task"),
    ],
)
def test_something_else_than_a_result_is_refused(tmp_path, content, told):
    evaluated(ASR, GOOD, tmp_path / "a")
    (tmp_path / "b").mkdir()
    if content is not None:
        (tmp_path / "b/report.json").write_text(content)
    with pytest.raises(UserError, match=told):
        compare(tmp_path / "a", tmp_path / "b")


def test_comparing_loads_no_torch():
    code = "import sys, salmonn.evaluation.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
