"""Scores against values counted by hand, and against the libraries' own examples."""

import math

import pytest

from salmonn.evaluation.jobs import Output
from salmonn.evaluation.metrics import (
    METRICS,
    caption_normaliser,
    cider_d,
    english_normaliser,
    exact_matches,
    rouge_l,
    total,
    word_errors,
)
from salmonn.evaluation.scoring import normaliser_for, score
from salmonn.evaluation.tasks import MODES, Clip


def clips(*references: tuple[str, ...]) -> list[Clip]:
    return [Clip(i, str(i), f"{i}.wav", "asr", "", texts) for i, texts in enumerate(references)]


def test_word_errors_are_substitutions_deletions_and_insertions():
    outputs = ["the red cat runs", "the dog", "the red dog runs now"]
    assert word_errors(outputs, [["the red dog runs"]] * 3) == [(1, 4), (2, 4), (1, 4)]


def test_wer_is_over_the_corpus_and_not_the_mean_of_clips():
    # 1 of 1 word wrong and 0 of 9 wrong: 10 % of the words, although the clips' mean is 50 %
    parts = word_errors(["no", "a b c d e f g h i"], [["yes"], ["a b c d e f g h i"]])
    assert total(parts) == pytest.approx(0.1)


def test_an_empty_reference_adds_insertions_and_no_words():
    assert word_errors(["two words", ""], [[""], ["", " "]]) == [(2, 0), (0, 0)]
    assert total([(2, 0), (0, 0)]) is None
    assert total([(2, 0), (1, 3)]) == pytest.approx(1.0)


def test_the_reference_that_fits_best_counts():
    assert word_errors(["a b c"], [["a b", "a b c d", ""]]) == [(1, 4)]


def test_english_normaliser_evens_out_case_punctuation_contractions_and_numbers():
    normalise = english_normaliser({"colour": "color"})
    assert normalise("Hello, Mr. Smith! It's twenty-three degrees.") == "hello mister smith it is 23 degrees"
    assert normalise("the COLOUR") == normalise("the color")
    assert normalise("<COMMA> [noise] (uh)") == ""


def test_caption_normaliser_keeps_words_and_drops_punctuation():
    assert caption_normaliser("A dog's bark, two-tone -- it isn't “loud”!") == "a dog 's bark two-tone it is n't loud"
    assert caption_normaliser(" 'Rain' (heavy);\nwind ") == "rain heavy wind"


def test_exact_match_accepts_any_reference():
    assert exact_matches(["a dog", "a cat", "x"], [["b", "a dog"], ["a dog"], [""]]) == [(1, 1), (0, 1), (0, 0)]


def test_rouge_l_equals_the_formula():
    # "a dog barks" against "a big dog": LCS 2, precision 2/3, recall 2/3, so F = 2/3 for every beta
    # "a dog" against "a dog barks": precision 1, recall 2/3, F = (1 + 1.44) * 2/3 / (2/3 + 1.44)
    parts = rouge_l(["a dog barks", "a dog", ""], [["a big dog"], ["a dog barks"], ["a siren"]])
    expected = [2 / 3, 2.44 * (2 / 3) / (2 / 3 + 1.44), 0.0]
    assert [value for value, _ in parts] == pytest.approx(expected)


def test_cider_d_equals_the_formula():
    # Two clips, every word in the references of one: all weigh ln 2. Identical captions of three
    # words have cosine 1 for 1-, 2- and 3-grams and no 4-grams: 10 * 3/4. One word of two right:
    # cosine 1/2 for 1-grams, 0 for the others: 10 * (1/2) / 4.
    parts = cider_d(["rain falls hard", "a dog"], [["rain falls hard"], ["a cat"]])
    assert [value for value, _ in parts] == pytest.approx([7.5, 1.25])
    parts = cider_d(["a b c d", "x y"], [["a b c d"], ["x z z z z z"]])
    # 1-grams: min(1, 1) / (sqrt(2) * sqrt(1 + 25)); lengths in 2-grams 1 and 5: exp(-16 / 72)
    unigrams = math.exp(-16 / 72) / (math.sqrt(2) * math.sqrt(26))
    assert [value for value, _ in parts] == pytest.approx([10.0, 10 * unigrams / 4])


def test_cider_d_of_a_single_clip_is_not_defined():
    assert total(cider_d(["a dog"], [["a dog"]])) is None


def test_clips_without_a_caption_reference_stay_out_of_the_mean():
    for metric in ("cider_d", "rouge_l", "exact"):
        outputs, references = ["rain falls", "noise", "a dog"], [["rain falls"], [""], ["a dog"]]
        with_empty = METRICS[metric].parts(outputs, references)
        assert with_empty[1] == (0.0, 0.0)
        assert total(with_empty) == total(METRICS[metric].parts(outputs[::2], references[::2]))


def test_scores_over_all_and_over_finished_answers():
    outputs = {0: Output("a b", 2, True), 1: Output("a b c d", 4, False), 2: Output(unreadable="no such file")}
    scores = score(MODES["valid_asr"], clips(("a b",), ("a x",), ("gone",)), outputs, str)
    assert scores.all == {"wer": pytest.approx(3 / 4)}
    assert scores.finished == {"wer": 0.0}
    assert scores.empty_references == 0


def test_references_empty_after_normalisation_are_counted():
    normalise = english_normaliser({})
    scores = score(
        MODES["valid_asr"],
        clips(("<MUSIC>",), ("Hi!",)),
        {0: Output("la", 1, True), 1: Output("hi", 1, True)},
        normalise,
    )
    assert (scores.empty_references, scores.all["wer"]) == (1, 1.0)


def test_the_spelling_mapping_comes_from_the_whisper_folder(tmp_path):
    plain, note = normaliser_for(MODES["valid_asr"], str(tmp_path))
    assert plain("colour") == "colour"
    assert "without spelling mapping" in note
    (tmp_path / "normalizer.json").write_text('{"colour": "color"}')
    mapped, note = normaliser_for(MODES["valid_asr"], str(tmp_path))
    assert mapped("colour") == "color"
    assert "1 words" in note
