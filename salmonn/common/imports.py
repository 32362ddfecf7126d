"""How the big libraries are imported: without work that is of no use then."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while PyTorch and what is built on it are imported, nor afterwards among what they hold.

    They leave next to none and hold 0.8 million objects; the interpreter looks through all of them again and again, and
    as it ends: 2 of a process's 8 s. What is there afterwards is never collected, so where PyTorch is loaded already,
    perhaps with models that are to go again, nothing is done.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def compiling_later() -> Iterator[None]:
    """Put `torch.compile` off to the first call of what it is asked to compile.

    peft imports bitsandbytes for any LLM, which has functions compiled that are not called: 1.3 s of each process.
    """
    import torch

    compile_now = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:  # of a decorator with options
            return partial(compile_later, **options)
        compiled = cache(partial(compile_now, function, **options))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now
