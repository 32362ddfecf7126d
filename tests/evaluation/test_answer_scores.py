"""Short answers and stories, counted by hand."""

import pytest

from salmonn.evaluation.metrics import METRICS, Texts, UnavailableError, measure
from salmonn.evaluation.normalisers import keywords


def measured(name: str, outputs: list[str], references: list[str] | None = None, finished: bool = True):
    pairs = [[reference] for reference in references] if references else [[] for _ in outputs]
    return measure(METRICS[name], Texts(outputs, pairs), [finished] * len(outputs))


def test_exact_match_accepts_any_reference():
    texts = Texts(["a dog", "a cat", "x"], [["b", "a dog"], ["a dog"], []])
    result = measure(METRICS["exact"], texts, [True] * 3)
    assert (result.value, result.clips) == (0.5, 2)


def test_an_answer_is_contained_as_whole_words_only():
    outputs = ["it is a red dog", "it is redder", "the dog is red", "a dog that is red"]
    assert measured("contains", outputs, ["red dog", "red", "red", "red dog"]).value == 0.5


def test_emotions_are_four_classes_with_a_confusion_matrix():
    outputs = ["happy", "the speaker is sad", "angry or sad", "excited", "happy", "neutral", "i do not know"]
    references = ["happy", "sad", "angry", "happy", "frustrated", "angry", "exc"]
    result = measured("accuracy_er", outputs, references)
    assert result.value == pytest.approx(3 / 6)  # frustrated is none of the four and skipped
    assert result.details["classes"] == ["angry", "happy", "neutral", "sad"]
    # rows angry, happy, neutral, sad; last column: no class, or more than one
    assert result.details["confusion"] == [[0, 0, 1, 0, 1], [0, 2, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert result.details["skipped"] == 1
    assert result.details["recall"] == {"angry": 0, "happy": pytest.approx(2 / 3), "neutral": None, "sad": 1}


def test_the_verification_tells_both_classes_and_how_often_it_says_yes():
    result = measured("accuracy_sv", ["yes", "yes they are", "yes", "no"], ["yes", "yes", "no", "no"])
    assert result.value == 0.75
    assert result.details["recall"] == {"yes": 1.0, "no": 0.5}
    assert result.details["answer_rate"] == {"yes": 0.75, "no": 0.25, "none": 0}
    assert "yes: 100.0 % right, 75.0 % of the answers" in result.details["note"]


def test_a_woman_is_no_man():
    assert measured("accuracy_gr", ["woman", "male", "a female"], ["woman", "woman", "female"]).value == pytest.approx(
        2 / 3
    )


def test_no_clip_of_a_known_class_is_no_score():
    assert measured("accuracy_er", ["happy"], ["surprised"]).value is None


def test_keywords_are_three_different_ones_among_the_references():
    normalise = keywords({})
    outputs = ["Keywords: Neural nets, dogs, dogs, cats, mice", "1. Dogs\n2. rain", "dogs", ""]
    references = ["neural nets; cats; mice", "dogs, rain, wind, fog", "dogs", "dogs, rain, wind"]
    # neural nets and cats of (neural nets, dogs, cats); 2 of 3 named; the only one; none of three
    result = measured("keywords", [normalise(text) for text in outputs], [normalise(text) for text in references])
    assert result.value == pytest.approx((2 + 2 + 1 + 0) / (3 + 3 + 1 + 3))


def test_stories_by_their_words():
    story = "the dog ran and the dog ran and the dog slept"  # 5 different words
    long_story = " ".join(f"word{i}" for i in range(50))
    assert measured("diversity", [story, long_story]).value == (5 + 50) / 2
    assert measured("following_story", [story, long_story, ""]).value == pytest.approx(1 / 3)
    # 8 runs of four words: the dog ran and | dog ran and the | ran and the dog | and the dog ran; again the
    # first three; the last one ends in slept: 5 different. One without repeats, one too short to count.
    assert measured("repeat_rate", [story, long_story, "a b"]).value == pytest.approx((3 / 8 + 0) / 2)


def test_a_set_without_what_a_metric_needs_has_no_score():
    with pytest.raises(UnavailableError, match="has a reference"):
        measured("exact", ["x"])
    with pytest.raises(UnavailableError, match="spoken"):
        measured("following", ["x"], ["y"])
