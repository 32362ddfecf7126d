"""Convert the clips of an annotation file into a folder of 16 kHz mono FLAC (PCM_16), whole and resumable.

A clip lands below the folder where it lay below the prefix, or under its annotated path where
path_map takes it from elsewhere. `.flac` replaces its extension; but it is appended where another
file of that stem has an extension that comes earlier (.flac, .wav, .mp3, .ogg, .opus, .m4a), or
with any other extension: a.wav beside a.flac becomes a.wav.flac. No other clip changes a name.
"""

import contextlib
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path

import msgspec
import numpy as np
import soundfile
from tqdm import tqdm

from salmonn.audio.decode import SAMPLE_RATE, AudioError, stream_audio
from salmonn.common.errors import UserError
from salmonn.common.files import UNFINISHED, clear_unfinished, replacing, sealed, unsealed
from salmonn.common.processes import in_processes
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import OTHER_EXTENSIONS, ClipPaths, FolderCache
from salmonn.data.integrity import version_of
from util.inspector.split import stem_of, write_entries

logger = logging.getLogger(__name__)

_EXTENSIONS = (".flac", ".wav", *OTHER_EXTENSIONS[1:])
_SETTINGS = ".conversion.json"  # in the target folder: what all of its clips were made with
_BLOCK = 1 << 20  # samples
_MD5 = slice(26, 42)  # bytes of a FLAC file, of the samples in it


class _Settings(msgspec.Struct):
    channel: str
    prefix: str


Place = tuple[str, str]  # the file of a clip; its path in the new annotation file
Places = Callable[[list[str]], list[Place]]  # of the clips of an entry


@dataclass
class Conversion:
    """What came of a conversion."""

    annotation: Path  # the new file, for prefix = its folder
    entries: int = 0  # of the new file
    files: Counter[str] = field(default_factory=Counter)  # converted | clipped (the same, peaks cut) | kept | failed
    reasons: dict[str, str] = field(default_factory=dict)  # of the files that failed
    left_out: list[tuple[int, str]] = field(default_factory=list)  # entry, and which clip failed why


def convert(
    annotations: Annotations, clip_paths: ClipPaths, folder: Path, jobs: int = 0, channel: str = "first",
    usable: np.ndarray | None = None,
) -> Conversion:  # fmt: skip
    """Convert the clips of the usable entries; FOLDER/STEM.json gets the entries of which all clips could be.

    `channel`: the first, or the mean. Clips that an earlier run finished are kept unless their source has changed or
    they were damaged since. A clip with damage anywhere is left out. One run at a time. Raises UserError for
    a folder around the sources, with other settings or other things in it, two files for one
    target, and a full disk.
    """
    result = Conversion(folder / f"{stem_of(annotations.path)}.json")
    prefix = clip_paths.prefix
    settings = _Settings(channel, prefix)
    known = _check_folder(annotations, prefix, folder, settings)
    chosen = (np.ones(len(annotations), bool) if usable is None else usable).tolist()
    place_of = partial(_places_of, clip_paths, FolderCache().exists)
    places = partial(_places, annotations, chosen, place_of)
    plan = _plan(places(), folder)
    n, locate = len(plan), ClipPaths(str(folder)).locate
    todo = ((file, locate(new), channel, known) for file, new in places() if plan.pop(hash(new), None) is not None)
    try:
        clear_unfinished(folder.rglob(UNFINISHED))
        if known:
            _write_settings(folder, settings)
        for call, outcome in tqdm(in_processes(convert_file, todo, jobs), total=n, unit="file", disable=None):
            if outcome is None:  # a process died: each file in one of its own shows which it was
                ((_, outcome),) = in_processes(convert_file, [call], 1)
            state, reason = outcome or ("failed", "crashes the decoder")
            result.files[state] += 1
            if state == "failed":
                result.reasons[call[0]] = reason
            elif reason:
                logger.warning("%s", reason)
        with replacing(result.annotation) as temporary:
            write_entries(temporary, _new_entries(annotations, chosen, place_of, result))
            if not result.entries:
                first = next((f"entry {number}: {why}" for number, why in result.left_out), "no entry is usable")
                raise UserError(f"nothing of {annotations.path} can be converted; {first}")
        if not known:  # now it is: a kill before this makes all anew once more
            _write_settings(folder, settings)
    except OSError as error:
        done = f"{result.files.total()} of {n} files"
        raise UserError(f"conversion to {folder} stopped after {done}: {error}; mend it, a re-run goes on") from error
    return result


