"""The commands as an installation has them (pyproject.toml, scripts): each module's `main` with its exit codes.

Nothing heavy loads before a command is chosen and its command line read.
"""

import sys
from pathlib import Path

from salmonn.common.errors import run_cli


def program_name() -> str:
    """The command as it was typed, for its usage: `python -m` leaves argparse with the name of a file."""
    spec = sys.modules["__main__"].__spec__
    if spec and spec.name.startswith("salmonn."):
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return Path(sys.argv[0]).name


def train() -> None:
    """salmonn-train, and train.py."""
    from salmonn.training.command import main

    run_cli(main)


def evaluate() -> None:
    """salmonn-evaluate, and evaluate.py."""
    from salmonn.evaluation.command import main

    run_cli(main)


def chat() -> None:
    """salmonn-chat, and python -m salmonn.chat."""
    from salmonn.chat import main

    run_cli(main)


def web() -> None:
    """salmonn-web, and python -m salmonn.web."""
    from salmonn.web.__main__ import main

    run_cli(main)


def doctor() -> None:
    """salmonn-doctor, and python -m salmonn.doctor."""
    from salmonn.doctor.__main__ import main

    run_cli(main)
