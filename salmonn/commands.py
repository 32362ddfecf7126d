"""The commands as an installation has them (pyproject.toml, scripts): each module's `main` with its exit codes.

Nothing heavy loads before a command is chosen and its command line read.
"""

from salmonn.common.cli import run_cli


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


def serve() -> None:
    """salmonn-serve, and python -m salmonn.serve."""
    from salmonn.serve.__main__ import main

    run_cli(main)


def doctor() -> None:
    """salmonn-doctor, and python -m salmonn.doctor."""
    from salmonn.doctor.__main__ import main

    run_cli(main)