def _check_folder(annotations: Annotations, prefix: str, folder: Path, settings: _Settings) -> bool:
    """Whether all clips in the folder were made with these settings, as far as that is known; else UserError."""
    target, source, file = folder.resolve(), Path(prefix).resolve(), folder / _SETTINGS
    if prefix and (target == source or source in target.parents or target in source.parents):
        raise UserError(f"{folder} is, holds or lies in the clips' folder {prefix}; choose a folder apart")
    if annotations.path.resolve().parent == target:
        raise UserError(f"{folder} holds {annotations.path}, the file to be converted; choose a folder apart")
    if not file.exists() and folder.is_dir() and any(not path.match(UNFINISHED) for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty, and not from an earlier --convert; choose a new folder")
    try:
        was = msgspec.json.decode(unsealed(file.read_bytes()), type=_Settings) if file.exists() else settings
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        logger.warning("%s is damaged (%s): nobody knows how clips there were made, and all are made anew", file, error)
        return False
    if was != settings:
        before, now = map(msgspec.structs.asdict, (was, settings))
        raise UserError(f"{folder} has clips that were made with {before}, not {now}; choose another folder")
    return True


def _write_settings(folder: Path, settings: _Settings) -> None:
    with replacing(folder / _SETTINGS) as temporary:
        temporary.write_bytes(sealed(msgspec.json.encode(settings)))


def _plan(places: Iterator[Place], folder: Path) -> dict[int, int]:
    """Targets and their sources, as hashes. Raises UserError where two clips would meet, or one its own copy."""
    plan: dict[int, int] = {}
    inside = (f"{os.path.abspath(folder)}/", f"{folder.resolve()}/")
    for file, new_path in places:
        file = os.path.abspath(file)
        if file.startswith(inside):
            raise UserError(f"{file} lies in {folder}, where the converted clips go; choose a folder apart")
        if plan.setdefault(hash(new_path), hash(file)) != hash(file):
            raise UserError(f"{file} and another clip would both become {folder}{new_path}; rename one of them")
    return plan


def _places(annotations: Annotations, chosen: list[bool], place_of: Places) -> Iterator[Place]:
    """The clips of the chosen entries, without those that lead out of the prefix: `_new_entries` names them."""
    for entry in compress(annotations.entries(), chosen):
        with contextlib.suppress(AudioError):
            yield from place_of([entry.path, *(entry.expand_wav or ())])


def _places_of(clip_paths: ClipPaths, exists: Callable[[str], bool], clips: list[str]) -> list[Place]:
    """The clips of an entry. Raises AudioError where one leads out of the prefix."""
    files = clip_paths.of(clips[0], clips[1:], exists)
    return [(file, _new_path(clip, file, clip_paths.prefix, exists)) for clip, file in zip(clips, files, strict=True)]


def _new_path(clip: str, file: str, prefix: str, exists: Callable[[str], bool]) -> str:
    """The path of a clip below the target folder, with a slash in front."""
    stem, extension = os.path.splitext(file)
    below = prefix.rstrip("/") + "/"
    where = stem.removeprefix(below) if prefix and stem.startswith(below) else os.path.splitext(clip)[0]
    where = os.path.normpath("/" + where.lstrip("/"))
    first = next((other for other in _EXTENSIONS if other == extension or exists(stem + other)), None)
    return f"{where}.flac" if extension == first else f"{where}{extension}.flac"


def _new_entries(annotations: Annotations, chosen: list[bool], place_of: Places, result: Conversion) -> Iterator[bytes]:
    """The entries with their new paths; `result` is told how many, and which are left out."""
    for i, raw in compress(enumerate(annotations.raw_entries()), chosen):
        entry = msgspec.json.decode(raw)
        try:
            places = place_of([entry["path"], *(entry.get("expand_wav") or ())])
            if bad := next((file for file, _ in places if file in result.reasons), None):
                raise AudioError(bad, result.reasons[bad])
        except AudioError as error:
            result.left_out.append((i, str(error)))
            continue
        entry["path"], *clips = (new_path for _, new_path in places)
        entry |= {"expand_wav": clips} if clips else {}
        result.entries += 1
        yield msgspec.json.encode(entry)


def convert_file(file: str, target: str, channel: str = "first", keeps: bool = True) -> tuple[str, str]:
    """(converted | clipped | kept | failed, why). Raises OSError where the target cannot be written.

    A target has the time of its source: so it is known to be of this version of it. With `keeps` it stays if it is
    whole.
    """
    (_, size, mtime_ns), (_, target_size, target_mtime_ns) = version_of(file), version_of(target)
    why = ""
    if keeps and size > 0 and target_size >= 0 and target_mtime_ns == mtime_ns:
        if _is_whole(target):
            return "kept", ""
        why = f"{target} was damaged, and is made anew"
    try:
        content, is_clipped = _encode(file, channel)
    except AudioError as error:
        return "failed", error.reason
    with replacing(Path(target)) as temporary:
        temporary.write_bytes(content)
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
    return "clipped" if is_clipped else "converted", why


def _is_whole(target: str) -> bool:
    """Whether a clip holds the samples that were written: FLAC tells their MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(target, "rb") as file, soundfile.SoundFile(file) as flac:
            is_ours = (flac.format, flac.subtype, flac.samplerate) == ("FLAC", "PCM_16", SAMPLE_RATE)
            for block in flac.blocks(_BLOCK, dtype="int16"):
                digest.update(block)
            file.seek(0)
            return is_ours and digest.digest() == file.read(_MD5.stop)[_MD5]
    except (OSError, soundfile.SoundFileError):
        return False


def _encode(file: str, channel: str) -> tuple[memoryview, bool]:
    """A whole clip as FLAC, in memory: about 20 kB a second. And whether peaks beyond full scale were cut.

    In memory, for damage shows only where a decoder comes to it: then nothing is written.
    """
    content, is_clipped = io.BytesIO(), False
    with soundfile.SoundFile(content, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as flac:
        for wav in stream_audio(file, channel):
            is_clipped |= bool((np.abs(wav) > 1).any())
            flac.write(np.clip(np.rint(wav * 32768), -32768, 32767).astype(np.int16))
    if not flac.frames:
        raise AudioError(file, "too short: no samples are left at 16 kHz")
    return content.getbuffer(), is_clipped
