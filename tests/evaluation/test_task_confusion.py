"""Answers in another task's form are found, ordinary ones are left alone, and the score without them is told."""

from pathlib import Path

import pytest

from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.task_confusion import confusion_notes, form_of
from tests.fixtures.eval_set_files import TRANSCRIPTS
from tests.fixtures.stub_model import config_for, entry, results

SAID = ["he began a confused complaint against the wizard"]


@pytest.mark.parametrize(
    ("answer", "references", "form"),
    [
        ("HH IY B IH G AE N AH", SAID, "phonemes"),
        ("hh iy0 b ih0 g ae1 n", SAID, "phonemes"),
        ("SIL HH IY B IH G AE N SIL he", SAID, "phonemes"),
        ("G UH D.", ["good"], "phonemes"),
        ("Yes.", SAID, "yes or no"),
        ("A man is speaking while birds chirp in the background.", SAID, "a caption"),
        ("The audio contains a speech by a man", SAID, "a caption"),
        ("他开始抱怨", SAID, "Chinese, Japanese or Korean"),
        ("He began", ["他开始抱怨"], "another script than Chinese, Japanese or Korean"),
        ("Write down what is said: write down what is said", SAID, "the instruction repeated"),
    ],
)
def test_an_answer_in_another_tasks_form_is_found(answer, references, form):
    assert form_of(answer, references, "asr", "Write down what is said.") == form


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (SAID[0], SAID),
        ("she began a fused complaint", SAID),  # only wrong
        ("", SAID),
        ("uh uh ah er", ["uh ah"]),
        ("I am a b", ["i am a bee"]),
        ("no more of that", SAID),
        ("No", ["no, never"]),
        ("yes", ["yes"]),
        ("HH IY B", ["HH IY P"]),
        ("a dog barks while birds chirp in the background", ["A dog is barking loudly while rain falls"]),
        ("the man was speaking of his house", SAID),
        ("BBC 红狗", ["红狗"]),
        ("write it", ["right it"]),
        ("anything", []),
        *((line.partition(" ")[2], SAID) for text in TRANSCRIPTS.values() for line in text.splitlines()),
    ],
)
def test_an_ordinary_answer_is_left_alone(answer, references):
    assert form_of(answer, references, "asr", "Write it.") == ""


def test_a_caption_is_what_captioning_asks_for():
    answer, references = "A man speaks while birds chirp in the background", ["Birds"]
    assert form_of(answer, references, "audiocaption") == ""
    assert form_of("HH IY B IH G AE N", references, "audiocaption") == "phonemes"


def test_shares_examples_and_the_score_without_them_are_told():
    clips = [EvalExample(i, f"c{i}", "x", "asr", "", ("a b",)) for i in range(4)]
    predictions = {i: Prediction(text="a b", finished=True) for i in range(3)} | {3: Prediction(text="HH IY B")}
    statistics = {"wer": {"rows": [0, 1, 2, 3], "values": [[1, 2], [0, 2], [0, 2], [3, 2]]}}
    told, without = confusion_notes({3: "phonemes"}, clips, predictions, statistics)
    assert told == ("Task confusion: 1 of 4 answers (25.00 %) are in another task's form, phonemes: c3 ('HH IY B').")
    assert without == "Without the answers in another task's form: WER 16.67 %."
    assert confusion_notes({}, clips, predictions, statistics) == []


@pytest.mark.usefixtures("stub_model")
def test_the_report_of_a_set_tells_it(stub_world: Path):
    from salmonn.evaluation.pipeline import evaluate

    entries = [entry(2, text="蓝狗", testset_id="a"), entry(3, text="green dog", testset_id="b")]
    evaluate(config_for(stub_world, entries), "valid_asr")
    report, _ = results(stub_world, "valid_asr")
    assert report["other_forms"] == {"a": "another script than Chinese, Japanese or Korean"}
    assert any(note.startswith("Task confusion: 1 of 2 answers") for note in report["notes"])
