"""Outputs of the frozen encoders on disk, for runs that hear the same clips again and again.

An entry is named by what made it: the encoders' weights and settings, the precision, and the samples
that they heard. So it is never taken for that of a changed file, another cut or another encoder, and
one folder serves all ranks, stages and runs. Entries are whole, for all of them, or end a window behind the clip;
where that is all that is used, either kind is.

The folder grows up to a bound and then stays as it is. Where only a share c of the clips fits, passes in
random order find c of them; replacing what was used longest ago would find c + (1 - c) ln(1 - c), for a
half 0.15 instead of 0.5.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salmonn.common import distributed
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.files import GB, UNFINISHED, clear_unfinished, free_bytes, make_folder, replacing, unwritable_part
from salmonn.model.encoders import EncoderOutputs, Row, RunEncoders
from salmonn.model.qformer import clip_frames
from salmonn.model.salmonn import SALMONN

logger = logging.getLogger(__name__)

# Of what is computed between samples and entry, features included: raise it when that changes.
# 1: BEATs on CPUs with AMX was wrong in bfloat16, and nobody can tell its entries from the others.
# 2: encoders in half precision went to float32 and back under autocast.
VERSION = 3
THREADS = 8  # of each rank, for reading and writing the entries of a batch
LOOKS = 100  # at the folder while it fills: what other runs add is seen at each hundredth of the bound
_NOT_OF_THE_OUTPUT = ("_name_or_path", "transformers_version")  # in Whisper's settings
_FILE_OVERHEAD = 4096  # bytes of an entry beside its values: a header, and whole blocks of the disk


def open_cache(config: DictConfig, model: SALMONN, n_samples: int) -> "EncoderCache | None":
    """The cache that `run.encoder_cache` names, for a run of `n_samples`; says whether they will fit.

    None when the option is off. Raises UserError when the folder cannot be made.
    """
    if not config.run.encoder_cache:
        return None
    folder, bound = Path(config.run.encoder_cache), config.run.encoder_cache_gb * GB
    largest = distributed.from_main(_largest(config, model) if distributed.is_main() else 0)
    frames_beyond = model.connector.window[0] if model.config.only_filled_windows else None
    has_room = n_samples * largest <= bound
    cache = EncoderCache(folder, fingerprint(model), bound, distributed.world_size(), frames_beyond, has_room)
    try:
        make_folder(cache.folder)
    except OSError as error:
        raise UserError(f"run.encoder_cache = {folder}: {error}") from error
    if distributed.is_main():
        clear_unfinished(folder.rglob(UNFINISHED))
        used = folder_bytes(folder)
        logger.info(
            "encoder cache %s: at most %.3g MB a clip, %.3g GB for %d samples; run.encoder_cache_gb = %g, "
            "in use %.3g GB, %.3g GB of them by other encoders",
            cache.folder, largest / 1e6, n_samples * largest / GB, n_samples, bound / GB,
            used / GB, (used - folder_bytes(cache.folder)) / GB,
        )  # fmt: skip
    return cache


def _largest(config: DictConfig, model: SALMONN) -> int:
    """Bytes of the entry of a clip as long as the model hears."""
    silence = torch.zeros(1, model.log_mel.n_samples, device=model.device)
    length = torch.tensor([silence.shape[1]], device=model.device)
    with torch.no_grad(), autocast(config.run, model.device):
        [row] = model.run_encoders(silence, length).rows()
    return _size(row)


def require_room(run: DictConfig) -> None:
    """Raise UserError when the encoder cache cannot be made, or the disk is too full for it to grow to its bound."""
    if not run.encoder_cache:
        return
    folder = Path(run.encoder_cache)
    if there := unwritable_part(folder):
        raise UserError(f"run.encoder_cache = {folder}: {there} is no folder that can be written to")
    room = (free_bytes(folder) + folder_bytes(folder)) / GB
    if room < run.encoder_cache_gb:
        raise UserError(
            f"run.encoder_cache = {folder}: this disk has {room:.1f} GB for it, fewer than run.encoder_cache_gb = "
            f"{run.encoder_cache_gb:g}; set that lower, or name a folder of another disk"
        )


class EncoderCache:
    """Entries of one set of encoders in `folder`/`encoders`; all of `folder` stays within `max_bytes`.

    What cannot be read is encoded again, what cannot be written is done without; either is told once.
    """

    def __init__(
        self,
        folder: Path,
        encoders: str,
        max_bytes: float,
        writers: int = 1,
        frames_beyond: int | None = None,
        keeps_whole: bool = False,
    ) -> None:
        """`encoders`: their fingerprint. `writers`: processes that add to it at the same rate as this one.

        `frames_beyond`: frames of Whisper that are used behind a clip's end; None: all. `keeps_whole`: those behind
        them, of which no audio token is made, are kept all the same, for others.
        """
        self.root, self.folder = folder, folder / encoders
        self.frames_beyond, self.keeps_whole = frames_beyond, keeps_whole
        self.max_bytes, self.writers = max_bytes, writers
        self.is_writing = True
        self._heard = self._encoded = 0  # clips since the last report
        self._used, self._added = 0.0, math.inf  # bytes in the folder at the last look, and those that came since
        self._told: set[str] = set()
        self._pool = ThreadPoolExecutor(THREADS)  # kept: starting its threads takes longer than a small entry's reading

    def encode(
        self, raw_wav: Tensor, lengths: Tensor, run_encoders: RunEncoders, device: torch.device
    ) -> EncoderOutputs:
        """What `run_encoders` says on `device` of clips [B, N], zero behind their lengths [B]; it hears new ones.

        Clips are named by the host: of those that it has already, the device is given only what is new.
        """
        folders = self._folders(_precision(device.type))
        wavs = [wav[:n].numpy() for wav, n in zip(raw_wav.cpu(), lengths.tolist(), strict=True)]
        names = [*self._pool.map(_name, wavs)]
        read = zip(names, self._pool.map(lambda name: self._find(name, folders), names), strict=True)
        rows = {name: row for name, row in read if row is not None}
        new = {name: i for i, name in enumerate(names) if name not in rows}  # a clip may come twice
        if new:
            picked = list(new.values())
            longest = max(len(wavs[i]) for i in picked)
            encoded = dict(zip(new, run_encoders(raw_wav[picked, :longest], lengths[picked]).rows(), strict=True))
            rows |= encoded
            if not self.keeps_whole:
                encoded = {name: self._clipped(row, len(wavs[new[name]])) for name, row in encoded.items()}
            fitting = [(folders[0] / name, row) for name, row in encoded.items() if self._has_room(_size(row))]
            list(self._pool.map(lambda entry: self._write(*entry), fitting))
        self._heard += len(names)
        self._encoded += len(new)
        clipped = [self._clipped(rows[name], len(wav)) for name, wav in zip(names, wavs, strict=True)]
        return EncoderOutputs.of_rows(clipped, device)

    def _folders(self, precision: str) -> list[Path]:
        """Where entries may be; new ones come into the first."""
        whole = self.folder / precision
        if self.frames_beyond is None:
            return [whole]
        folders = [self.folder / f"{precision}-clip+{self.frames_beyond}", whole]
        return folders[::-1] if self.keeps_whole else folders

    def _find(self, name: str, folders: Sequence[Path]) -> Row | None:
        """The entry of this name, from the first of the folders that has it."""
        return next((row for folder in folders if (row := self._read(folder / name)) is not None), None)

    def _clipped(self, row: Row, n_samples: int) -> Row:
        """A clip's row, of Whisper's window what is used."""
        if self.frames_beyond is None:
            return row
        return {**row, "speech": row["speech"][: clip_frames(n_samples) + self.frames_beyond]}

    def report(self) -> None:
        """Tell what was found since the last report, over all ranks, each of which must ask."""
        heard, encoded = distributed.sum_numbers(self._heard, self._encoded)
        logger.info(
            "encoder cache: %d clips found, %d encoded, %.3g of %g GB in use",
            heard - encoded, encoded, folder_bytes(self.root) / GB, self.max_bytes / GB,
        )  # fmt: skip
        self._heard = self._encoded = 0

    def _read(self, path: Path) -> Row | None:
        """An entry; None where there is none that is whole."""
        try:
            with safe_open(path, "pt") as file:
                row = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
                is_row = row.keys() in ({"speech"}, {"speech", "audio"}) and all(v.ndim == 2 for v in row.values())
                if is_row and (file.metadata() or {}).get("crc32") == _checksum(row):
                    return row
            problem = "wrong checksum"
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            problem = str(error)
        self._tell_once("%s is damaged (%s): such clips are encoded again", path, problem)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _write(self, path: Path, row: Row) -> None:
        row = {name: values.cpu() for name, values in row.items()}
        try:
            make_folder(path.parent)
            with replacing(path) as temporary:
                save_file(row, temporary, {"crc32": _checksum(row)})
        except (OSError, SafetensorError) as error:
            self.is_writing = False
            self._tell_once("%s cannot be written to (%s): nothing is added any more", self.folder, error)

    def _has_room(self, size: int) -> bool:
        """Whether every writer may add an entry of `size` bytes; counts it."""
        if not self.is_writing:
            return False
        if self._added > self.max_bytes / LOOKS:
            self._used, self._added = folder_bytes(self.root), 0.0
        self._added += self.writers * size
        if self._used + self._added > self.max_bytes:
            self.is_writing = False
            self._tell_once(
                "%s is full: what is not in it is encoded each time; run.encoder_cache_gb sets its size", self.root
            )
        return self.is_writing

    def _tell_once(self, message: str, *values: object) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message, *values)


def fingerprint(model: SALMONN) -> str:
    """A name for everything but clip and precision that the encoders' outputs depend on."""
    whisper = model.speech_encoder.config.to_dict()
    silence = model.config.whisper_silence
    settings = {
        "version": VERSION,
        "features": [model.log_mel.n_fft, model.log_mel.hop, model.log_mel.n_samples],
        **({} if silence is None else {"silence": silence}),
        "whisper": {key: value for key, value in whisper.items() if key not in _NOT_OF_THE_OUTPUT},
        "beats": None if model.beats is None else model.beats.cfg,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    parts = [part for part in (model.log_mel, model.speech_encoder, model.beats) if part is not None]
    for name, values in (named for part in parts for named in (*part.named_parameters(), *part.named_buffers())):
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(_bytes(values))
    return digest.hexdigest()[:16]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process has just renamed or removed it
                total += os.path.getsize(os.path.join(place, name))
    return total


def _precision(device: str) -> str:
    """Where the encoders run now and what autocast makes of it; the weights' own precision is in the fingerprint."""
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "plain"
    return f"{device}-{autocast.removeprefix('torch.')}"


def _name(wav: np.ndarray) -> str:
    # Path, size and date of its files would leave out how they were cut, mixed down, resampled and joined.
    return f"{hashlib.sha256(wav.data).hexdigest()[:32]}.safetensors"


def _checksum(row: Row) -> str:
    crc = 0
    for name in sorted(row):
        crc = zlib.crc32(_bytes(row[name]), crc)
    return f"{crc:08x}"


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().flatten().view(torch.uint8).numpy().data


def _size(row: Row) -> int:
    return _FILE_OVERHEAD + sum(values.nbytes for values in row.values())
