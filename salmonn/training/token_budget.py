"""How many tokens of the LLM and clips a micro-batch may have: a number, or measured on the GPU."""

import logging
import math
import sys

import torch
from omegaconf import DictConfig

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common import distributed
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.model.salmonn import SALMONN
from salmonn.training.token_batches import Budget, input_lengths

logger = logging.getLogger(__name__)

_USED = 0.9  # of the memory that is free: the allocator does not place everything without gaps
_ROWS = (1, 3)  # whose peaks are measured
_BYTES_LATER = 12  # of each trained parameter: AdamW's moments and DDP's buckets, which come with the first step


def token_budget(model: SALMONN, run: DictConfig, device: torch.device) -> Budget | None:
    """Of a micro-batch, by `run.batch_tokens` and `run.batch_seconds`; None: `run.batch_size_train` clips, as loaded.

    `auto`: as many tokens as the memory of the fullest GPU takes. Raises UserError where not even one clip fits.
    """
    if not run.batch_tokens:
        return None
    clips = max(1, int(run.batch_seconds / model.max_seconds)) if run.batch_seconds else sys.maxsize
    if run.batch_tokens != "auto":
        return Budget(int(run.batch_tokens), clips)
    tokens = min(distributed.gather_objects(_measured(model, run, device)))
    if tokens == 0:
        raise UserError(
            "run.batch_tokens = auto: not even the longest clip fits into the memory of the GPU "
            "(model.gradient_checkpointing, model.llm_quantization and run.shard_llm need less)"
        )
    logger.info("run.batch_tokens = auto: %d tokens fit; a run that is to be repeated names the number", tokens)
    return Budget(tokens, clips)


def _measured(model: SALMONN, run: DictConfig, device: torch.device) -> int:
    """Of two peaks in a straight line; 0 where one clip needs more memory than there is."""
    model.train()
    try:
        few, more = (_peak(model, run, device, n) for n in _ROWS)
    except torch.OutOfMemoryError:
        return 0
    finally:
        model.zero_grad(set_to_none=True)
    per_row = (more - few) / (_ROWS[1] - _ROWS[0])
    later = _BYTES_LATER * sum(p.numel() for p in model.parameters() if p.requires_grad)
    there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    rows = math.floor((_USED * there - later - few) / per_row) + _ROWS[0]
    logger.debug("a clip: %.2f GB, one alone: %.1f GB, there: %.1f GB", per_row / GB, few / GB, there / GB)
    return max(0, rows) * longest_input(model)


def _peak(model: SALMONN, run: DictConfig, device: torch.device, n: int) -> int:
    """Bytes that forward and backward of `n` clips need at most, weights included."""
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(run, device):
        loss = model(longest_clips(model, n))["loss"]
    loss.backward()
    return torch.cuda.max_memory_allocated(device)


def longest_input(model: SALMONN) -> int:
    """Tokens of the LLM's input for the longest clip."""
    clip = longest_clips(model, 1)
    return input_lengths(model, [clip["raw_wav"].shape[1]], clip.get("prompts"), clip["text"])[0]


def longest_clips(model: SALMONN, n: int) -> Samples:
    """Clips of all that Whisper hears, the longest prompt and a target of `model.max_txt_len` tokens."""
    samples = round(model.max_seconds * SAMPLE_RATE)
    prompts = [prompt for pool in model.train_prompts.values() for prompt in pool]
    clips: Samples = {
        "raw_wav": torch.randn(n, samples) / 10,
        "padding_mask": torch.zeros(n, samples, dtype=torch.bool),
        "text": [" a" * model.config.max_txt_len] * n,
        "task": ["asr"] * n,
    }
    if prompts:
        clips["prompts"] = [max(prompts, key=len)] * n
    return clips
