"""Verdicts on media files: which of the annotated clips can be used, known before training starts.

A verdict belongs to one version of a file (path, size, modification time); it is a line of JSON, so
that lists can be read by people, appended to safely, and fed back.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from salmonn.audio.decode import AudioError, decode_all, inspect_header
from salmonn.common.errors import UserError
from salmonn.common.files import appending, whole_lines
from salmonn.common.processes import in_processes

_BATCH = 8  # files that a process checks before it reports


class Verdict(msgspec.Struct, omit_defaults=True):
    """What is known of one version of a file."""

    path: str
    ok: bool
    reason: str = ""  # why it is not ok: kind[: details]
    size: int = -1  # bytes; -1 where there is no file
    mtime_ns: int = 0
    checked: str = "decode"  # header | decode
    rate: int = 0  # Hz
    channels: int = 0
    seconds: float = 0.0
    format: str = ""

    @property
    def version(self) -> tuple[str, int, int]:
        """What must be the same for the verdict to hold."""
        return self.path, self.size, self.mtime_ns

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]


def version_of(path: str) -> tuple[str, int, int]:
    """Path, size and modification time of a file as it is now; size -1 where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # absent, not permitted, or no possible name
        return path, -1, 0
    return path, status.st_size, status.st_mtime_ns


def unreadable_verdict(path: str, reason: str) -> Verdict:
    """The verdict on a file that has just failed."""
    return Verdict(path, False, reason, *version_of(path)[1:])


def check_file(path: str, how: str) -> Verdict:
    """Look at a file's header ("header") or decode all of it ("decode"); never raises."""
    _, size, mtime_ns = version_of(path)
    try:
        info = decode_all(path) if how == "decode" else inspect_header(path)
    except AudioError as error:
        return Verdict(path, False, error.reason, size, mtime_ns, how)
    seconds = round(info.seconds, 4)
    return Verdict(path, True, "", size, mtime_ns, how, info.rate, info.channels, seconds, info.format)


# ---- many files


def check_files(paths: Iterable[str], how: str, jobs: int = 0) -> Iterator[Verdict]:
    """Verdicts on many files, in parallel processes (`jobs`; 0 = one per core), in no particular order.

    A file that takes its process down with it gets a verdict, too.
    """
    paths = iter(paths)
    died = yield from _check(iter(lambda: list(islice(paths, _BATCH)), []), how, jobs)
    suspects = yield from _check(([path] for path in died), how, jobs)
    for path in suspects:  # each in a process of its own
        if (yield from _check([[path]], how, jobs=1)):
            yield unreadable_verdict(path, "crashes the decoder")


def _check(batches: Iterable[list[str]], how: str, jobs: int) -> Generator[Verdict, None, list[str]]:
    """Yield the verdicts; returns the files that were under way when a process died."""
    died: list[str] = []
    for (batch, _), verdicts in in_processes(_check_batch, ((batch, how) for batch in batches), jobs):
        if verdicts is None:
            died += batch
        else:
            yield from verdicts
    return died


def _check_batch(paths: Sequence[str], how: str) -> list[Verdict]:
    return [check_file(path, how) for path in paths]


# ---- lists of verdicts


class VerdictList:
    """A verdict file being read and appended to; of several verdicts on one version the last counts."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> Iterator[Verdict]:
        """All verdicts in their order. Raises UserError for a line that is no verdict.

        A last line without an end was being written when its process was killed: it does not count.
        """
        decoder, number = msgspec.json.Decoder(Verdict), 0
        try:
            for number, line in whole_lines(self.path):  # noqa: B007 it is named where a line is refused
                yield decoder.decode(line)
        except OSError as error:
            raise UserError(f"verdict file {self.path} cannot be read: {error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(f"verdict file {self.path}, line {number}: {error}") from error

    def append_to(self) -> BinaryIO:
        """Open for appending, after the last whole line."""
        return appending(self.path)


def write_verdicts(file: BinaryIO, verdicts: Sequence[Verdict]) -> None:
    """Append verdicts, each on a line, and hand them to the system at once."""
    file.write(b"".join(msgspec.json.encode(verdict) + b"\n" for verdict in verdicts))
    file.flush()
