"""An LLM of which each rank holds a share of every block (FSDP2), for models that one card cannot hold.

A block is whole for as long as it computes, in the forward pass and again in the backward pass; the ranks of a machine
put it together at the same time. The machines have it once each: their links are too slow to gather it twice a
micro-batch, and what is frozen need not be averaged. Embeddings, vocabulary and whatever is trained stay whole on every
rank.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.model.llm import quantised_by

logger = logging.getLogger(__name__)


ALONE = "run.shard_llm = True, but this is one process: it holds the whole LLM (torchrun starts several)"


def is_shared(shard_llm: bool) -> bool:
    """Whether `run.shard_llm` is asked for and there are processes to share with; a warning where there are none."""
    if shard_llm and distributed.world_size() == 1:
        logger.warning(ALONE)
    return shard_llm and distributed.world_size() > 1


def shard_blocks(llm: PreTrainedModel, device: torch.device) -> None:
    """Leave this rank its share of the blocks' frozen weights, on the device; a block at a time goes there whole.

    Raises UserError for an LLM whose blocks are not known or whose own files are quantised.
    """
    how, blocks = quantised_by(llm.config), _blocks(llm)
    if how or not blocks:
        what = f"is quantised by {how}, and has no weights" if how else "has no layers"
        raise UserError(
            f"run.shard_llm = True, but {type(llm).__name__} {what} that can be shared: use plain weights of it, with "
            "model.llm_quantization=int8 for 8 bits"
        )
    together = distributed.n_together()
    machines = distributed.world_size() // together
    mesh = init_device_mesh(device.type, (machines, together), mesh_dim_names=("machines", "ranks"))["ranks"]
    trained = {p for p in llm.parameters() if p.requires_grad}
    for block in blocks:
        for parameter in block.parameters():
            # the library makes parameters that could have gradients, which int8 cannot: the same bytes as floats
            if parameter.dtype == torch.int8:
                parameter.data = parameter.data.view(torch.float8_e4m3fn)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    # the blocks' common root, so that one is fetched while the one before computes; nothing of its own is shared
    fully_shard(llm.get_decoder(), mesh=mesh, ignored_params={*llm.parameters()})
    logger.info("each of %d processes holds its share of %d blocks of the LLM", together, len(blocks))


def is_sharded(model: nn.Module) -> bool:
    """Whether a part of the model is shared among the ranks."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def lending(llm: PreTrainedModel) -> Iterator[None]:
    """Inside, ranks may run a sharded LLM as often as each likes; one that has left lends its share until all have.

    Without gradients. Ranks must not agree on anything else inside.
    """
    if not is_sharded(llm):
        yield
        return

    def tell(*_: object) -> None:
        distributed.any_rank(True)

    handle = _blocks(llm)[0].register_forward_pre_hook(tell, prepend=True)  # before the block is put together
    try:
        yield
    finally:
        handle.remove()
    embeddings = llm.get_input_embeddings().weight
    nothing = torch.zeros(1, 1, embeddings.shape[1], dtype=embeddings.dtype, device=embeddings.device)
    while distributed.any_rank(False)[0]:
        with torch.no_grad():
            llm.get_decoder()(inputs_embeds=nothing, use_cache=False)


def _blocks(llm: PreTrainedModel) -> list[nn.Module]:
    return [module for module in llm.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
