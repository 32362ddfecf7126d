"""What people read while a command runs: our messages, without the libraries' small talk."""

import logging
import os
import warnings


def setup_logging() -> None:
    """Messages of rank 0 at INFO, of the other ranks only what is wrong; the libraries' small talk is left out."""
    import transformers

    is_main = int(os.environ.get("RANK", 0)) == 0  # the processes may not have joined yet
    level = logging.INFO if is_main else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=level, force=True)
    for chatty in ("httpx", "urllib3", "matplotlib", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # on its way out of transformers 5, without a successor in early releases
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
