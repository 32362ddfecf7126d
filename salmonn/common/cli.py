"""What all commands share: how they end, what they are called, --cfg-path and --options."""

import difflib
import errno
import io
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn, TextIO, cast

from salmonn.common.errors import UserError
from salmonn.common.screen import Screen, printable
from salmonn.common.slurm import require_whole
from salmonn.common.version import __version__

_UNKNOWN = "unrecognized arguments: "  # how argparse begins
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # also by a quota, or by ulimit -f
# Of several ranks one speaks, and its launcher ends the others while they wait: rank 0 first, then
# the others, which may have the same to say; last who only noticed that another rank is gone.
_OTHERS_WAIT = 5  # s
_WITNESSES_WAIT = 15  # s
_LOOK = 1.0  # s between looks whether torchrun is still there
_ANSWER = 10.0  # s that its port has for an answer


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`: a `UserError` or a full disk is one message on stderr and exit code 2, Ctrl-C code 1.

    So are variables of a launcher that are no numbers (RANK=abc), whatever the command would do with them.
    Any other error is exit code 1; of several ranks the one that made it shows its traceback.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave shared cores to others
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer that a terminal has no letters for is shown all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _screen(sys.stdout, takes_bars=False), _screen(sys.stderr)
    try:
        require_whole(os.environ, joins=False)
        main()
        sys.stdout.flush()
    except UserError as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            tell("ended: nothing reads the output any more")
            sys.exit(1)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            _tell(f"error: the disk is full ({error}): make room; what was finished until then is kept")
            sys.exit(2)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _tell(f"error: {str(error.filename)[:60]}...: longer than the name of a file can be")
            sys.exit(2)
        if "RANK" not in os.environ:
            raise
        _tell(_lost_contact(error) or traceback.format_exc())
        sys.exit(1)


def _reader_is_gone() -> bool:
    """Whether nothing reads our output any more, as after `| head`; what would still be written then goes nowhere."""
    stdout = select.poll()
    stdout.register(1, 0)  # errors alone
    if not stdout.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def _screen(stream: TextIO, takes_bars: bool = True) -> TextIO:
    return stream if isinstance(stream, Screen) else cast(TextIO, Screen(stream, takes_bars))


def _end_with(launcher: int) -> None:
    """Once torchrun is gone, also by a kill of which it could tell nobody, end by SIGTERM: training saves first."""
    while os.getppid() == launcher and not _is_unanswered():
        time.sleep(_LOOK)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(2 * _LOOK)  # the one that tells looks first: in training the first signal ends all ranks
    else:
        with suppress(OSError):  # what torchrun's output went to may be gone, too
            tell("torchrun has ended: so do its processes here; a run in training saves first")
    os.kill(os.getpid(), signal.SIGTERM)


@cache  # asked once: from the first look on, another parent tells
def _is_unanswered() -> bool:
    """Whether torchrun was killed before this process could look whose child it is: its port is closed."""
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        socket.create_connection(address, timeout=_ANSWER).close()
    except ConnectionRefusedError:
        return True
    except (OSError, KeyError, ValueError):  # no word from there is no refusal
        return False
    return False


def _lost_contact(error: Exception) -> str:
    """What a rank says that lost another one, after waiting for that to speak itself; "" for an error of its own."""
    distributed = sys.modules.get("salmonn.common.distributed")  # not loaded: no contact was made
    return distributed.lost_contact(error, seconds=_WITNESSES_WAIT) if distributed else ""


def _tell(message: str) -> None:
    """Print the message; under torchrun hand it over, once where all ranks meet the same error.

    torchrun ends with a report of a screen's length and exit code 1 whatever a rank does. It prints
    the message of the rank that failed first as the last thing in it, where it is seen.
    """
    environment = os.environ
    if (environment.get("RANK") or environment.get("SLURM_PROCID", "0")).strip("0").isdigit():  # not the first
        time.sleep(_OTHERS_WAIT)
    handover = environment.get("TORCHELASTIC_ERROR_FILE")
    if not handover or _will_be_restarted():
        print(message, file=sys.stderr, flush=True)
    else:
        Path(handover).write_text(
            json.dumps({"message": printable(message), "timestamp": int(time.time())}), encoding="utf-8"
        )


def _will_be_restarted() -> bool:
    """Whether torchrun starts the ranks again: then it reports nothing."""
    counts = [os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS")]
    return all(map(str.isdecimal, counts)) and int(counts[0]) < int(counts[1])


def program_name() -> str:
    """The command as it was typed, for its usage: `python -m` leaves argparse with the name of a file."""
    spec = sys.modules["__main__"].__spec__
    if spec and spec.name.startswith("salmonn."):
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return Path(sys.argv[0]).name


class _Parser(ArgumentParser):
    """One that says which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix(_UNKNOWN).split() if message.startswith(_UNKNOWN) else []
        options = [option for action in self._actions for option in action.option_strings]
        meant = [name for one in unknown for name in difflib.get_close_matches(one.partition("=")[0], options, n=1)]
        super().error(message + (f" (did you mean {', '.join(meant)}?)" if meant else "") + self._form(message))

    def _form(self, message: str) -> str:
        """How an option of several values is written, where the message is about one."""
        action = self._option_string_actions.get(message.removeprefix("argument ").partition(":")[0])
        if action is None or not isinstance(action.metavar, tuple):
            return ""
        return f": write {' '.join((*action.option_strings, *action.metavar))} ({action.help})"


def command_parser(description: str) -> ArgumentParser:
    """What every command has: its description as it is written, --version, and a hint where an option is none."""
    parser = _Parser(prog=program_name(), description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"salmonn {__version__}")
    return parser


def argument_parser(description: str, default_cfg_path: str | None = None) -> ArgumentParser:
    """The options shared by the commands: --cfg-path, with a default of "" for those that go without, and --options."""
    parser = command_parser(description)
    parser.add_argument(
        "--cfg-path",
        required=default_cfg_path is None,
        default=default_cfg_path,
        metavar="FILE",
        help="YAML configuration"
        + (f" (default: {default_cfg_path})" if default_cfg_path else ", e.g. configs/stage1.yaml"),
    )
    parser.add_argument(
        "--options",
        nargs="*",  # none where a script has none to hand on
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set single keys of it, e.g. run.device=cpu model.ckpt=last.pth; python train.py --keys shows them all",
    )
    return parser


def asking_parser(description: str) -> ArgumentParser:
    """The options shared by the commands that ask a trained model: those of `argument_parser`, and --ckpt."""
    parser = argument_parser(description, default_cfg_path="configs/decode.yaml")
    parser.add_argument("--ckpt", default="", metavar="FILE", help="checkpoint, instead of the config's model.ckpt")
    return parser


def seed_number(text: str) -> int:
    """A seed, as the `type` of an argument. Raises ArgumentTypeError for what numpy takes for none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**32):
        raise ArgumentTypeError(f"{text[:40]}: a seed is a whole number from 0 to {2**32 - 1}")
    return int(text)


def at_least_one(text: str) -> int:
    """A number of things, as the `type` of an argument."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ArgumentTypeError(f"{text[:40]}: a whole number, 1 or more")
    return int(text)


def above_zero(text: str) -> float:
    """An amount, as the `type` of an argument."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise ArgumentTypeError(f"{text[:40]}: a number, more than 0")


def refuse_former(former: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Raise UserError for options of other trainers' command lines, {option: how it is said here}."""
    given = [option for option in former if any(one == option or one.startswith(f"{option}=") for one in arguments)]
    if given:
        lines = [f"{option}: {former[option]}" for option in given]
        raise UserError("\n  ".join(["these options have another form here (docs/migrating.md):", *lines]))


def tell_wait(what: str) -> None:
    """What takes the next seconds, to the person at a terminal; what is kept in a file is as if nothing was said."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        tell(f"{what} ...")


def tell(message: str) -> None:
    """To the person, not to a program that reads the answers."""
    print(message, file=sys.stderr, flush=True)
