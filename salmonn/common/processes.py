"""Calls in processes of their own, which may die without taking this one along.

Each is a new interpreter, none a fork: a fork copies the locks that other threads hold at that moment (a progress
bar's, a log's, those of libraries), and nobody in it ever lets go of them. What goes to and fro passes through a
socket that each process has for itself: /dev/shm, of which containers have little, is not used, and nothing is shared
that a process could hold while it dies.
"""

import io
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any, BinaryIO, TextIO, cast

from salmonn.common.errors import UserError
from salmonn.common.files import OpenFile
from salmonn.common.screen import Screen

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SECONDS_TO_DIE = 5.0  # after which the system holds a process, as when a network drive does not answer

_Part = bytes | bytearray | memoryview


def in_processes(function: Callable, arguments: Iterable[tuple], jobs: int = 0) -> Iterator[tuple[tuple, Any]]:
    """Yield (arguments, result) of calls in parallel processes as they end; result None where the process died.

    `function` goes to each process once, and what it holds stays there from call to call; what it raises is
    raised. Left early, calls that have not begun are not made. `jobs` 0 is one per core. Raises UserError where
    processes cannot be started.
    """
    todo, parcel = iter(arguments), Parcel(function)
    workers: list[Worker] = []
    running: dict[int, tuple[Worker, tuple]] = {}  # by what tells that an answer is there

    def hand_out(worker: Worker | None = None) -> None:
        if (args := next(todo, None)) is not None:
            if worker is None:
                workers.append(worker := Worker(parcel, quiet=True))
            running[worker.fileno()] = worker, args
            worker.send(*args)

    try:
        for _ in range(jobs or n_cores()):
            hand_out()
        while running:
            answered = wait(list(running))
            for ready in [number for number in running if number in answered]:
                (worker, args), result = running.pop(ready), None
                try:
                    result = worker.receive()
                    hand_out(worker)
                except DiedError:
                    hand_out()
                yield args, result
    finally:
        for worker in workers:
            worker.finish()


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- this side


class DiedError(Exception):
    """A process ended by itself; its text says how, `signal` is 0 where none ended it."""

    def __init__(self, code: int | None) -> None:
        self.signal = -code if code and code < 0 else 0
        names = {number.value: number.name for number in signal.Signals}
        by_signal = f"was killed by signal {names.get(self.signal, self.signal)}"
        super().__init__(by_signal if self.signal else f"ended with exit code {code}")


class Parcel:
    """A function for processes, in a file without a name: they map its arrays, and share them.

    Files that it has open (`OpenFile`) go along as they are.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Pack it. Raises UserError where there is no room."""
        self.function = function  # whose files stay open as long
        with io.BytesIO() as data:
            buffers: list[pickle.PickleBuffer] = []
            pickler = _Pickler(data, protocol=5, buffer_callback=buffers.append)
            pickler.dump(function)
            parts: list[_Part] = [data.getvalue(), *(buffer.raw() for buffer in buffers)]
        self.descriptors = pickler.descriptors
        try:
            self.file = _nameless_file()
            self.file.writelines([_header(parts), *parts])
            self.file.flush()
        except OSError as error:
            raise UserError(f"no room for what processes are to do: {error}") from error


class Worker:
    """A process that answers calls of a function, in the order in which they are sent.

    It works on one core, leaves Ctrl-C and SIGTERM to this process, and ends with it however that ends.
    """

    def __init__(self, parcel: Parcel, quiet: bool = False) -> None:
        """Start it, without waiting. `quiet`: what libraries write to stderr is dropped. Raises UserError."""
        folders = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        code = "from salmonn.common.processes import serve; serve()"
        try:
            self._socket, theirs = socket.socketpair()
            with theirs, _signals_held_back():
                descriptors = (theirs.fileno(), parcel.file.fileno())
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code, *map(str, descriptors), "quiet" if quiet else ""],
                    env={**os.environ, **_ONE_CORE, "PYTHONPATH": folders},
                    stdin=subprocess.DEVNULL,
                    pass_fds={*descriptors, *parcel.descriptors},
                )
        except OSError as error:  # no memory, too many open files
            raise UserError(f"no process can be started here: {error}") from error
        self.pid, self._has_begun = self._process.pid, False

    def fileno(self) -> int:
        """What becomes readable when there is something to receive."""
        return self._socket.fileno()

    def send(self, *arguments: Any) -> None:
        """Ask for a call; whether the process still lives, `receive` tells."""
        with suppress(OSError):
            _send(self._socket, _packed(arguments))

    def receive(self) -> Any:
        """The answer to the first call that has none yet.

        Raises what the call raised, and DiedError when the process has ended; UserError where it could not begin.
        """
        try:
            while True:
                answer, error = _unpacked(_receive(self._socket))
                if error:
                    raise error
                if self._has_begun:
                    return answer
                self._has_begun = True
        except EOFError:
            kill_all([self])
            self._socket.close()
            died = DiedError(self._process.returncode)
            if self._has_begun:
                raise died from None
            raise UserError(f"a process of {sys.executable} could not begin its work: it {died}") from None

    def finish(self) -> None:
        """Wait until all that was asked is done, and let the process end."""
        with suppress(OSError):
            _send(self._socket, _packed(None))
        self._process.wait()
        self._socket.close()

    def kill(self) -> None:
        """End the process at once, whatever it does; a thread that waits for its answer gets DiedError."""
        self._process.kill()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for the end of a process that was killed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


