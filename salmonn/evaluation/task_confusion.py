"""Answers in another task's form: phonemes for words, a caption for a transcript, the instruction repeated.

A form counts only where no reference of the clip has it, so that ordinary answers, wrong ones too, are left alone.
Languages are told by their script, and German from English by their small words; others in Latin letters are not.
Answers that transcribe a spoken question are those that the following rate counts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from salmonn.common.errors import examples
from salmonn.evaluation.choices import CJK
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.metrics.base import value_of
from salmonn.evaluation.requests import Prediction, Request

_VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
_CONSONANTS = frozenset("B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split())
_PHONES = _VOWELS | _CONSONANTS | {"SIL", "SP", "SPN"}
_PHONES_AT_LEAST, _PHONE_SHARE = 3, 0.8  # tokens, and of them
_SOUNDS = r"speak|talk|sing|play|bark|chirp|run|laugh|cr(?:y|ies)|rain|blow|hum|ring|beep|meow|tick|clap|cheer"
_CAPTION = re.compile(
    rf"^(?:an?|the|some|several|people|wind|music|birds?|water|\w+ing)\b.{{0,60}}\b(?:{_SOUNDS})\w*\b.{{0,40}}"
    r"\b(?:in the (?:background|distance)|followed by|while|and then|nearby|loudly)\b"
    r"|^(?:the audio|this (?:audio|clip|music))\b",
    re.IGNORECASE,
)
_TRANSCRIBING = ("asr", "asr_zh", "asr_de", "lyrics_recognition", "phone_recognition", "speech_separation")
_YES_NO = re.compile(r"\s*(?:yes|no)\b", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")
# Of each language those that are no words of the other.
_SMALL_WORDS = {
    "English": frozenset("the a and is are of to that he she it his her with for on at not have has".split()),
    "German": frozenset("der das und ist sind von zu dass er sie es sein ihr mit auf nicht haben hat ein eine".split()),
}
_SMALL_WORDS_AT_LEAST, _SMALL_WORD_SHARE = 2, 0.25
_REPEATED_WORDS = 4  # of an instruction; shorter ones stand in answers by chance


def _are_phonemes(text: str) -> bool:
    tokens = [token.rstrip("012") for token in re.sub(r"[^\w\s]", " ", text).upper().split()]
    known = [token for token in tokens if token in _PHONES]
    both = not _VOWELS.isdisjoint(known) and not _CONSONANTS.isdisjoint(known)
    return both and len(tokens) >= _PHONES_AT_LEAST and len(known) >= _PHONE_SHARE * len(tokens)


def _is_cjk(text: str) -> bool:
    return 2 * len(CJK.findall(text)) > len(_LETTER.findall(text))


def _is_other_script(text: str) -> bool:
    return bool(_LETTER.search(text)) and not CJK.search(text)


def _is_of(language: str, text: str) -> bool:
    words = _words(text).split()
    small = {name: sum(word in known for word in words) for name, known in _SMALL_WORDS.items()}
    enough = max(_SMALL_WORDS_AT_LEAST, _SMALL_WORD_SHARE * len(words))
    return small[language] >= enough and small[language] == max(small.values()) > min(small.values())


def form_of(answer: str, references: Sequence[str], task: str = "asr", instruction: str = "") -> str:
    """The form of another task that an answer has and none of the references; "" for an ordinary answer.

    `instruction`: what was asked, without the audio.
    """
    if not answer.strip() or not references:
        return ""
    asked = _words(instruction)
    forms: dict[str, Callable[[str], bool]] = {
        "the instruction repeated": lambda text: len(asked.split()) >= _REPEATED_WORDS and asked in _words(text),
        "phonemes": _are_phonemes,
        "Chinese, Japanese or Korean": _is_cjk,
        "another script than Chinese, Japanese or Korean": _is_other_script,
    }
    for language, other in (("English", "German"), ("German", "English")):
        if any(_is_of(other, reference) for reference in references):
            forms[language] = partial(_is_of, language)
    if task in _TRANSCRIBING:
        forms["a caption"] = lambda text: bool(_CAPTION.search(text.strip()))
    if _words(answer) in ("yes", "no"):
        forms["yes or no"] = lambda text: bool(_YES_NO.match(text))
    return next((form for form, has in forms.items() if has(answer) and not any(map(has, references))), "")


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def confused_answers(
    clips: Sequence[EvalExample], requests: Sequence[Request], predictions: Mapping[int, Prediction]
) -> dict[int, str]:
    """{position: form} of the answers that are in another task's form."""
    found = {}
    for position, prediction in predictions.items():
        clip, instruction = clips[position], _instruction(requests[position].prompt)
        found[position] = form_of(prediction.text, [*clip.references, *clip.choices], clip.task, instruction)
    return {position: form for position, form in found.items() if form}


def _instruction(prompt: str) -> str:
    """What a prompt asks: the line behind the audio, after which the template goes on."""
    return prompt.rpartition("</Speech>")[2].strip().partition("\n")[0]


def confusion_notes(
    confused: Mapping[int, str],
    clips: Sequence[EvalExample],
    predictions: Mapping[int, Prediction],
    statistics: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """How many answers are in which form, with examples, and what the scores are without them."""
    if not confused:
        return []
    heard = sum(not prediction.unreadable for prediction in predictions.values())
    notes = []
    for form in dict.fromkeys(confused.values()):
        positions = [position for position, other in confused.items() if other == form]
        named = examples([f"{clips[position].id} ({predictions[position].text[:60]!r})" for position in positions])
        share = f"{len(positions)} of {heard} answers ({100 * len(positions) / heard:.2f} %)"
        notes.append(f"Task confusion: {share} are in another task's form, {form}: {named}.")
    scores = {METRICS[name].title: _without(name, kept, confused) for name, kept in statistics.items()}
    without = [f"{title} {score}" for title, score in scores.items() if score]
    return [*notes, f"Without the answers in another task's form: {', '.join(without)}."] if without else notes


def _without(name: str, kept: Mapping[str, Any], confused: Mapping[int, str]) -> str:
    """The score of the other answers; "" where it is no function of what is kept per clip, or there are none."""
    metric = METRICS[name]
    others = [value for row, value in zip(kept["rows"], kept["values"], strict=True) if row not in confused]
    if metric.corpus or not others or len(others) == len(kept["rows"]):
        return ""
    value = value_of(metric, np.asarray(others, dtype=np.float64))
    return "" if value is None else metric.show(value)
