"""Speech for sentences: Piper's joe, flite's slt, rms, awb and kal16, espeak-ng; pitch, speed, room and line vary.

What a clip sounds like follows from its number, its text and SHARES, so a stopped job goes on where it was; in
espeak-ng's share it depends a little on what was said before, too.
"""

import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import numpy as np
import soundfile
import soxr

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.errors import UserError
from util.mini_world.speech import engine
from util.small_model.sources import last_line

CLIPS_AT_ONCE = 32  # clips that a process speaks at a time
ESPEAK_VOICES = (
    "en-us",
    "en-us-nyc",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-029",
    "en-us+f2",
    "en-us+m3",
)
SHARES = {"joe": 0.36, "slt": 0.18, "rms": 0.16, "awb": 0.14, "kal16": 0.08, "espeak": 0.08}
MEN = ("joe", "rms", "awb", "kal16")


@dataclass(frozen=True)
class Spoken:
    """A clip of the corpus."""

    path: str  # below the corpus folder
    text: str
    voice: str
    seconds: float


@dataclass(frozen=True)
class Engines:
    """Where the engines lie that espeakng_loader does not bring."""

    piper: str  # the folder with joe's model
    flite: str  # the command; its libraries are looked for in `libraries`
    libraries: str
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)  # of the clips, by voice


def speak_all(texts: Sequence[str], folder: Path, engines: Engines, processes: int) -> Iterator[list[Spoken]]:
    """Speak each text into `folder`/NUMBER-HASH.flac; what is there is kept. Yields some clips at a time, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(start, texts[start : start + CLIPS_AT_ONCE]) for start in range(0, len(texts), CLIPS_AT_ONCE)]
    if not all(os.path.exists(path) for path in (engines.piper, engines.flite)):
        raise UserError(f"no voices in {engines.piper} and {engines.flite}: run util/small.py again to unpack them")
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(_speak_some, folder=folder, engines=engines), jobs)


def drop_others(spoken: Iterable[Spoken], folder: Path) -> None:
    """Remove what is in the folder of an earlier choice of texts or voices."""
    for name in {path.name for path in folder.iterdir()} - {clip.path for clip in spoken}:
        (folder / name).unlink()


def _speak_some(job: tuple[int, Sequence[str]], folder: Path, engines: Engines) -> list[Spoken]:
    first, texts = job
    return [_speak_one(number, text, folder, engines) for number, text in enumerate(texts, first)]


def _speak_one(number: int, text: str, folder: Path, engines: Engines) -> Spoken:
    rng = Random(f"{number} {text}")
    voice = rng.choices([*engines.shares], [*engines.shares.values()])[0]
    # once texts or SHARES have changed, what a stopped job has left under this number is another clip
    path = folder / f"{number:06d}-{crc32(f'{voice} {text}'.encode()):08x}.flac"
    try:
        seconds = soundfile.info(path).duration
    except soundfile.LibsndfileError:
        wav = in_a_room(say(text, voice, rng, engines), rng)
        unfinished = path.with_suffix(".part")  # a clip that is there is whole, as it is kept
        soundfile.write(unfinished, wav, SAMPLE_RATE, format="FLAC")
        unfinished.replace(path)
        seconds = len(wav) / SAMPLE_RATE
    return Spoken(path.name, text, voice, round(seconds, 3))


def say(text: str, voice: str, rng: Random, engines: Engines) -> np.ndarray:
    """[N] float32 at 16 kHz; a higher or lower voice is a faster or slower playback of a slower or faster reading."""
    shift = rng.choice([1.0, rng.uniform(0.85, 1.18)])
    slowness = rng.uniform(0.8, 1.2)
    if voice == "joe":
        wav, rate = _piper(text + rng.choice([".", ".", "?", ""]), slowness * shift, rng, engines.piper)
    elif voice == "espeak":
        spoken = engine().speak(text, rng.choice(ESPEAK_VOICES), int(155 / slowness / shift), rng.randrange(25, 75), 50)
        wav, rate = spoken.audio, spoken.rate
    else:
        wav, rate = _flite(text, voice, slowness * shift, engines)
    return soxr.resample(wav.astype(np.float32), rate * shift, SAMPLE_RATE)


def in_a_room(wav: np.ndarray, rng: Random) -> np.ndarray:
    """Loudness, silence around it, and sometimes an echo, noise or a telephone line."""
    noise = np.random.default_rng(rng.getrandbits(32))
    silence = [np.zeros(int(SAMPLE_RATE * rng.uniform(0.0, 0.35)), np.float32) for _ in range(2)]
    wav = np.concatenate([silence[0], wav, silence[1]])
    if rng.random() < 0.25:
        length = int(SAMPLE_RATE * rng.uniform(0.05, 0.3))
        echo = noise.standard_normal(length) * np.exp(-np.arange(length) / (length / 5))
        echo[0] = np.abs(echo).sum() * rng.uniform(0.1, 0.5)
        n = len(wav)
        size = 1 << (n + length).bit_length()
        wav = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(echo, size), size)[:n]
    if rng.random() < 0.2:
        wav = soxr.resample(soxr.resample(wav, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)
    wav = wav / (np.abs(wav).max() + 1e-6) * rng.uniform(0.1, 0.9)
    if rng.random() < 0.5:
        wav = wav + noise.standard_normal(len(wav)) * np.sqrt(np.mean(wav**2)) * 10 ** (-rng.uniform(12, 40) / 20)
    return np.clip(wav, -1, 1).astype(np.float32)


@cache
def _piper_session(folder: str) -> tuple[Any, dict[str, list[int]], int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    [model] = Path(folder).glob("*.onnx")
    settings = json.loads(model.with_suffix(".onnx.json").read_text())
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session, settings["phoneme_id_map"], settings["audio"]["sample_rate"]


def _piper(text: str, slowness: float, rng: Random, folder: str) -> tuple[np.ndarray, int]:
    """Piper's models read espeak's phonemes, a blank (0) behind each, between 1 and 2."""
    session, ids, rate = _piper_session(folder)
    known = [phoneme for phoneme in engine().phonemes(text, "en-us") if phoneme in ids]
    sequence = [1, 0, *(i for phoneme in known for i in (*ids[phoneme], 0)), 2]
    scales = [rng.uniform(0.4, 0.9), slowness, rng.uniform(0.5, 1.0)]  # noise, length, noise of the lengths
    inputs = {
        "input": np.array([sequence], np.int64),
        "input_lengths": np.array([len(sequence)], np.int64),
        "scales": np.array(scales, np.float32),
    }
    return session.run(None, inputs)[0].reshape(-1), rate


def _flite(text: str, voice: str, slowness: float, engines: Engines) -> tuple[np.ndarray, int]:
    environment = {**os.environ, "LD_LIBRARY_PATH": engines.libraries}
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        settings = ["-voice", voice, "-setf", f"duration_stretch={slowness:.3f}", "-t", text, "-o", file.name]
        command = [engines.flite, *settings]
        result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"{engines.flite} (voice {voice}) does not say {text!r}: {last_line(result)}")
        return soundfile.read(file.name, dtype="float32")
