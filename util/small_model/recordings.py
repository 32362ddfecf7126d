"""Recordings of real people and of music: telephone prompts in five languages, other speakers, five pieces.

Sentences are divided between training, validation and test by themselves, so that none is heard in two of them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import soundfile

from salmonn.audio.decode import SAMPLE_RATE, load_audio
from salmonn.common.errors import UserError
from util.eval_sets.tables import bad, lines, read_text
from util.small_model.texts import DIGITS, TEENS, TENS, spoken

SPLITS = {"train": 60, "valid": 10, "test": 30}  # percent
MUSIC_SECONDS = 6  # of a piece of music
SHORTEST = 0.3  # s
_RAW = {"samplerate": SAMPLE_RATE, "channels": 1, "subtype": "PCM_16", "endian": "LITTLE"}
VOICES = {  # folder of the package -> language and whether a woman or a man speaks
    "en_US_f_Allison": ("english", "woman"),
    "es_MX_f_Allison": ("spanish", "woman"),
    "fr_CA_f_June": ("french", "woman"),
    "it_IT_m_Carlo": ("italian", "man"),
    "ru_RU_f_IvrvoiceRU": ("russian", "man"),
}
# what one prompt of one word says is its name, and no transcript is needed
WORDS = {
    **{f"digits/{i}": word for i, word in enumerate(DIGITS + TEENS)},
    **{f"digits/{10 * (i + 2)}": word for i, word in enumerate(TENS)},
    **{f"digits/day-{i}": day for i, day in enumerate("sun mon tues wednes thurs fri satur".split())},
    **{
        f"digits/mon-{i}": month
        for i, month in enumerate(
            "january february march april may june july august september october november december".split()
        )
    },
    **{
        f"phonetic/{word[0]}_p": word
        for word in "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike oscar papa quebec "
        "romeo sierra tango uniform victor whiskey yankee zulu".split()
    },
    **{f"digits/{word}": word for word in "hundred thousand million billion today tomorrow yesterday minus".split()},
}
WORDS = {key: f"{word}day" if key.startswith("digits/day-") else word for key, word in WORDS.items()}
_NOT_SPEECH = re.compile(
    r"\b(silence|beep|beeperr|2?tone|letters|phonetic|digits|dictate|monkeys|monkeysintro|weasels|moo)\b"
)


@dataclass(frozen=True)
class Recording:
    """A recorded clip; `text` is empty where nobody has written down what it says."""

    path: str  # below the data folder
    split: str
    seconds: float
    kind: str  # prompt | word | librivox | speaker | speech (of another language, or not written down) | music
    text: str = ""
    language: str = ""
    voice: str = ""


def split_of(text: str) -> str:
    """The same for the same text, everywhere."""
    place = int(hashlib.sha256(text.encode()).hexdigest(), 16) % sum(SPLITS.values())
    return next(split for split, end in zip(SPLITS, accumulate(SPLITS.values()), strict=True) if place < end)


def english_prompts(sounds: Path, out: Path, transcripts: Path | None) -> Iterator[Recording]:
    """The English prompts: single words, and sentences with the publisher's transcripts where they are given."""
    files = _named(sounds)
    said = WORDS | ({} if transcripts is None else _transcripts_of(files, transcripts))
    for key, file in files.items():
        text = spoken(said.get(key, ""))
        if not text and _NOT_SPEECH.search(key):
            continue
        kind = "word" if key in WORDS else "prompt" if text else "speech"
        yield from _kept(file, out, f"english/{key.replace('/', '_')}.flac", kind, text or key, text)


def _transcripts_of(names: Iterable[str], path: Path) -> dict[str, str]:
    """What the prompts say. Raises UserError for a file that has few of their names: it is of other recordings."""
    said = read_transcripts(path)
    sentences = [name for name in names if name not in WORDS and not _NOT_SPEECH.search(name)]
    if (found := sum(name in said for name in sentences)) < len(sentences) / 2:
        raise UserError(
            f"--prompts {path} says of {found} of the {len(sentences)} English prompts what they say, fewer than half: "
            "a line is NAME: TEXT, with names as in core-sounds-en.txt of the recordings' publisher"
        )
    return said


def foreign_prompts(sounds: Path, out: Path) -> Iterator[Recording]:
    """Prompts in another language."""
    language = VOICES[sounds.name][0]
    for key, file in _named(sounds).items():
        if not _NOT_SPEECH.search(key):
            yield from _kept(file, out, f"{language}/{key.replace('/', '_')}.flac", "speech", key)


