"""What a person did wrong, told once and clearly: exit code 2, no traceback."""

import os
import sys
import time
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message names the file, key or entry, what is wrong and what to do."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one message on stderr and exit code 2.

    Under torchrun every rank meets the same error: rank 0 tells it, the others wait for
    torchrun to end them, so that the message is neither repeated nor cut off.
    """
    try:
        main()
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(5)
        sys.exit(2)
