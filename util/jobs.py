"""Jobs of several parts: commands with their output in view, notes of what is done, configs moved elsewhere."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any

from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.common.files import read_json
from salmonn.config.keys import known_keys
from salmonn.config.loading import load_config

ROOT = Path(__file__).resolve().parent.parent  # where all of it is done
# Waiting threads must not spin where cores are shared; local model folders must not be looked up online.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def talks(config: str, options: Sequence[str]) -> list[str]:
    """The commands that talk to a model that was made, as they are typed."""
    more = f" --options {shlex.join(options)}" if options else ""
    activate = ROOT / ".venv/bin/activate"  # as `make` installs; elsewhere the reader has chosen the Python
    into = [f"  source {activate.relative_to(ROOT)}"] if activate.exists() else []
    return [*into, *(f"  python -m salmonn.{name} --cfg-path {config}{more}" for name in ("chat", "web"))]


def require_installed(names: Sequence[str]) -> None:
    """Raise UserError where packages are not there that few need."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)}: not installed. pip install -r requirements-small.txt brings it")


def seen_from_root(text: str) -> Path:
    """The `type` of an argument: a path from where the user stands, as it is called in the project's folder."""
    path = Path(os.path.abspath(text))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def run_command(title: str, command: Sequence[str], processes: int = 1) -> tuple[float, int]:
    """Run a script of the project; returns its seconds and its exit code."""
    shown, launcher = "python", [sys.executable]
    if processes > 1:
        arguments = ["--standalone", f"--nproc_per_node={processes}"]
        shown, launcher = shlex.join(["torchrun", *arguments]), [*launcher, "-m", "torch.distributed.run", *arguments]
    print(f"\n=== {title}\n$ {shown} {shlex.join(command)}\n", flush=True)
    seconds, [code] = _run([[*launcher, *command]], [None], {**allocator(), **_environment(processes)})
    return seconds, code


def run_at_once(title: str, commands: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Run scripts beside each other, a share of the cores each; returns the seconds of all and the first code not 0.

    The first has its output in view, that of the others follows when all have ended.
    """
    print(f"\n=== {title}\n" + "".join(f"$ python {shlex.join(command)}\n" for command in commands), flush=True)
    with ExitStack() as stack:
        outputs = [stack.enter_context(TemporaryFile()) for _ in commands[1:]]
        ours = [[sys.executable, *command] for command in commands]
        seconds, codes = _run(ours, [None, *outputs], _environment(len(commands)))
        for output in outputs:
            output.seek(0)
            sys.stdout.write(output.read().decode(errors="replace"))
    return seconds, next((code for code in codes if code), 0)


def _run(
    commands: Sequence[Sequence[str]], outputs: Sequence[IO[bytes] | None], environment: dict[str, str]
) -> tuple[float, list[int]]:
    """Seconds of all and the exit code of each. Raises KeyboardInterrupt, when all have ended, if it was to stop.

    What asks this process to stop goes on to its children, who know how to end well. They are a group of their own, or
    Ctrl-C would come to them twice.
    """
    processes: list[subprocess.Popen] = []
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    started = time.monotonic()
    try:
        for command, output in zip(commands, outputs, strict=True):
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, process_group=0))
        codes = [process.wait() for process in processes]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    return round(time.monotonic() - started, 1), codes


def _environment(shares: int) -> dict[str, str]:
    """Of a process that has a share of the cores."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // shares))} if shares > 1 else {}
    return {**os.environ, **ENVIRONMENT, **threads}


def allocator() -> dict[str, str]:
    """Environment in which oneTBB's malloc takes the place of glibc's, where the package `tbb` is installed.

    Clips of many lengths leave free blocks of many sizes, and glibc looks through those of half a megabyte and more one
    by one: after some minutes of training on a CPU that is a quarter of its time (docs/performance_history.md). Answers
    take a tenth longer with oneTBB's, which gives memory back that is asked for at once.
    """
    # the second asks for the first by its name alone
    libraries = [Path(sys.prefix) / "lib" / f"lib{name}.so.2" for name in ("tbbmalloc", "tbbmalloc_proxy")]
    return {"LD_PRELOAD": ":".join(map(str, libraries))} if all(library.exists() for library in libraries) else {}


def read_note(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """What a job has noted of its parts, with values of these kinds; {} before the first is done.

    Raises UserError for a note that is damaged.
    """
    if not path.exists():
        return {}
    note = read_json(path)
    if not (isinstance(note, dict) and all(isinstance(note.get(key), kind) for key, kind in kinds.items())):
        raise UserError(f"{path} is damaged: remove it, and what is done is done again")
    return note


def moved(config_path: str, default_out: str, out: str) -> list[str]:
    """Options that let a config, made for the folder `default_out`, work in `out`; none where they are the same."""
    if Path(out) == Path(default_out):
        return []
    config = load_config(config_path)
    values = {key: OmegaConf.select(config, key) for key in known_keys()}
    inside = {k: v for k, v in values.items() if isinstance(v, str) and f"{v}/".startswith(f"{default_out}/")}
    return [f"{key}={out}{value.removeprefix(default_out)}" for key, value in inside.items()]
