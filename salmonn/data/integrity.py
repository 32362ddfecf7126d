"""Verdicts on media files: which of the annotated clips can be used, known before training starts.

A verdict belongs to one version of a file (path, size, modification time); it is a line of JSON, so
that lists can be read by people, appended to safely, and fed back. Only what a file's bytes say is one:
what the system could not read now (rights, a full table of open files, a disk that did not answer) is
told, and looked at again.
"""

import os
import signal
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import soundfile

from salmonn.audio.decode import AudioError, decode_all, inspect_header
from salmonn.audio.silence import SHORTEST
from salmonn.common.files import NO_FILE, appending, read_json_lines, sealed
from salmonn.common.processes import DiedError, Parcel, Worker, in_processes

_BATCH = 8  # files that a process checks before it reports
_UNREADABLE = "unreadable"  # the kind of what the system could not read
_WRITTEN_BEFORE = "undecodable: System error"  # what earlier versions said of the same
_READ = 1 << 20  # bytes
_SYSTEM_ERRORS = (2, 17)  # libsndfile's codes: the system refused something; no memory

_Found = TypeVar("_Found")


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
    ctime_ns: int = 0  # when anything about the file was last changed, which nobody can set; 0 where not known
    silent: bool | None = None  # nothing is to be heard in it; None where not known, as in verdicts of before

    @property
    def version(self) -> tuple[str, int, int]:
        """What must be the same for the verdict to hold."""
        return self.path, self.size, self.mtime_ns

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return kind_of(self.reason)

    @property
    def is_passing(self) -> bool:
        """Whether it tells of the system at that time and not of the file: then it is no verdict."""
        return is_passing(self.reason)

    @property
    def remark(self) -> str:
        """What is odd about a good file, which is used all the same; "" for nothing."""
        if not self.ok:
            return ""
        return "silent" if self.silent else f"shorter than {SHORTEST:g} s" if 0 < self.seconds < SHORTEST else ""

    def excess(self, max_seconds: float) -> str:
        """Why a clip is left out that is longer than so many seconds; "" where it is not, and for a limit of 0."""
        is_longer = self.ok and 0 < max_seconds < self.seconds
        return f"longer than datasets.max_clip_seconds = {max_seconds:g}: {self.seconds:g} s" if is_longer else ""

    def still_holds(self) -> bool:
        """Whether a bad verdict is on the file that is there, which may have been repaired with its old size and time.

        Good verdicts go by these two alone: they outlive a copy of a corpus.
        """
        size, mtime_ns, ctime_ns = _size_and_times(self.path)
        return (size, mtime_ns) == (self.size, self.mtime_ns) and self.ctime_ns in (0, ctime_ns)


def kind_of(reason: str) -> str:
    """A reason without its details; what the system said is none."""
    return reason if is_passing(reason) else reason.partition(":")[0]


def is_passing(reason: str) -> bool:
    """Whether a reason tells of the system, and not of a file."""
    kind, _, what = reason.partition(": ")
    return (kind == _UNREADABLE and what not in map(os.strerror, NO_FILE)) or reason == _WRITTEN_BEFORE


def version_of(path: str) -> tuple[str, int, int]:
    """Path, size and modification time of a file as it is now; size -1 where there is none."""
    return path, *_size_and_times(path)[:2]


def _size_and_times(path: str) -> tuple[int, int, int]:
    """Size [bytes; -1 where there is no file], time of modification and of any change [ns]."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # absent, not permitted, or no possible name
        return -1, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def unreadable_verdict(path: str, reason: str) -> Verdict:
    """The verdict on a file that has just failed."""
    size, mtime_ns, ctime_ns = _size_and_times(path)
    return Verdict(path, False, reason, size, mtime_ns, ctime_ns=ctime_ns)


def check_file(path: str, how: str) -> Verdict:
    """Look at a file's header ("header") or decode all of it ("decode"); never raises."""
    size, mtime_ns, ctime_ns = _size_and_times(path)
    try:
        info = at_second_try(partial(decode_all if how == "decode" else inspect_header, path))
    except AudioError as error:
        return Verdict(path, False, reason_of(error), size, mtime_ns, how, ctime_ns=ctime_ns)
    seconds = round(info.seconds, 4)
    found = (info.rate, info.channels, seconds, info.format)
    return Verdict(path, True, "", size, mtime_ns, how, *found, ctime_ns, info.is_silent)


def at_second_try(look: Callable[[], _Found]) -> _Found:
    """What comes of looking at a file, once more if that fails: some troubles pass at once. Raises AudioError."""
    try:
        return look()
    except AudioError:
        return look()


def reason_of(error: AudioError) -> str:
    """Why a file could not be used: `unreadable: ...` where that was the system, which decoders take for damage."""
    if error.reason.startswith(_UNREADABLE):
        return error.reason
    if isinstance(error.__cause__, MemoryError):
        return f"{_UNREADABLE}: not enough memory"
    if trouble := _trouble_of_reading(error.path):
        return f"{_UNREADABLE}: {trouble}"
    if isinstance(error.__cause__, soundfile.LibsndfileError) and error.__cause__.code in _SYSTEM_ERRORS:
        return f"{_UNREADABLE}: {error.__cause__.error_string}"
    return error.reason


def _trouble_of_reading(path: str) -> str:
    """What the system says when it reads all of a file; "" where it can, or where there is no file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while os.read(descriptor, _READ):
                pass
        finally:
            os.close(descriptor)
    except ValueError:  # no possible name
        return ""
    except OSError as error:
        return "" if error.errno in NO_FILE else error.strerror or str(error)
    return ""


# ---- many files


def check_files(paths: Iterable[str], how: str, jobs: int = 0) -> Iterator[Verdict]:
    """Verdicts on many files, in parallel processes (`jobs`; 0 = one per core), in no particular order.

    A file that takes its process down with it gets a verdict, too.
    """
    paths = iter(paths)
    died = yield from _check(iter(lambda: list(islice(paths, _BATCH)), []), how, jobs)
    for path in (yield from _check(([path] for path in died), how, jobs)):
        yield _check_alone(path, how)


def _check_alone(path: str, how: str) -> Verdict:
    """The verdict on a file that was under way when a process died, from a process that has nothing else to do."""
    worker = Worker(Parcel(_check_batch), quiet=True)
    try:
        worker.send([path], how)
        return worker.receive()[0]
    except DiedError as died:
        was_killed = died.signal in (signal.SIGKILL, signal.SIGTERM)  # by somebody, or for want of memory
        return unreadable_verdict(path, f"{_UNREADABLE}: its process {died}" if was_killed else "crashes the decoder")
    finally:
        worker.finish()


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

    def read(self, is_given: bool = True) -> Iterator[Verdict]:
        """All verdicts in their order, without lines that were damaged; see `read_json_lines`. Raises UserError."""
        decode = msgspec.json.Decoder(Verdict).decode

        def parse(line: bytes) -> Verdict:
            try:
                return decode(line)
            except msgspec.MsgspecError as error:
                raise ValueError(str(error)) from error

        yield from read_json_lines(self.path, "a verdict", parse, is_given)

    def append_to(self) -> BinaryIO:
        """Open for appending, after the last whole line."""
        return appending(self.path)


def write_verdicts(file: BinaryIO, verdicts: Sequence[Verdict]) -> None:
    """Append verdicts, each on a line, and hand them to the system at once."""
    file.write(b"".join(sealed(msgspec.json.encode(verdict)) for verdict in verdicts))
    file.flush()
