"""LibriSpeech: recognition, phones and gender from the unpacked test-clean.tar.gz, test-other.tar.gz.

openslr.org/12, CC BY 4.0, 16 kHz FLAC. test-clean: 2,620 utterances, 5.4 h; test-other: 2,939, 5.1 h.
LibriSpeech/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt has lines `UTTERANCE TRANSCRIPT IN CAPITALS`
beside UTTERANCE.flac; LibriSpeech/SPEAKERS.TXT has lines `ID | SEX | SUBSET | MINUTES | NAME` and
comments after `;`. Transcripts are written in lower case, as in the released training files.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from salmonn.common.errors import UserError
from salmonn.common.files import visible
from util.eval_sets.base import Item, MissingError, Request, folder
from util.eval_sets.tables import bad, lines, read_text, source

_GENDERS = {"M": "man", "F": "woman"}
_WHICH_GENDER = "Is the speaker a man or a woman?"  # the published test prompts ask what the entry asks (gender_QA)
_PHONE = re.compile(r"[A-Z]+[0-2]?")


def read_speech(request: Request) -> Iterator[Item]:
    """Speech recognition."""
    for path, line, utterance, transcript in _utterances(folder(request.root / request.split)):
        yield Item(utterance, _clip(path, utterance), (transcript,), "asr", source(path, line))


def read_phones(request: Request) -> Iterator[Item]:
    """Phone recognition by a lexicon: the first pronunciation of each word, without stress.

    Not the paper's references (`read_aligned_phones`), so its error rate is not compared with these.

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


class _Aligned(msgspec.Struct):
    path: str
    text: str


class _AlignedFile(msgspec.Struct):
    annotation: list[_Aligned]


def read_aligned_phones(request: Request) -> Iterator[Item]:
    """Phone recognition by SALMONN's authors' own references, to which the paper's error rate belongs.

    LS_testclean_pr.json (github.com/bytedance/SALMONN/issues/103) is an annotation file of phones that the Montreal
    Forced Aligner chose. Its paths only name the utterances: they are looked for in --root. Utterances without a
    reference there are left out and told.
    """
    table = request.table
    if not table:
        raise MissingError("--table FILE is needed: LS_testclean_pr.json of github.com/bytedance/SALMONN/issues/103")
    try:
        entries = msgspec.json.decode(read_text(table), type=_AlignedFile).annotation
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f'{table}: expected {{"annotation": [{{"path", "text"}}, ...]}}: {error}') from error
    clips = {
        utterance: _clip(path, utterance) for path, _, utterance, _ in _utterances(folder(request.root / request.split))
    }
    for number, entry in enumerate(entries):
        utterance, where = PurePosixPath(entry.path).stem, f"{table}, entry {number}"
        if utterance not in clips:
            raise UserError(f"{where}: {utterance} is not in {request.root / request.split}; is --split another one?")
        yield Item(utterance, clips[utterance], (entry.text,), "phone_recognition", where)
    if without := len(clips) - len(entries):
        request.notes["utterances left out: they have no reference in the file"] = without


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
    files = visible(split, "*/*/*.trans.txt")
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
