"""Commands in processes of their own that need not import PyTorch first: forked from one that has done so.

A cold start costs 7 s of a core, and the tests start some two hundred. Arguments, environment, working directory,
output and exit code are a command's own, as ever; tests of signals, of kills and of torchrun use `subprocess`.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

PRELOADED = ["salmonn.runner", "salmonn.evaluation.runner", "salmonn.chat", "torch.distributed.run"]
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float, ranks: int = 1
) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` (a script or -m MODULE) to its end, as one process or as ranks of a group.

    The exit code is that of the first rank that failed. Raises subprocess.TimeoutExpired.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        context = _forkserver(env)
        processes = []
        for rank, place in enumerate(_places(ranks)):
            files = (f"{folder}/out{rank}", f"{folder}/err{rank}")
            processes.append(context.Process(target=_become, args=(list(arguments), str(cwd), {**env, **place}, files)))
            processes[-1].start()
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        out, err = (_joined(Path(folder), kind) for kind in ("out", "err"))
        if any(process.is_alive() for process in processes):
            for process in processes:
                process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess(arguments, code, out, err)


def _joined(folder: Path, kind: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{kind}*")))


def _places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank; nothing for a process alone."""
    if ranks == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _forkserver(env: Mapping[str, str]) -> multiprocessing.context.ForkServerContext:
    """Where to fork from; what PyTorch reads as it is imported is that of the first command."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(env)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _become(arguments: list[str], cwd: str, env: dict[str, str], files: tuple[str, str]) -> None:
    """Be the command from here on."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, _WRITE, 0o600), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for folder in reversed(env.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, folder)
    try:
        _run(arguments, cwd)
        code = 0
    except SystemExit as end:
        code = end.code
    sys.exit(code)  # only now: as at a process's own end, what the command held has been let go


def _run(arguments: list[str], cwd: str) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, cwd)
        sys.modules.pop(arguments[1], None)  # runpy warns about a module that is there already
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")
