"""How many tokens of the LLM and clips a micro-batch may have: a number, or measured on the GPU."""

import logging
import math
import sys
from collections.abc import Callable, Sequence

import torch
from omegaconf import DictConfig

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common import distributed
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.common.screen import counted
from salmonn.model.salmonn import SALMONN
from salmonn.training.progress import Progress
from salmonn.training.token_batches import Budget, input_lengths

logger = logging.getLogger(__name__)

_USED = 0.9  # of the memory that is free: the allocator does not place everything without gaps
_BYTES_LATER = 12  # of each trained parameter: AdamW's moments and DDP's buckets, which come with the first step
_OF_THE_MEMORY = ("model.", "run.amp", "run.compile", "run.optims.muon")  # settings by which what fits is another


def token_budget(
    model: SALMONN, run: DictConfig, device: torch.device, progress: Progress, changes: Sequence[str] = ()
) -> Budget | None:
    """Of a micro-batch, by `run.batch_tokens` and `run.batch_seconds`; None: `run.batch_size_train` clips, as loaded.

    `auto`: as many tokens and clips as the memory of the fullest GPU takes. `progress` keeps them for a run that goes
    on; on another kind of GPU, or where the configuration's `changes` concern what fits, they are measured anew. Raises
    UserError where not even one clip fits.
    """
    if not run.batch_tokens:
        return None
    clips = max(1, int(run.batch_seconds / model.max_seconds)) if run.batch_seconds else sys.maxsize
    if run.batch_tokens != "auto":
        return Budget(int(run.batch_tokens), clips)
    gpus = ", ".join(sorted(set(distributed.gather_objects(_kind(device)))))
    if progress.measured.get("gpus") != gpus or any(change.startswith(_OF_THE_MEMORY) for change in changes):
        progress.measured = {"gpus": gpus, **_least(_measured(model, run, device))._asdict()}
    tokens, fitting = progress.measured["tokens"], progress.measured["clips"]
    seconds = math.ceil(fitting * model.max_seconds)
    logger.info(
        "run.batch_tokens = auto: at most %d tokens and %s fit (%s): what run.batch_tokens=%d run.batch_seconds=%d say",
        tokens, counted(fitting, "clip"), gpus, tokens, seconds,
    )  # fmt: skip
    return Budget(tokens, min(clips, fitting))


def _kind(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / GB:.0f} GB"


def _least(measured: Budget | None) -> Budget:
    """Of what all ranks have measured; None: not one clip fits."""
    found = [budget for budget in distributed.gather_objects(measured) if budget]
    if len(found) < distributed.world_size():
        raise UserError(
            "run.batch_tokens = auto: not even the longest clip fits into the memory of the GPU "
            "(model.gradient_checkpointing and model.llm_quantization need less, so does run.shard_llm with a number)"
        )
    return Budget(min(budget.tokens for budget in found), min(budget.clips for budget in found))


def _measured(model: SALMONN, run: DictConfig, device: torch.device) -> Budget | None:
    """What fits on this GPU; None: not one clip."""
    model.train()
    cache, model.encoder_cache = model.encoder_cache, None  # noise is not to be kept, and the encoders need memory
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)  # as they are there from a step's second micro-batch on
        return _fitting(model, run, device, _BYTES_LATER * sum(p.numel() for p in trained))
    finally:
        model.zero_grad(set_to_none=True)
        model.encoder_cache = cache


def _fitting(model: SALMONN, run: DictConfig, device: torch.device, later: int) -> Budget | None:
    """By the peaks of one clip and of three, of the longest texts and of the shortest, all behind as much audio.

    As many clips as fit where their texts are half-way between these two, and as many tokens as those have. Within both
    bounds no others need more, where what a clip needs follows its tokens in a line that is straight or bends upwards.
    """
    kinds = (max, min)
    long, short = (input_tokens(model, of) for of in kinds)
    there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        alone = [_peak(model, run, device, probe_clips(model, 1, of)) for of in kinds]
    except torch.OutOfMemoryError:
        return None
    if max(alone) + later > there:
        return None
    try:
        three = [_peak(model, run, device, probe_clips(model, 3, of)) for of in kinds]
    except torch.OutOfMemoryError:
        return Budget(long, clips=1)
    of_long, of_short = ((more - one) / 2 for more, one in zip(three, alone, strict=True))
    room = _USED * there - later - max(alone[0] - of_long, alone[1] - of_short)
    logger.debug("a clip: %.2f to %.2f GB, room for them: %.1f GB", of_short / GB, of_long / GB, room / GB)
    clips = room / ((of_long + of_short) / 2)
    tokens = min(clips * (long + short) / 2, room / of_long * long)  # the second one where attention needs the most
    return Budget(int(tokens), int(clips)) if clips >= 1 else Budget(long, clips=1)


def _peak(model: SALMONN, run: DictConfig, device: torch.device, clips: Samples) -> int:
    """Bytes that forward and backward of the clips need at most, weights included."""
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(run, device):
        loss = model(clips)["loss"]
    loss.backward()
    return torch.cuda.max_memory_allocated(device)


def input_tokens(model: SALMONN, of: Callable = max) -> int:
    """Tokens of the LLM's input for one of `probe_clips`."""
    clip = probe_clips(model, 1, of)
    return input_lengths(model, [clip["raw_wav"].shape[1]], clip.get("prompts"), clip["text"])[0]


def probe_clips(model: SALMONN, n: int, of: Callable = max) -> Samples:
    """Clips of all that Whisper hears, with the longest prompt and target (`model.max_txt_len` tokens).

    `of` = min: with the shortest ones.
    """
    samples = round(model.max_seconds * SAMPLE_RATE)
    prompts = [prompt for pool in model.train_prompts.values() for prompt in pool]
    clips: Samples = {
        "raw_wav": torch.randn(n, samples) / 10,
        "padding_mask": torch.zeros(n, samples, dtype=torch.bool),
        "text": [of(" a", " a" * model.config.max_txt_len, key=len)] * n,
        "task": ["asr"] * n,
    }
    if prompts:
        clips["prompts"] = [of(prompts, key=len)] * n
    return clips