def _named(sounds: Path) -> dict[str, Path]:
    """The recordings of a package by what they are called."""
    return {file.relative_to(sounds).with_suffix("").as_posix(): file for file in sorted(sounds.rglob("*.g722"))}


def _kept(file: Path, out: Path, name: str, kind: str, identity: str, text: str = "") -> Iterator[Recording]:
    wav = decode(file)
    if len(wav) < SHORTEST * SAMPLE_RATE:
        return
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / name, wav, SAMPLE_RATE)
    language, voice = VOICES[next(part for part in file.parts if part in VOICES)]
    # a sentence that several prompts say is in one split; what nobody has written down goes by its name
    yield Recording(name, split_of(identity), len(wav) / SAMPLE_RATE, kind, text, language, voice)


def librivox(folder: Path, out: Path) -> Iterator[Recording]:
    """The five sentences of pocketsphinx's test data, all for testing."""
    for name, text in _sphinx_transcripts(folder / "librivox/transcription"):
        text = text.replace("more a amiable", "more amiable")  # what is read
        wav = load_audio(folder / "librivox" / f"{name}.wav")
        yield _for_testing(wav, out, f"librivox/{name}.flac", "librivox", text, "librivox")


def other_speakers(sphinx: Path, channels: Path, out: Path) -> Iterator[Recording]:
    """Short phrases of people of whom nothing is trained on, all for testing: cards, a command, loudspeakers.

    Whether one or two men speak pocketsphinx's is not written down: they count as one.
    """
    for name, text in _sphinx_transcripts(sphinx / "cards/cards.transcription"):
        wav = load_audio(sphinx / "cards" / f"{name}.wav")
        yield _for_testing(wav, out, f"speaker/cards_{name}.flac", "speaker", text, "sphinx")
    [command] = re.findall(r"<move> = (.*?);", read_text(sphinx / "goforward.gram"))
    wav, _ = soundfile.read(sphinx / "goforward.raw", dtype="float32", format="RAW", **_RAW)
    yield _for_testing(wav, out, "speaker/goforward.flac", "speaker", command, "sphinx")
    for file in sorted(channels.glob("audio-channel-*.oga")):
        text = file.stem.removeprefix("audio-channel-").replace("-", " ")  # what is said is the name
        yield _for_testing(load_audio(file), out, f"speaker/{file.stem}.flac", "speaker", text, "channels")


def _sphinx_transcripts(file: Path) -> list[tuple[str, str]]:
    return [(name, " ".join(text.split())) for text, name in re.findall(r"<s>(.*?)</s> \((.*?)\)", read_text(file))]


def _for_testing(wav: np.ndarray, out: Path, name: str, kind: str, text: str, voice: str) -> Recording:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / name, wav, SAMPLE_RATE)
    return Recording(name, "test", len(wav) / SAMPLE_RATE, kind, text, "english", voice)


def music(folder: Path, out: Path) -> Iterator[Recording]:
    """Pieces cut into parts of some seconds: the first for training, the last quarter for testing."""
    (out / "music").mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.g722")):
        wav, length = decode(file), MUSIC_SECONDS * SAMPLE_RATE
        parts = [wav[i : i + length] for i in range(0, len(wav) - length, length)]
        for i, part in enumerate(parts):
            if np.sqrt(np.mean(part**2)) < 0.01:
                continue
            place = i / len(parts)
            split = "train" if place < 0.65 else "valid" if place < 0.75 else "test"
            name = f"music/{file.stem}_{i:03d}.flac"
            soundfile.write(out / name, part, SAMPLE_RATE)
            yield Recording(name, split, MUSIC_SECONDS, "music")


def decode(file: Path) -> np.ndarray:
    """[N] float32 of a G.722 file, 16 kHz; nothing of an empty one."""
    with av.open(str(file), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate([np.zeros(0), *frames]).astype(np.float32) / 32768


def read_transcripts(path: Path) -> dict[str, str]:
    """`name: what is said` on each line, as the publisher of the recordings writes it; ; begins a comment.

    Raises UserError where the file cannot be read, or is not of that form.
    """
    said = {}
    for number, line in lines(path):
        if line.startswith(";"):
            continue
        name, colon, text = line.partition(": ")
        if not colon:
            raise bad(path, number, f"expected NAME: TEXT, found {line[:80]!r}")
        if not text.startswith("["):  # [tones, music, ...]
            said[name.strip()] = text
    return said
