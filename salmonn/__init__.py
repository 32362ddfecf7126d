"""SALMONN: a language model that hears speech, audio events and music."""

import getpass
import os
from typing import TYPE_CHECKING, Any

from salmonn.common.version import __version__

if TYPE_CHECKING:
    from salmonn.model.salmonn import SALMONN

try:
    getpass.getuser()
except (KeyError, OSError):  # containers run under numbers without a name, and then PyTorch cannot be imported
    os.environ["USER"] = str(os.getuid())

__all__ = ["SALMONN", "__version__"]


def __getattr__(name: str) -> Any:
    # `import salmonn` stays light: torch and transformers load on first use of the model.
    if name == "SALMONN":
        from salmonn.model.salmonn import SALMONN

        return SALMONN
    raise AttributeError(f"module 'salmonn' has no attribute {name!r}")
