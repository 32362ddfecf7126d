"""Text normalisation before scoring, by name; the same for outputs, references and spoken questions.

A normaliser takes all texts of a set at once, as PTB's tokenizer is a Java process. Knows no model.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from salmonn.common.files import read_json
from salmonn.evaluation.metrics.base import UnavailableError

Normaliser = Callable[[list[str]], list[str]]
OneText = Callable[[str], str]

SPELLING_FILE = "normalizer.json"  # in published Whisper folders: British to American spelling

# GigaSpeech writes punctuation as words and marks clips without speech by a tag alone. Its own data
# preparation drops those clips and its scoring drops all tags, so here their references are empty.
_TAGS = re.compile(r"<(?:COMMA|PERIOD|QUESTIONMARK|EXCLAMATIONPOINT|SIL|MUSIC|NOISE|OTHER|UNK)>", re.IGNORECASE)
# Its scoring (utils/gigaspeech_scoring.py) also drops these words; hyphens are spaces there as in Whisper's.
_FILLERS = re.compile(r"(?<![\w'])(?:uh|uhh|um|eh|mm|hm|ah|huh|ha|er|oof|hee|ach|eee|ew)(?![\w'])", re.IGNORECASE)

_QUOTES = str.maketrans("‘’“”", "''\"\"")
_PUNCTUATION = re.compile(r"[^\w\s'-]|_|(?<!\w)['-]+|['-]+(?!\w)")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")
_PHONE = re.compile(r"[A-Z]+")
_SILENCES = {"SIL", "SP", "SPN"}
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3000-\u303f\uff00-\uffef"
_SPACE_IN_CJK = re.compile(rf"(?<=[{_CJK}])\s+(?=[{_CJK}])")
_SENTENCE_END = re.compile(r"(?<!\b(?:mr|ms|dr|st|jr|sr))(?<!\bmrs)(?<!\b[a-z])[.?!]+[\"']?\s+", re.IGNORECASE)
_BETWEEN_KEYWORDS = re.compile(r"[,;\n]|\s-\s|\s(?=\d+[.)]\s)")
_BEFORE_KEYWORD = re.compile(r"^(?:.*:)?\s*(?:\d+[.)]|and\b)?", re.IGNORECASE)


def each(normalise: OneText) -> Normaliser:
    """A normaliser of single texts as one of all texts."""
    return lambda texts: [normalise(text) for text in texts]


def without_tags(text: str) -> str:
    """The text without GigaSpeech's tags, which part words as spaces do."""
    return _TAGS.sub(" ", text)


def plain(text: str) -> str:
    """White space becomes one space; all else stays, as sacrebleu expects: what looks like a tag, too."""
    return " ".join(text.split())


def cjk(text: str) -> str:
    """Plain, and no space between Chinese or Japanese characters: there it parts no words."""
    return _SPACE_IN_CJK.sub("", plain(text))


def words(text: str) -> str:
    """Lower case, without punctuation except apostrophes and hyphens within words."""
    return " ".join(_PUNCTUATION.sub(" ", without_tags(text).lower().translate(_QUOTES)).split())


def caption_words(text: str) -> str:
    """Words with clitics split as PTB does (isn't = is n't): caption tokens where PTB's tokenizer cannot run."""
    return " ".join(_CLITIC.sub(r" \1", words(text)).split())


def phones(text: str) -> str:
    """ARPABET phones in capitals, without stress digits, silences and whatever is written between them."""
    return " ".join(phone for phone in _PHONE.findall(without_tags(text).upper()) if phone not in _SILENCES)


def english(spelling: Mapping[str, str]) -> OneText:
    """Whisper's English normaliser; `spelling` maps British to American words (may be empty)."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise = EnglishTextNormalizer(dict(spelling))
    return lambda text: normalise(without_tags(text)).strip()


def gigaspeech(spelling: Mapping[str, str]) -> OneText:
    """English, and before it what GigaSpeech's own scoring does: tags and fillers are dropped."""
    normalise = english(spelling)
    return lambda text: normalise(_FILLERS.sub(" ", without_tags(text)))


