"""What a person did wrong, told once and clearly: exit code 2, no traceback."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Bad input: the message names the file, key or entry, what is wrong and what to do."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`: a `UserError` is one message on stderr and exit code 2, Ctrl-C exit code 1."""
    try:
        main()
    except UserError as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(1)


def _tell(message: str) -> None:
    """Print the message; under torchrun hand it over, once where all ranks meet the same error.

    torchrun ends with a report of a screen's length and exit code 1 whatever a rank does. It prints
    the message of the rank that failed first as the last thing in it, where it is seen.
    """
    handover = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not handover:
        print(message, file=sys.stderr, flush=True)
        return
    if int(os.environ.get("RANK", 0)) > 0:
        time.sleep(10)  # rank 0 goes first; if it has the same to say, torchrun ends this rank meanwhile
    Path(handover).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
