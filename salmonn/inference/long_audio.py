"""Audio longer than the model hears: cut into windows, each answered by itself, the answers put together.

Cutting: a window is as long as the model hears. If there is a pause in its last `overlap` seconds, the
window ends there and the next one begins there: no word is cut. Else the window stays whole and the next
one begins `overlap` seconds before its end: a word that one of the two edges cuts is whole in the other.
Joining: see `join_transcripts` and, for answers that are no transcripts, `list_answers`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, takewhile

import numpy as np

from salmonn.audio.decode import SAMPLE_RATE

OVERLAP_SECONDS, OVERLAP_SHARE = 5.0, 0.75  # people pause that often; of a short window no more than this
PAUSE_SECONDS = 0.15  # at least, between sentences or phrases; closures within words are shorter
PAUSE_DB = 20.0  # below the mean power of the window
PAUSE_RANGE_DB = 3.0  # above the quietest stretch, in which a pause still counts
SILENCE_DB = 45.0  # below the mean power: what is quieter is not told apart
WORDS_PER_SECOND = 4.0  # of fast speech: no more words stand in an overlap, or in a window

_FRAME = SAMPLE_RATE // 100  # power is looked at every 10 ms
_NOT_IN_WORDS = re.compile(r"[^\w]|_")


@dataclass(frozen=True)
class Span:
    """What a window holds of a clip, and how much of it the window before holds, too; all in seconds."""

    start: float
    end: float
    overlap: float = 0.0


def default_overlap(seconds: float) -> float:
    """The overlap (s) of windows of `seconds` that is searched for a pause where nobody has said how long."""
    return min(OVERLAP_SECONDS, OVERLAP_SHARE * seconds)


def cut_windows(blocks: Iterable[np.ndarray], seconds: float, overlap: float) -> Iterator[tuple[Span, np.ndarray]]:
    """Cut a stream of samples [N] into windows of at most `seconds` that together hold every sample.

    `overlap` (s, less than `seconds`) is searched for a pause, or repeated. No more than a window and a
    block is held in memory.
    """
    size, shared = round(seconds * SAMPLE_RATE), round(overlap * SAMPLE_RATE)
    held, start, repeated = np.zeros(0, dtype=np.float32), 0, 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > size:
            pause = find_pause(held[:size], size - shared)
            end, following = (size, size - shared) if pause is None else (pause, pause)
            yield _span(start, end, repeated), held[:end]
            held, start, repeated = held[following:], start + following, end - following
    yield _span(start, len(held), repeated), held


def find_pause(wav: np.ndarray, begin: int) -> int | None:
    """Where to cut wav [N] (a sample's index) in the first pause that lies behind sample `begin`; None without one.

    A pause is a stretch of PAUSE_SECONDS or more whose mean level lies PAUSE_DB below the power of the whole,
    and not more than PAUSE_RANGE_DB above the quietest such stretch: of like pauses the first, but no breath
    before a real one. Two thirds of it go to what follows, as a word's onset is softer than its end.
    """
    power = np.square(wav[: len(wav) // _FRAME * _FRAME].reshape(-1, _FRAME)).mean(1)  # [frames]
    first, width = math.ceil(begin / _FRAME), round(PAUSE_SECONDS * SAMPLE_RATE / _FRAME)
    if len(power) - first < width or not power.any():
        return None
    level = 10 * np.log10(np.maximum(power[first:] / power.mean(), 10 ** (-SILENCE_DB / 10)))  # dB
    stretch = np.convolve(level, np.ones(width) / width, "valid")  # mean level from each frame on
    if stretch.min() > -PAUSE_DB:
        return None
    quiet = stretch <= min(-PAUSE_DB, stretch.min() + PAUSE_RANGE_DB)
    start = int(quiet.argmax())
    n_quiet = int((~quiet[start:]).argmax()) or len(quiet) - start
    return (first + start + (n_quiet - 1 + width) // 3) * _FRAME


def join_transcripts(texts: Sequence[str], spans: Sequence[Span]) -> str:
    """One transcript of the transcripts of windows.

    A transcript with more words than fast speech has in its window ends in a loop, and is cut there.
    Where two windows overlap, the last words of the one text are compared with the first of the other, as
    many as fast speech has in the overlap, without case and punctuation. Of the runs of words that stand
    in both, the one counts with most words, where a word that it leaves out weighs against it by half: after
    it in the first text and before it in the second, where the edges cut words. It is kept once, as the
    first text writes it. If each run leaves out more than twice its words, nothing was recognised twice:
    the texts follow each other whole, as they do where windows meet in a pause.
    """
    joined: list[str] = []
    for text, span in zip(texts, spans, strict=True):
        words = text.split()[: math.ceil((span.end - span.start) * WORDS_PER_SECOND)]
        at_most = math.ceil(span.overlap * WORDS_PER_SECOND)
        tail = joined[max(0, len(joined) - at_most) :]
        n_kept, n_known = best_run([_plain(word) for word in tail], [_plain(word) for word in words[:at_most]])
        joined = joined[: len(joined) - len(tail) + n_kept] + words[n_known:]
    return " ".join(joined)


def best_run(tail: Sequence[str], head: Sequence[str]) -> tuple[int, int]:
    """(words of `tail` to keep, words of `head` to drop) by the run that both have, see `join_transcripts`."""
    best, n_kept, n_known = -1, len(tail), 0
    for i, j in product(range(len(tail)), range(len(head))):
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] != "", zip(tail[i:], head[j:], strict=False)))
        n_left_out = len(tail) - (i + n) + j
        if n and 2 * n - n_left_out > best:
            best, n_kept, n_known = 2 * n - n_left_out, i + n, j + n
    return n_kept, n_known


def list_answers(texts: Sequence[str], spans: Sequence[Span]) -> str:
    """A line per window: its time range and what was answered to it."""
    return "\n".join(f"[{clock(span.start)} - {clock(span.end)}] {t}" for t, span in zip(texts, spans, strict=True))


def clock(seconds: float) -> str:
    """75.26 as 1:15.3."""
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"


def _span(start: int, length: int, repeated: int) -> Span:
    """Samples to seconds."""
    return Span(start / SAMPLE_RATE, (start + length) / SAMPLE_RATE, repeated / SAMPLE_RATE)


def _plain(word: str) -> str:
    return _NOT_IN_WORDS.sub("", word).lower()