def basic() -> OneText:
    """Whisper's normaliser for other languages than English: lower case, symbols become spaces."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalise = BasicTextNormalizer()
    return lambda text: normalise(without_tags(text)).strip()


def sentences(spelling: Mapping[str, str]) -> OneText:
    """English line by line: the lines are the sentences of the speakers; in one line what a full stop ends is one."""

    def split(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line.strip()]
        return _SENTENCE_END.split(lines[0]) if len(lines) == 1 else lines

    return _by_line(english(spelling), split)


def keywords(spelling: Mapping[str, str]) -> OneText:
    """One keyword a line, each in English normalisation, without numbering, heading and "and"."""

    def split(text: str) -> list[str]:
        return [_BEFORE_KEYWORD.sub("", part) for part in _BETWEEN_KEYWORDS.split(text)]

    return _by_line(english(spelling), split)


def _by_line(normalise: OneText, split: Callable[[str], list[str]]) -> OneText:
    return lambda text: "\n".join(filter(None, map(normalise, split(text))))


_PLAIN = {  # name: (normaliser, what the report says)
    "plain": (plain, "text as it is, white space evened out"),
    "cjk": (cjk, "text as it is, without spaces between Chinese or Japanese characters"),
    "words": (words, "lower case, punctuation removed"),
    "phones": (phones, "ARPABET phones without stress digits and silences"),
}
_ENGLISH = {
    "english": (english, "Whisper English"),
    "gigaspeech": (gigaspeech, "GigaSpeech's (tags and fillers removed), then Whisper English"),
    "sentences": (sentences, "Whisper English, a sentence a line, or in one line up to a full stop"),
    "keywords": (keywords, "Whisper English, a keyword a line"),
}
NAMES = (*_PLAIN, *_ENGLISH, "basic", "caption")


class Normalisation(NamedTuple):
    """A normaliser, what the report says about it, and what it stands in for where that is not here."""

    function: Normaliser
    note: str
    substitute: str = ""  # then scores are not compared with published ones


def normaliser(name: str, whisper_path: str) -> Normalisation:
    """The normaliser `name` of NAMES.

    `whisper_path`: local folder or hub name; its spelling mapping is used where English is normalised.
    """
    if name in _PLAIN:
        function, note = _PLAIN[name]
        return Normalisation(each(function), f"Normaliser: {note}.")
    if name == "basic":
        return Normalisation(each(basic()), "Normaliser: Whisper basic (not English).")
    if name == "caption":
        return _caption()
    make, note = _ENGLISH[name]
    spelling, origin = _spelling(whisper_path)
    return Normalisation(each(make(spelling)), f"Normaliser: {note}, {origin}.")


def _caption() -> Normalisation:
    """PTB's tokenizer, on which published caption scores stand, or where it cannot run something close to it."""
    from salmonn.evaluation.metrics.captions import ptb_tokens

    try:
        ptb_tokens(["A dog's bark."])
    except UnavailableError as missing:
        rules = "lower case, punctuation removed, clitics split (isn't = is n't)"
        reason = f"the PTB tokenizer of the published caption scores is not used: {missing}"
        return Normalisation(each(caption_words), f"Caption tokens: {rules}; {reason}.", "no PTB tokens")
    return Normalisation(ptb_tokens, "Caption tokens: PTB tokenizer, by aac-metrics.")


def _spelling(whisper_path: str) -> tuple[Mapping[str, str], str]:
    from transformers.utils import cached_file

    # local folder or hub name, as the model's own files; absent in folders that hold only the encoder
    path = cached_file(
        whisper_path,
        SPELLING_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}, f"without spelling mapping ({whisper_path} has no {SPELLING_FILE}): colour and color differ"
    spelling = read_json(Path(path))
    return spelling, f"British to American spelling by {path} ({len(spelling)} words)"
