"""Word and phone errors against jiwer's count and counts by hand."""

import random

import jiwer
import pytest

from salmonn.evaluation.metrics import METRICS, Texts, measure
from salmonn.evaluation.metrics.word_errors import following, separated_word_errors, word_errors
from salmonn.evaluation.normalisers import english, plain, sentences

WORDS = "the a red blue dog cat it's naïve 23 twenty-three Mr. colour über 红 é 1,000 uh $5 don't <COMMA>".split()


def texts(outputs: list[str], references: list[list[str]], spoken: list[str] | None = None) -> Texts:
    return Texts(outputs, references, spoken or [])


def generated_pairs(n: int) -> list[tuple[str, str]]:
    """(output, reference) with empty outputs, one word, repeats, long ones, everything wrong, odd spaces."""
    rng = random.Random(0)
    pairs = []
    for _ in range(n):
        reference = rng.choices(WORDS, k=rng.choice((1, 2, 5, 12, 60)))
        output = [word for word in reference if rng.random() > 0.1]
        for _ in range(rng.choice((0, 0, 1, 3))):
            output.insert(rng.randint(0, len(output)), rng.choice(WORDS))
        output = rng.choice((output, output, output, reference, [], output * 3, rng.choices(WORDS, k=4)))
        pairs.append((rng.choice((" ", "  ", "\t")).join(output), " ".join(reference)))
    return pairs


@pytest.mark.parametrize("normalise", [plain, english({"colour": "color"})])
def test_500_generated_pairs_count_as_by_jiwer(normalise):
    pairs = [(normalise(output), normalise(reference)) for output, reference in generated_pairs(500)]
    pairs = [(output, reference) for output, reference in pairs if reference]
    assert len(pairs) > 450
    outputs, references = [list(column) for column in zip(*pairs, strict=True)]
    assert "" in outputs
    for output, reference, counted in zip(
        outputs, references, word_errors(texts(outputs, [[r] for r in references])), strict=True
    ):
        by_jiwer = jiwer.process_words(reference, output)
        edits = by_jiwer.substitutions + by_jiwer.deletions + by_jiwer.insertions
        assert counted == (edits, by_jiwer.hits + by_jiwer.substitutions + by_jiwer.deletions)
    measured = measure(METRICS["wer"], texts(outputs, [[r] for r in references]), [True] * len(outputs))
    assert measured.value == jiwer.wer(references, outputs)


def test_word_errors_are_substitutions_deletions_and_insertions():
    outputs = ["the red cat runs", "the dog", "the red dog runs now"]
    assert word_errors(texts(outputs, [["the red dog runs"]] * 3)) == [(1, 4), (2, 4), (1, 4)]


def test_wer_is_over_the_corpus_and_not_the_mean_of_clips():
    # 1 of 1 word wrong and 0 of 9 wrong: 10 % of the words, although the clips' mean is 50 %
    given = texts(["no", "a b c d e f g h i"], [["yes"], ["a b c d e f g h i"]])
    assert measure(METRICS["wer"], given, [True, True]).value == pytest.approx(0.1)


def test_clips_with_an_empty_reference_are_left_out():
    measured = measure(METRICS["wer"], texts(["la la la", "a x"], [[], ["a b"]]), [True, True])
    assert (measured.value, measured.clips) == (0.5, 1)


def test_the_reference_that_fits_best_counts():
    assert word_errors(texts(["a b c"], [["a b", "a b c d"]])) == [(1, 4)]


@pytest.mark.parametrize(
    ("output", "edits", "other_number"),
    [
        ("red dog runs\nblue cat sits now", 0, 0),
        ("blue cat sits now\nred dog runs", 0, 0),
        ("blue cat sits\nred dog runs", 1, 0),
        ("red dog\nruns blue cat sits now", 2, 0),  # as many sentences: a word in the wrong one is two errors
        ("red dog runs", 4, 1),  # one sentence: the other one is deleted
        ("blue cat sits now red dog runs", 0, 1),  # only the line break is missing
        ("red dog runs\nblue cat\nsits now", 0, 1),
        ("red dog runs\nblue cat sits now\nred dog runs", 3, 1),  # the third sentence is inserted
        ("", 7, 1),
    ],
)
def test_separated_sentences_count_in_the_order_that_fits_best(output: str, edits: int, other_number: int):
    counted = separated_word_errors(texts([output], [["red dog runs\nblue cat sits now"]]))
    assert counted == [(edits, 7, other_number, 1)]


def test_outputs_with_another_number_of_sentences_are_told():
    normalise = sentences({})
    outputs = [normalise("Red dog!\n\n Blue cat."), normalise("Blue cat")]
    measured = measure(METRICS["wer_separated"], texts(outputs, [["blue cat\nred dog"]] * 2), [True] * 2)
    assert measured.value == pytest.approx(2 / 8)
    assert measured.details["other_number_of_sentences"] == 1
    assert "1 of 2 outputs" in measured.details["note"]


def test_an_answer_that_repeats_the_spoken_question_does_not_follow():
    spoken = "what is the colour of the red dog here now"  # ten words
    outputs = [spoken, "what is the colour of the red dog", "what is the colour of the dog", "red", ""]
    # 0, 2, 3, 9 and 10 edits of ten words: under 30 % is a transcription
    assert following(texts(outputs, [[]] * 5, [spoken] * 5)) == [(0, 1), (0, 1), (1, 1), (1, 1), (1, 1)]


def test_following_is_over_the_clips_whose_question_is_known():
    measured = measure(METRICS["following"], texts(["red", "x"], [["red"], ["y"]], ["which colour", ""]), [True] * 2)
    assert (measured.value, measured.clips) == (1.0, 1)
