"""The model's repeated blocks compiled in place, by option; where the compiler fails, they run as they are.

Only blocks, never the whole model: blocks of a kind share what is compiled, and parameters keep their names.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from salmonn.common.errors import BROKEN, reason
from salmonn.config.loading import llm_quantization
from salmonn.model.llm import quantised_by

if TYPE_CHECKING:  # it says which blocks it has
    from salmonn.model.salmonn import SALMONN

logger = logging.getLogger(__name__)

Backend = str | Callable[..., Any]  # of torch.compile

NOTHING = "run.compile = True, but nothing can be compiled here, so nothing is: {}"

# Versions that all blocks together may have: with and without gradients, for one clip and for several, for each number
# of parts in which BEATs attends (6 for 30 s). Whatever needs more runs as it is, and torch says so.
MAX_VERSIONS = 64


class Stack(NamedTuple):
    """Blocks of one kind."""

    name: str
    blocks: Sequence[nn.Module]
    dynamic: bool | None  # True: made for any length at once; None: for one length, until another comes


def repeated_blocks(model: "SALMONN") -> list[Stack]:
    """The layers of both encoders, of the Q-Former and of the LLM unless it is quantised.

    Each 8-bit layer would be a version of its own; nf4 layers give other gradients under AMP when they are compiled.
    """
    llm: list[nn.Module] = []
    if llm_quantization(model.config) == "none" and not quantised_by(model.llama_model.config):
        llm = [module for module in model.llama_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [
        Stack("Whisper", [*model.speech_encoder.layers], dynamic=None),  # it always hears the same length
        Stack("BEATs", [] if model.beats is None else [*model.beats.encoder.layers], dynamic=True),
        Stack("the Q-Former", [*model.connector.speech_Qformer.bert.encoder.layer], dynamic=True),
        Stack("the LLM", llm, dynamic=True),
    ]


def compile_blocks(model: "SALMONN", device: torch.device, backend: Backend = "inductor") -> bool:
    """Have each repeated block compiled as soon as it runs; returns False where no compiler works.

    A compiler that does not work here gives one warning, one that fails for the blocks of a kind gives one for these;
    they run as they are then.
    """
    import torch._functorch.config

    # Else the backward pass is compiled when it runs, where a failure would end the training.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VERSIONS)
    if problem := compiler_problem(device, backend):
        logger.warning(NOTHING.format(problem))
        return False
    stacks = [stack for stack in repeated_blocks(model) if stack.blocks]
    for stack in stacks:
        _compile(stack, backend)
    names = ", ".join(stack.name for stack in stacks)
    logger.info("compiling the layers of %s: first steps take longer, as does a first batch of one clip", names)
    return True


def compiler_problem(device: torch.device, backend: Backend = "inductor") -> str:
    """Why a small function and its gradient cannot be compiled for this device; "" where they can."""

    def norm(x: Tensor) -> Tensor:
        return (x * x).sum().sqrt()

    try:
        torch.compile(norm, backend=backend, dynamic=True)(torch.ones(8, device=device, requires_grad=True)).backward()
    except BROKEN as error:
        return _says(error)
    return ""


def _says(error: Exception) -> str:
    """What the compiler says, without its advice to those who would mend it."""
    return reason(error).partition("\nSet TORCHDYNAMO_VERBOSE")[0]


def _compile(stack: Stack, backend: Backend) -> None:
    """Compile the blocks of a kind; when the compiler fails for one of them, all run as they are."""

    def or_plain(block: nn.Module, compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:  # of the compiler: nothing has been computed yet
                logger.warning("the layers of %s cannot be compiled and run as they are: %s", stack.name, _says(error))
            for each in stack.blocks:
                each._compiled_call_impl = None
            return block(*args, **kwargs)

        return call

    for block in stack.blocks:
        compiled = torch.compile(block._call_impl, backend=backend, dynamic=stack.dynamic)  # as Module.compile does
        block._compiled_call_impl = or_plain(block, compiled)
