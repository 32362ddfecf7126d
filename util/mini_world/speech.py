"""Speech from espeak-ng through its C library, with the time of every word and phoneme.

The PyPI package espeakng_loader carries library and data, so no system package is needed.
The library's state belongs to the process: one synthesis at a time, several processes at will.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import espeakng_loader
import numpy as np

RATE_PARAMETER, PITCH_PARAMETER, RANGE_PARAMETER = 1, 3, 4
SYNCHRONOUS_OUTPUT = 2  # espeak_AUDIO_OUTPUT
PHONEME_EVENTS = 1  # option of espeak_Initialize
UTF8 = 1  # character mode of espeak_Synth and espeak_TextToPhonemes
IPA = 2  # phoneme mode of espeak_TextToPhonemes
WORD_EVENT, PHONEME_EVENT = 1, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass
class Utterance:
    audio: np.ndarray  # [N] float32 at `rate`, peak below 1
    rate: int  # Hz
    words: list[tuple[float, str]]  # (start in seconds, word)
    phones: list[tuple[float, str]]  # (start in seconds, espeak's name; "" is a pause)


class _Engine:
    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = espeakng_loader.get_data_path().encode()
        self.rate: int = self.library.espeak_Initialize(SYNCHRONOUS_OUTPUT, 0, data, PHONEME_EVENTS)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng does not start with the data in {data.decode()}")
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, float, int, int, str]] = []  # kind, seconds, position, length, phoneme
        self._callback = _Callback(self._collect)  # kept: the library only holds a C pointer to it
        self.library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            event = events[i]
            phone = event.id.string.decode(errors="ignore") if event.type == PHONEME_EVENT else ""
            self.events.append((event.type, event.sample / self.rate, event.text_position, event.length, phone))
            i += 1
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int) -> Utterance:
        """Synthesise lower-case ASCII `text`; pitch and its range go from 0 to 100 (50 is the voice's own)."""
        library = self.library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        for parameter, value in (
            (RATE_PARAMETER, words_per_minute),
            (PITCH_PARAMETER, pitch),
            (RANGE_PARAMETER, pitch_range),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        self.chunks.clear()
        self.events.clear()
        data = text.encode()
        if library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        audio = np.concatenate(self.chunks).astype(np.float32) / 32768
        words = [(t, text[at - 1 : at - 1 + n]) for kind, t, at, n, _ in self.events if kind == WORD_EVENT]
        phones = [(t, _plain(name)) for kind, t, _, _, name in self.events if kind == PHONEME_EVENT]
        return Utterance(audio, self.rate, words, phones)

    def phonemes(self, text: str, voice: str) -> str:
        """IPA of a text, as Piper's voices read it."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:  # the library moves it on by a clause at a time
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, IPA).decode())
        return " ".join(clauses)


def _plain(name: str) -> str:
    """Phoneme without stress marks; pauses ("_", "_:") become "" ."""
    return name.lstrip("',%=").replace("_:", "").replace("_", "")


@cache
def engine() -> _Engine:
    """The process's one engine, started at first use."""
    return _Engine()
