"""Whether there can be a usable GPU, told without PyTorch, which takes seconds to load."""

import ctypes
from contextlib import suppress
from pathlib import Path

from salmonn.common.errors import UserError

_DRIVERS = ("libcuda.so.1", "/dev/kfd")  # NVIDIA's as PyTorch looks for it, and AMD's


def no_gpu(device: str) -> UserError:
    """The error about a `run.device` that is a GPU where none can be used, to be raised."""
    return UserError(f"run.device = {device}, but this machine has no usable GPU; run.device=cpu goes without")


def require_driver(device: str) -> None:
    """Raise UserError where `run.device` is a GPU and no driver is there; with one PyTorch can tell more."""
    library, file = _DRIVERS
    if not device.startswith("cuda") or Path(file).exists():
        return
    with suppress(OSError):
        ctypes.CDLL(library)
        return
    raise no_gpu(device)