def kill_all(workers: Iterable[Worker]) -> None:
    """End processes at once, and wait until they have ended; not long for those that the system holds."""
    workers = list(workers)
    for worker in workers:
        worker.kill()
    deadline = time.monotonic() + _SECONDS_TO_DIE
    for worker in workers:
        worker.wait(max(0, deadline - time.monotonic()))


def _nameless_file() -> BinaryIO:
    """In memory where the system has that: the temporary folder may be full, or not be there."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("salmonn"), "w+b")
    return tempfile.TemporaryFile()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that starts here hears no Ctrl-C and no SIGTERM until it can ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- the other side


def serve() -> None:
    """What a process does: take the function, then answer calls until there are no more or nobody asks any more."""
    connection, parcel, quiet = sys.argv[1:]
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    asking = socket.socket(fileno=int(connection))
    try:
        mapped = memoryview(mmap.mmap(int(parcel), 0, prot=mmap.PROT_READ))
        parts = _parts_of(mapped)
        function = _Unpickler(io.BytesIO(parts[0]), buffers=parts[1:]).load()
        begun = _packed((None, None))
    except Exception as error:
        begun = _failed(error)
    _send(asking, begun)
    sys.stdout, sys.stderr = cast(TextIO, Screen(sys.stdout, takes_bars=False)), cast(TextIO, Screen(sys.stderr))
    if quiet:  # decoders write their complaints to stderr, where a result says it better
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    calls: SimpleQueue[list[_Part]] = SimpleQueue()
    threading.Thread(target=_take_calls, args=(asking, calls), daemon=True).start()
    while True:
        try:
            if (arguments := _unpacked(calls.get())) is None:
                return
            answer = _packed((function(*arguments), None))
        except Exception as error:
            answer = _failed(error)
        try:
            _send(asking, answer)
        except OSError:
            return  # nobody waits for it


def _take_calls(asking: socket.socket, calls: "SimpleQueue[list[_Part]]") -> None:
    """Pass on what is asked; when the asking process is gone, end this one in the middle of whatever it does."""
    with suppress(EOFError):
        while True:
            calls.put(_receive(asking))
    os._exit(1)


def _failed(error: Exception) -> list[_Part]:
    """The answer of a call that raised; the traceback goes along in words."""
    text = "".join(traceback.format_exception(error))
    error.add_note(f"(in a process of its own)\n{text}")
    try:
        packed = _packed((None, error))
        _unpacked(packed)
    except Exception:  # an error that does not survive the journey
        return _packed((None, RuntimeError(text)))
    return packed


# ---- messages: the number of the parts, their lengths, the parts; the first is a pickle, the others its arrays

_NUMBER = struct.Struct("!Q")


class _Pickler(pickle.Pickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.descriptors: set[int] = set()

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, OpenFile):
            return None
        self.descriptors.add(value.fileno())
        return value.fileno()


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files: dict[int, OpenFile] = {}

    def persistent_load(self, descriptor: int) -> OpenFile:
        if descriptor not in self.files:
            self.files[descriptor] = OpenFile(descriptor)
        return self.files[descriptor]


def _packed(value: Any) -> list[_Part]:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [data, *(buffer.raw() for buffer in buffers)]


def _unpacked(parts: Sequence[_Part]) -> Any:
    return pickle.loads(parts[0], buffers=parts[1:])


def _header(parts: Sequence[_Part]) -> bytes:
    return _NUMBER.pack(len(parts)) + b"".join(_NUMBER.pack(len(part)) for part in parts)


def _send(connection: socket.socket, parts: Sequence[_Part]) -> None:
    for part in (_header(parts), *parts):
        connection.sendall(part)


def _receive(connection: socket.socket) -> list[_Part]:
    """The parts of a message, each in memory that may be written to. Raises EOFError when nobody is there any more."""
    return _parts(lambda size: _exactly(connection, size))


def _parts_of(message: memoryview) -> list[_Part]:
    """The parts of a message in memory."""
    position = 0

    def take(size: int) -> memoryview:
        nonlocal position
        position += size
        return message[position - size : position]

    return _parts(take)


def _parts(take: Callable[[int], _Part]) -> list[_Part]:
    (n,) = _NUMBER.unpack(take(_NUMBER.size))
    lengths = [_NUMBER.unpack(take(_NUMBER.size))[0] for _ in range(n)]
    return [take(length) for length in lengths]


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        try:
            got = connection.recv_into(left, flags=socket.MSG_WAITALL)  # one call, however many pieces come
        except OSError as error:  # reset, or closed on this side
            raise EOFError from error
        if not got:
            raise EOFError
        left = left[got:]
    return data
