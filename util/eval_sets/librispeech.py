"""LibriSpeech: recognition, phones and gender from the unpacked test-clean.tar.gz, test-other.tar.gz.

openslr.org/12, CC BY 4.0, 16 kHz FLAC. test-clean: 2,620 utterances, 5.4 h; test-other: 2,939, 5.1 h.
LibriSpeech/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt has lines `UTTERANCE TRANSCRIPT IN CAPITALS`
beside UTTERANCE.flac; LibriSpeech/SPEAKERS.TXT has lines `ID | SEX | SUBSET | MINUTES | NAME` and
comments after `;`. Transcripts are written in lower case, as in the released training files.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from util.eval_sets.base import Item, MissingError, Request, folder
from util.eval_sets.tables import bad, lines, source

_GENDERS = {"M": "man", "F": "woman"}
_WHICH_GENDER = "Is the speaker a man or a woman?"  # the published test prompts ask what the entry asks (gender_QA)
_PHONE = re.compile(r"[A-Z]+[0-2]?")


def read_speech(request: Request) -> Iterator[Item]:
    """Speech recognition."""
    for path, line, utterance, transcript in _utterances(folder(request.root / request.split)):
        yield Item(utterance, _clip(path, utterance), (transcript,), "asr", source(path, line))


def read_phones(request: Request) -> Iterator[Item]:
    """Phone recognition: the first pronunciation of each word, without stress.

    librispeech-lexicon.txt (openslr.org/11) has lines `WORD  P1 P2 ...` in ARPABET, 39 phones with
    stress digits on vowels. An utterance with a word outside the lexicons has no known reference and
    is left out; further files after --lexicon can supply the words, which are told.
    """
    lexicon = _read_lexicons(request.lexicon)
    outside: dict[str, None] = {}
    left_out = 0
    for path, line, utterance, transcript in _utterances(folder(request.root / request.split)):
        words = transcript.upper().split()
        if unknown := [word for word in words if word not in lexicon]:
            outside |= dict.fromkeys(unknown)
            left_out += 1
            continue
        phones = " ".join(lexicon[word] for word in words)
        yield Item(utterance, _clip(path, utterance), (phones,), "phone_recognition", source(path, line))
    if left_out:
        note = f"utterances left out: their words are outside the lexicon ({', '.join(sorted(outside))})"
        request.notes[note] = left_out


def read_gender(request: Request) -> Iterator[Item]:
    """Gender recognition, by SPEAKERS.TXT."""
    speakers = request.root / "SPEAKERS.TXT"
    genders = {}
    for line, text in lines(speakers):
        if text.startswith(";"):
            continue
        fields = [value.strip() for value in text.split("|")]  # a name may hold | itself
        if len(fields) < 5 or fields[1] not in _GENDERS:
            raise bad(speakers, line, f"expected ID | M or F | SUBSET | MINUTES | NAME, got {text!r}")
        genders[fields[0]] = _GENDERS[fields[1]]
    for path, line, utterance, _ in _utterances(folder(request.root / request.split)):
        speaker = utterance.partition("-")[0]
        if speaker not in genders:
            raise bad(path, line, f"the speaker {speaker} is not in {speakers}")
        yield Item(
            utterance,
            _clip(path, utterance),
            (genders[speaker],),
            "gender_recognition",
            source(path, line),
            question=_WHICH_GENDER,
        )


def transcripts(split: Path) -> dict[str, str]:
    """{utterance: transcript} of a split's folder."""
    return {utterance: transcript for _, _, utterance, transcript in _utterances(folder(split))}


def _utterances(split: Path) -> Iterator[tuple[Path, int, str, str]]:
    """(file, line, utterance, transcript) in the order of the ids."""
    files = sorted(split.glob("*/*/*.trans.txt"))
    if not files:
        raise MissingError(f"{split}: no SPEAKER/CHAPTER/*.trans.txt")
    for path in files:
        chapter = path.name.removesuffix(".trans.txt")
        for line, text in lines(path):
            utterance, _, transcript = text.partition(" ")
            if not utterance.startswith(f"{chapter}-"):
                raise bad(path, line, f"expected {chapter}-NUMBER and a transcript, got {text[:60]!r}")
            yield path, line, utterance, transcript.strip().lower()


def _clip(transcript: Path, utterance: str) -> Path:
    return transcript.with_name(f"{utterance}.flac")


def _read_lexicons(paths: list[Path]) -> dict[str, str]:
    """{WORD: its first pronunciation without stress}; the first file that has a word counts."""
    if not paths:
        raise MissingError("--lexicon FILE is needed: librispeech-lexicon.txt of openslr.org/11")
    lexicon: dict[str, str] = {}
    for path in paths:
        for line, text in lines(path):
            word, *phones = text.split()
            if not phones or not all(map(_PHONE.fullmatch, phones)):
                raise bad(path, line, f"expected WORD and its phones in ARPABET, got {text[:60]!r}")
            lexicon.setdefault(word.upper(), " ".join(phone.rstrip("012") for phone in phones))
    return lexicon
