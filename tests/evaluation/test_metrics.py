"""What all metrics share: subsets, the bootstrap, and what the report tells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from salmonn.config.schema import DatasetsConfig
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.judge.judging import JudgeReply
from salmonn.evaluation.metrics import METRICS, Metric, Texts, measure
from salmonn.evaluation.metrics.base import interval_of
from salmonn.evaluation.metrics.choices import Pick
from salmonn.evaluation.normalisers import each, normaliser
from salmonn.evaluation.report.task_report import build_report, page_parts
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.scoring import score
from salmonn.evaluation.tasks import task_of_mode

ASR = task_of_mode("valid_asr", OmegaConf.structured(DatasetsConfig))
AAC = task_of_mode("valid_aac", OmegaConf.structured(DatasetsConfig))
AS_IS = each(str)
FOLDER = str(Path(__file__).parent)  # stands for a Whisper folder without a spelling mapping


def clips(*references: tuple[str, ...]) -> list[EvalExample]:
    return [EvalExample(i, str(i), f"{i}.wav", "asr", "", texts) for i, texts in enumerate(references)]


def answers(*texts: str) -> dict[int, Prediction]:
    return {i: Prediction(text, len(text.split()), True) for i, text in enumerate(texts)}


def page(task, given: list[EvalExample], outputs: dict[int, Prediction]) -> tuple[dict, str]:
    report = build_report(task, given, outputs, None, FOLDER)
    report |= {"entries": len(given), "annotation": "a.json", "seconds": 1.0}
    return report, "\n\n".join(page_parts(report, []))


def test_the_interval_holds_the_true_value_95_times_of_100():
    rng = np.random.default_rng(3)
    metric, truth, held = METRICS["exact"], 0.7, 0
    for _ in range(200):
        right = rng.random(150) < truth
        low, high = interval_of(metric, np.stack([right, np.ones(150)], axis=1))
        held += low <= truth <= high
    assert 180 <= held <= 198


def test_the_interval_is_the_same_every_time_and_narrows_with_the_set():
    statistics = np.array([[1, 4], [0, 5], [2, 3], [0, 9]], dtype=float)
    metric = METRICS["wer"]
    low, high = interval_of(metric, statistics)
    assert [low, high] == interval_of(metric, statistics)
    assert 0 <= low < 3 / 21 < high <= 2 / 3
    narrow = interval_of(metric, np.tile(statistics, (25, 1)))
    assert low < narrow[0] < narrow[1] < high


def test_one_clip_has_no_interval_and_equal_clips_have_none_to_speak_of():
    assert interval_of(METRICS["wer"], np.array([[1.0, 2.0]])) is None
    assert interval_of(METRICS["wer"], np.array([[1.0, 2.0]] * 9)) == [0.5, 0.5]


def test_scores_over_all_and_over_finished_answers():
    outputs = {
        0: Prediction("a b", 2, True),
        1: Prediction("a b c d", 4, False),
        2: Prediction(unreadable="no such file"),
    }
    scores = score(ASR, clips(("a b",), ("a x",), ("gone",)), outputs, AS_IS)
    assert scores.all == {"wer": pytest.approx(3 / 4)}
    assert scores.finished == {"wer": 0.0}
    assert scores.empty_references == 0


def test_no_finished_answer_is_no_score():
    scores = score(ASR, clips(("a b",)), {0: Prediction("a b", 2, False)}, AS_IS)
    assert (scores.all, scores.finished) == ({"wer": 0.0}, {"wer": None})


def test_clips_without_speech_are_counted_and_left_out():
    normalise, *_ = normaliser("gigaspeech", FOLDER)
    scores = score(ASR, clips(("<MUSIC>",), ("HI <COMMA> YOU",)), answers("la la", "hi"), normalise)
    assert (scores.empty_references, scores.words_without_reference, scores.all["wer"]) == (1, 2, 0.5)


def test_following_compares_with_the_normalised_spoken_question():
    given = [replace(clip, spoken="Which COLOUR?") for clip in clips(("red",), ("red",))] + clips(("blue",))
    task = replace(ASR, metrics=("following", "wer"))
    normalise, *_ = normaliser("english", FOLDER)
    scores = score(task, given, answers("which colour", "Red.", "blue"), normalise)
    assert (scores.all["following"], scores.clips) == (0.5, {"following": 2, "wer": 3})


def test_a_score_of_nothing_says_so():
    task = replace(ASR, metrics=("repeat_rate",))
    report, text = page(task, clips(("x",)), answers("too short"))
    assert report["scores"] == {"repeat_rate": None}
    assert "repeat rate (4 words) has no score: there is nothing to count" in text


def test_a_set_of_clips_without_speech_has_no_score_and_says_why():
    report, text = page(ASR, clips(("<MUSIC>",)), answers("la"))
    assert report["scores"] == {"wer": None}
    assert "no score" in text
    assert "WER has no score: no clip that could be heard has a reference." in text
    assert "answered with 1 words" in text


def test_a_metric_that_cannot_be_computed_says_why_and_the_others_are_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("AAC_METRICS_CACHE_PATH", str(tmp_path))
    task = replace(AAC, metrics=("meteor", "spider", "rouge_l", "cider_d"))
    report, text = page(task, clips(("a dog barks",), ("rain falls",)), answers("a dog barks", "rain"))
    assert report["scores"]["meteor"] is report["scores"]["spider"] is None
    assert report["scores"]["rouge_l"] > 0.5
    assert report["scores"]["cider_d"] > 1
    assert set(report["unavailable"]) == {"meteor", "spider"}
    assert "METEOR and SPIDEr have no score, for the same reason." in text
    assert text.count("aac-metrics-download") == 1  # with the tokenizer, which is told first
    assert str(tmp_path) not in text


def test_the_report_shows_interval_confusion_and_rates():
    task = replace(ASR, metrics=("accuracy_sv",))
    report, text = page(task, clips(("yes",), ("no",), ("no",)), answers("Yes.", "No", "Yes"))
    low, high = report["intervals"]["accuracy_sv"]
    assert low < report["scores"]["accuracy_sv"] < high
    assert f"| 66.67 % | {100 * low:.2f} % to {100 * high:.2f} %" in text
    assert "## Confusion: yes/no accuracy" in text
    assert "| no                 | 1   | 1  | 0    |" in text
    assert "no: 50.0 % right, 33.3 % of the answers" in text


def test_a_metric_of_ones_own_is_one_more_entry(monkeypatch):
    lengths = Metric(
        "words", lambda texts: [(len(o.split()), 1) for o in texts.outputs], needs="outputs", percent=False
    )
    monkeypatch.setitem(METRICS, "words", lengths)
    task = replace(ASR, metrics=("words",))
    assert score(task, clips(("x",), ("y",)), answers("a b", "c d e f"), AS_IS).all == {"words": 3.0}


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("meteor", "spice", "spider", "fense")])
def test_every_metric_gives_one_row_of_statistics_per_clip(name: str):
    texts = Texts(
        ["yes happy woman here", "no", ""], [["yes happy woman"], ["no sad man"], ["a b"]], ["x y", "z", "no"]
    )
    texts = replace(
        texts, replies=[JudgeReply(str(i), correct, "", "j") for i, correct in enumerate((True, False, None))]
    )
    picks = [Pick(n_options=2, right=0, named=named, likeliest=1, places=(1, 0)) for named in (0, 1, None)]
    texts = replace(texts, picks=picks)
    assert np.asarray(METRICS[name].statistics(texts)).shape[0] == 3
    assert measure(METRICS[name], texts, [True, True, False]).value is not None
