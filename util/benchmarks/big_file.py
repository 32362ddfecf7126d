"""A generated annotation file like the released one of stage 2: as many entries, corpora, tasks and bytes."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

N_ENTRIES = 2_390_842  # of the released stage-2 file, 696 MB

_SYLLABLES = "a be co da el fi go ha in jo ka le mo ne or pa qui ro si ta un ve wo xe yo zu sta tri ment ing er".split()


@dataclass(frozen=True)
class Kind:
    """One task on one corpus."""

    weight: int
    task: str
    pattern: str  # of the path; i is the clip's number
    words: tuple[int, int]  # of the text, from and to
    question: bool = False
    pair: bool = False


KINDS = (
    Kind(281, "asr", "/LibriSpeech/train-clean-{a}/{b}/{c}/{b}-{c}-{d:04}.flac", (5, 60)),
    Kind(680, "asr", "/GigaSpeech/audio/podcast/P{a:04}/POD{c:010}_S{i:07}.wav", (5, 60)),
    Kind(90, "audiocaption", "/AudioCaps/train/{i}.wav", (5, 15)),
    Kind(20, "audiocaption_v2", "/Clotho/development/{i} field recording.wav", (8, 20)),
    Kind(320, "audiocaption_v2", "/WavCaps/FreeSound/{i}.flac", (5, 20)),
    Kind(290, "translation_ec", "/CommonVoice/train/common_voice_en_{i}.wav", (5, 20)),
    Kind(281, "phone_recognition", "/LibriSpeech/train-other-500/{b}/{c}/{b}-{c}-{d:04}.flac", (20, 90)),
    Kind(5, "emotion_recognition", "/IEMOCAP/IEMOCAP_full_release/Session{s}/sentences/wav/{i}/{i}_F.wav", (1, 1)),
    Kind(6, "music_description", "/MusicCaps/{i}.wav", (20, 60)),
    Kind(150, "QA", "/MillionSongDatasetSpotify/{i}.wav", (1, 12), question=True),
    Kind(130, "QA", "/GigaSpeech/audio/youtube/P{a:04}/YOU{c:010}_S{i:07}.wav", (5, 40), question=True),
    Kind(65, "speech_separation", "/LibriMix/mixdata/Libri2Mix/wav16k/max/train-360/mix_clean/{b}-{i}.wav", (20, 80)),
    Kind(52, "speaker_verification", "/Voxceleb1/dev/wav/id1{b:04}/{c:06}/{d:05}.wav", (1, 1), pair=True),
    Kind(28, "gender_recognition", "/LibriSpeech/train-clean-{a}/{b}/{c}/{b}-{c}-{d:04}.flac", (1, 1)),
)  # fmt: skip


def write_big_file(path: Path, n: int = N_ENTRIES, seed: int = 0) -> None:
    """Write `n` entries in mixed order; the same for the same seed."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"annotation": [')
        for i, entry in enumerate(entries(n, seed)):
            file.write((", " if i else "") + json.dumps(entry))
        file.write("]}")


def entries(n: int, seed: int) -> Iterator[dict]:
    """Entries whose tasks come as often as their weights say."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(5000)]
    sentences = [" ".join(rng.choices(words, k=k)) for k in range(1, 91) for _ in range(40)]  # 40 of each length
    weights = [kind.weight for kind in KINDS]
    for i in range(n):
        kind = rng.choices(KINDS, weights)[0]
        entry: dict[str, Any] = {"path": _path(kind, rng, i), "text": _text(kind.words, rng, sentences)}
        entry["task"] = kind.task
        if kind.question:
            entry["Q"] = _text((4, 15), rng, sentences)
        if kind.pair:
            entry["expand_wav"] = ["/mnt/bn/audio-visual-llm-data/datasets" + _path(kind, rng, i + n)]
        yield entry


def _path(kind: Kind, rng: random.Random, i: int) -> str:
    speaker = rng.randrange(1200)  # each with some chapters or videos, as in the corpora
    chapter = 20 * speaker + rng.randrange(6 if "LibriSpeech" in kind.pattern else 18)
    return kind.pattern.format(a=100 + speaker % 261, b=speaker, c=chapter, d=rng.randrange(100), s=i % 5, i=i)


def _text(words: tuple[int, int], rng: random.Random, sentences: list[str]) -> str:
    return sentences[40 * (rng.randint(*words) - 1) + rng.randrange(40)]
