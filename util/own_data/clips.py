"""From rows to sound files: where each clip lies, pieces cut out of recordings, recordings taken out of tables."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from salmonn.audio.decode import SAMPLE_RATE, AudioError, stream_audio
from salmonn.common.errors import UserError
from salmonn.common.files import replacing
from salmonn.data.clip_paths import find_file
from salmonn.data.integrity import check_files
from util.own_data.base import Row
from util.own_data.folders import EXTENSIONS

CLIP_FOLDERS = ("clips", "wavs", "wav", "audio")  # beside a list, in which its clips may lie
NO_TEXT = "no text"  # why a clip is left out
_ROUNDED = 0.1  # s that a piece may end behind its recording
_DECODED = (1000, 3600.0)  # clips and seconds, up to which all are decoded: some seconds of a core
Piece = tuple[Row, Path]  # and where it is written


@dataclass
class Collection:
    """What became of the rows that were read."""

    files: list[tuple[Row, tuple[str, ...]]] = field(default_factory=list)  # a clip, and its expand_wav
    seconds: dict[str, float] = field(default_factory=dict)  # by file
    left_out: list[tuple[str, str]] = field(default_factory=list)  # source, reason


def collect(rows: Iterable[tuple[Row, Path]], audio: Path | None, made: Path, needs_text: bool) -> Collection:
    """Find the clips of the rows, each beside the list that it is from; those that need it are written to `made`.

    `audio`: where relative paths begin, in the place of the list's folder. What has no clip that can be read, or no
    text where texts are needed, is left out with the reason.
    """
    collection = Collection()
    cut: dict[str, list[Piece]] = {}
    taken: dict[Path, Any] = {}
    for row, origin in rows:
        if needs_text and not (row.text or "").strip():
            collection.left_out.append((row.source, NO_TEXT))
            continue
        if row.content is not None:
            target = _target(made, row.name, row.source, taken)
            extract(row.content, target)
            files: tuple[str, ...] = (str(target),)
        else:
            bases = [audio] if audio else [origin, *(origin / name for name in CLIP_FOLDERS), Path()]
            found = [(path, locate(path, bases)) for path in (row.path, *row.expand)]
            if absent := [path for path, file in found if not file]:
                collection.left_out.append((row.source, f"no such file: {absent[0]}"))
                continue
            files = tuple(file for _, file in found)
        if row.start or row.seconds is not None:
            name = row.name or f"{Path(files[0]).stem}-{round(row.start * 1000):08}"
            target = _target(made, f"{name}.flac", (files[0], row.start, row.seconds), taken)
            cut.setdefault(files[0], []).append((row, target))
            files = (str(target), *files[1:])
        collection.files.append((row, files))
    failed = {target: reason for recording, pieces in cut.items() for target, reason in cut_out(recording, pieces)}
    _leave_out_unreadable(collection, failed)
    return collection


def listen(collection: Collection) -> tuple[list[str], dict[str, str]] | None:
    """The clips in which nothing is to be heard, and {file: reason} of those that break before their end.

    None where there are so many that decoding them takes a while.
    """
    most, seconds = _DECODED
    if len(collection.seconds) > most or sum(collection.seconds.values()) > seconds:
        return None
    verdicts = {verdict.path: verdict for verdict in check_files(collection.seconds, "decode", 1)}
    in_order = [verdicts[file] for file in collection.seconds]
    return [found.path for found in in_order if found.silent], {
        found.path: found.reason for found in in_order if not (found.ok or found.is_passing)
    }


def locate(path: str, bases: Sequence[Path]) -> str:
    """The file that a list names, absolute; "" where there is none. Endings may be absent or another one than there."""
    spellings = dict.fromkeys((path, path.replace("\\", "/")))
    for name in (os.path.expanduser(spelling) for spelling in spellings):
        places = [base / name for base in bases] + [base / name.lstrip("/") for base in bases if name.startswith("/")]
        for place in dict.fromkeys(map(os.path.abspath, places)):
            endings = ("",) if Path(place).suffix.lower() in EXTENSIONS else ("", *EXTENSIONS)
            for file in (find_file(place + ending) for ending in endings):
                if os.path.isfile(file):
                    return file
    return ""


def extract(content: bytes, target: Path) -> None:
    """Write the recording that a row holds. Raises UserError."""
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def cut_out(recording: str, pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Write pieces of a recording as 16 kHz mono FLAC; returns (file, reason) of those that cannot be.

    The recording is in memory meanwhile, an hour takes 0.23 GB. Raises UserError where nothing can be written.
    """
    try:
        wav = np.concatenate(list(stream_audio(recording)))  # [N] float32
    except AudioError as error:
        return [(str(target), str(error)) for _, target in pieces]
    failed = []
    for row, target in pieces:
        end = len(wav) / SAMPLE_RATE if row.seconds is None else row.start + row.seconds
        piece = wav[round(row.start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        if not len(piece) or end > len(wav) / SAMPLE_RATE + _ROUNDED:
            total = f"{recording} has {len(wav) / SAMPLE_RATE:.2f} s"
            failed.append((str(target), f"a piece from {row.start:.2f} to {end:.2f} s, {total}"))
            continue
        try:
            with replacing(target) as temporary:
                soundfile.write(temporary, np.clip(piece, -1, 1), SAMPLE_RATE, format="FLAC")
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(f"{target} cannot be written: {error}") from error
    return failed


def _target(folder: Path, name: str, what: Any, taken: dict[Path, Any]) -> Path:
    """Where a clip is written, by its name; no two of them in one file."""
    plain = Path(re.sub(r"[^\w.-]+", "_", name).lstrip("."))  # leads into no other folder
    number = 0
    while taken.setdefault(target := folder.absolute() / plain, what) != what:
        number += 1
        plain = plain.with_stem(f"{plain.stem}-{number}")
    return target


def _leave_out_unreadable(collection: Collection, failed: dict[str, str]) -> None:
    """By their headers; `failed` {file: reason} were not written at all."""
    files = dict.fromkeys(file for _, files in collection.files for file in files if file not in failed)
    for verdict in check_files(files, "header"):
        if verdict.ok:
            collection.seconds[verdict.path] = verdict.seconds
        else:
            failed[verdict.path] = f"{verdict.path}: {verdict.reason}"
    kept = []
    for row, of_row in collection.files:
        if reason := next((failed[file] for file in of_row if file in failed), ""):
            collection.left_out.append((row.source, reason))
        else:
            kept.append((row, of_row))
    collection.files = kept
    used = {file for _, of_row in kept for file in of_row}  # a row may be left out for one of its clips alone
    collection.seconds = {file: seconds for file, seconds in collection.seconds.items() if file in used}
