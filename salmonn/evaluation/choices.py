"""Multiple choice: how options are asked, in which orders, and which of them an answer names. No torch here.

The orders are the rotations of the sorted options: each option stands at each place once, and how a file orders them
changes nothing.
"""

import re
from collections.abc import Sequence

import numpy as np

from salmonn.evaluation.metrics.choices import LETTERS, Pick

MOST_OPTIONS = len(LETTERS)
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")  # letters of Chinese, Japanese and Korean

_LABELLED = re.compile(r"\(?([A-Z])[).:]\s*(.+)", re.DOTALL)  # an option with its letter in front
# A letter of an answer, and the words behind it, which may be none.
_LETTER_FIRST = re.compile(r"\(?([A-Za-z])\)?[.:,;)]*|(?:\(([A-Za-z])\)|([A-Z])[.:)])\s*(.*)", re.DOTALL)
_LETTER_TOLD = re.compile(  # "the answer is A dog" tells none, "B or C" neither
    r"\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*(?:\(([A-Za-z])\)|(A(?!\s+[a-z])|[B-Z])\b(?!['’]))"
    r"(?!\)?\s*(?:,|/|\bor\b|\band\b)\s*\(?[A-Z]\b)"
)
_NOT = r"(?:\bnot|\bno|n't|\bneither|\bnor|\bnever|\bwithout|\brather than)\s+(?:(?:an?|the|any)\s+)?"


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options behind it, each with its letter."""
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question.strip()} Choose one of the options: {listed}".strip()


def without_labels(options: Sequence[str]) -> list[str]:
    """Options without the letters that stand in front of them all, A to the last in order."""
    found = [_LABELLED.fullmatch(option) for option in options]
    if all(label and label[1] == letter for label, letter in zip(found, LETTERS, strict=False)):
        return [label[2] for label in found if label]
    return list(options)


def labelled(answer: str, options: Sequence[str]) -> str:
    """The option that a file's right answer means, by its text or its letter; else the answer itself."""
    text = answer.strip()
    found = _LABELLED.fullmatch(text)
    for wanted in (text, found[2] if found else text):
        for option in options:
            if option.casefold() == wanted.casefold():
                return option
    if (letter := re.fullmatch(r"\(?([A-Z])\)?\.?", text)) and (place := _of_letter(letter[1], options)) is not None:
        return options[place]
    return text


def orders(options: Sequence[str]) -> list[list[str]]:
    """The orders in which the likelihood of each option is averaged: as many as there are options."""
    ranked = sorted(options)
    return [ranked[first:] + ranked[:first] for first in range(len(ranked))]


def named_option(answer: str, options: Sequence[str]) -> int | None:
    """The one option that an answer names, asked with `options` in this order; None where it names none or several.

    A letter alone ("B", "(b)."), in front ("B. rain", "(B) rain") or told ("the answer is B"); else the words of an
    option, whole and in a row, that do not follow a "not", where they are those of one option only. A letter with the
    words of another option names neither.
    """
    text = answer.strip()
    if found := _LETTER_FIRST.fullmatch(text):
        alone, bracketed, plain, behind = found.groups("")
        letter = _of_letter(alone or bracketed or plain, options)
        return letter if _options_in(behind or text[:1], options) <= {letter} else None
    by_words = _options_in(text, options)
    told = {_of_letter(bracketed or plain, options) for bracketed, plain in _LETTER_TOLD.findall(text)} - {None}
    chosen = told | by_words
    return chosen.pop() if len(chosen) == 1 else None


def _of_letter(letter: str, options: Sequence[str]) -> int | None:
    place = LETTERS.index(letter.upper())
    return place if place < len(options) else None


def _options_in(text: str, options: Sequence[str]) -> set[int]:
    """Options whose words stand in a text; one that is only a part of another that stands there does not count."""
    said, spoken = _words(text), []
    for place, option in enumerate(options):
        words, edge = re.escape(_words(option)), "" if CJK.search(option) else r"\b"
        spans = [match.span() for match in re.finditer(f"{edge}{words}{edge}", said)] if words else []
        spoken += [(place, *span) for span in spans if not re.search(f"{_NOT}$", said[: span[0]])]
    return {
        place
        for place, begin, end in spoken
        if not any(b <= begin and end <= e and e - b > end - begin for _, b, e in spoken)
    }


def _words(text: str) -> str:
    """Lower case, words and numbers with one space between."""
    return " ".join(re.findall(r"[\w'’]+(?:[.,]\d+)*", text.lower()))


def pick(answer: str, options: Sequence[str], right: str, losses: Sequence[Sequence[float]]) -> Pick:
    """What an answer and the losses say of a clip's options.

    options: in the order of the file, in which the answer was asked. right: "" where it is not known.
    losses: [orders][options as sorted], of each option the mean over its tokens.
    """
    ranked, mean = sorted(options), np.mean(losses, axis=0)
    n = len(options)
    return Pick(
        n_options=n,
        right=options.index(right) if right in options else None,
        named=named_option(answer, options),
        likeliest=options.index(ranked[int(mean.argmin())]),
        places=tuple(int(place - first) % n for first, place in enumerate(np.argmin(losses, axis=1))),
    )
