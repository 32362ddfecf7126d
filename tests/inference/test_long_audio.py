"""Long audio: windows that hold every sample, cuts in pauses, transcripts joined where windows overlap."""

import numpy as np
import pytest
import soundfile

from salmonn.audio.decode import SAMPLE_RATE, AudioError, load_audio, stream_audio
from salmonn.inference.long_audio import (
    Span,
    clock,
    cut_windows,
    default_overlap,
    find_pause,
    join_transcripts,
    list_answers,
)


def noise(seconds: float, loudness: float = 0.1) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE))
    return (loudness * samples).astype(np.float32)


def join(*texts: str, overlap: float = 2.0) -> str:
    return join_transcripts(texts, [Span(0, 5), *[Span(3, 8, overlap)] * (len(texts) - 1)])


# ---- joining


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("the red dog runs near", "runs near the house", "the red dog runs near the house"),
        ("we saw the red dog", "dog and ran", "we saw the red dog and ran"),  # one word, on the edge of both
        ("the red dog, runs near.", "Runs near the house.", "the red dog, runs near. the house."),
        ("The Red DOG", "red dog runs", "The Red DOG runs"),
        ("the red dog runs nea", "og runs near the house", "the red dog runs near the house"),  # the edges cut words
        ("it don't matter at all", "matter at all, he said", "it don't matter at all he said"),
        ("one two", "one two", "one two"),
    ],
)
def test_what_two_windows_hear_is_written_once(first: str, second: str, whole: str):
    assert join(first, second) == whole


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("the red dog runs", "a blue bird sings"),
        ("the cat sat down and slept", "a bird and the fish swam"),  # a common word far from the edges proves nothing
        ("hello .", ". world"),  # punctuation alone is no word
        ("", "the red dog"),
        ("the red dog", ""),
    ],
)
def test_nothing_is_lost_where_nothing_was_heard_twice(first: str, second: str):
    assert join(first, second).split() == f"{first} {second}".split()


def test_the_longest_run_wins_over_a_shorter_one_nearer_to_the_edge():
    assert join("go to the big house to the", "the big house to the west") == "go to the big house to the west"


def test_windows_that_meet_in_a_pause_share_no_words():
    assert join("seven nine nine", "nine two", overlap=0.0) == "seven nine nine nine two"


def test_only_as_many_words_are_compared_as_the_overlap_can_hold():
    first = "again and again we " + "went " * 6
    assert join(first, "again and again it rained", overlap=1.0) == f"{first.strip()} again and again it rained"


def test_a_transcript_that_ends_in_a_loop_is_cut_to_what_can_be_said_in_its_window():
    assert join_transcripts(["six " * 200, "two"], [Span(0, 5), Span(5, 8)]) == "six " * 20 + "two"


def test_three_windows_are_joined_one_after_the_other():
    assert join("a b c d", "c d e f", "e f g h") == "a b c d e f g h"


def test_answers_other_than_transcripts_are_listed_with_their_times():
    listed = list_answers(["rain", "a bell"], [Span(0, 30), Span(25, 75.26, 5)])
    assert listed == "[0:00.0 - 0:30.0] rain\n[0:25.0 - 1:15.3] a bell"
    assert clock(3599.96) == "60:00.0"


# ---- windows


@pytest.mark.parametrize("overlap", [0.0, 0.8, 3.5])
@pytest.mark.parametrize("seconds", [0.5, 5.0, 5.001, 23.7])
def test_windows_hold_every_sample_in_order(seconds: float, overlap: float):
    wav = noise(seconds)
    wav[40_000:44_000] *= 0.001  # a pause, where there is room for it
    windows = list(cut_windows(np.array_split(wav, 7), 5.0, overlap))
    covered = 0
    for span, part in windows:
        start = round(span.start * SAMPLE_RATE)
        assert len(part) <= 5 * SAMPLE_RATE
        assert start == covered - round(span.overlap * SAMPLE_RATE)
        np.testing.assert_array_equal(part, wav[start : start + len(part)])
        covered = start + len(part)
        assert round(span.end * SAMPLE_RATE) == covered
    assert covered == len(wav)


def test_a_window_ends_in_a_pause_and_the_next_repeats_nothing():
    wav = np.concatenate([noise(3.4), noise(0.4, 1e-4), noise(4)])
    (first, _), (second, _) = cut_windows([wav], 5.0, 2.5)
    assert 3.4 < first.end < 3.8
    assert (second.start, second.overlap) == (first.end, 0.0)


@pytest.mark.parametrize(("window", "overlap"), [(30.0, 5.0), (12.0, 5.0), (5.0, 3.75), (1.0, 0.75)])
def test_pauses_are_looked_for_where_people_make_them_however_short_the_window(window: float, overlap: float):
    assert default_overlap(window) == overlap
    wav = np.concatenate([noise(2.9), noise(0.5, 1e-4), noise(3.3), noise(0.5, 1e-4), noise(3.4)])  # three sentences
    if window == 5.0:
        spans = [span for span, _ in cut_windows([wav], window, default_overlap(window))]
        assert [span.overlap for span in spans] == [0.0, 0.0, 0.0]
        assert 2.9 < spans[0].end < 3.4
        assert 6.7 < spans[1].end < 7.2


def test_without_a_pause_the_next_window_repeats_the_overlap():
    wav = np.concatenate([noise(1), noise(0.4, 1e-4), noise(6)])  # a pause, but before the part that is searched
    (first, _), (second, _), *_ = cut_windows([wav], 5.0, 2.5)
    assert (first.end, second.start, second.overlap) == (5.0, 2.5, 2.5)


def test_a_pause_is_long_and_quiet_and_of_equal_ones_the_first():
    def at(*parts: np.ndarray) -> float | None:
        found = find_pause(np.concatenate(parts), SAMPLE_RATE)
        return None if found is None else found / SAMPLE_RATE

    assert at(noise(2), noise(0.06, 1e-4), noise(1)) is None  # the closure of a p
    assert at(noise(2), noise(0.4, 0.02), noise(1)) is None  # 14 dB below the rest
    two = at(noise(2), noise(0.3, 1e-3), noise(1), noise(0.3, 0.9e-3), noise(1))  # 1 dB apart
    assert 2 < two < 2.3
    breath_first = at(noise(2), noise(0.3, 5e-3), noise(1), noise(0.3, 1e-4), noise(1))
    assert 3.3 < breath_first < 3.6


# ---- reading


@pytest.mark.parametrize(("rate", "suffix"), [(16_000, "wav"), (44_100, "flac"), (8_000, "wav")])
def test_a_stream_is_the_whole_file_as_load_audio_reads_it(tmp_path, rate: int, suffix: str):
    path = tmp_path / f"long.{suffix}"
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(70 * rate) / rate)
    soundfile.write(path, np.stack([tone, 0.1 * tone], axis=1), rate)
    blocks = list(stream_audio(path))
    assert max(map(len, blocks)) < 31 * SAMPLE_RATE  # never the whole in memory
    np.testing.assert_allclose(np.concatenate(blocks), load_audio(path, 100.0), atol=1e-5)
    mean = np.concatenate(list(stream_audio(path, "mean")))
    np.testing.assert_allclose(mean, load_audio(path, 100.0, "mean"), atol=1e-5)


def test_a_stream_of_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, noise(70), 16_000)
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(AudioError, match=r"long\.flac"):
        list(stream_audio(path))
