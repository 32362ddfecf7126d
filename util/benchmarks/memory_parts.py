"""How much memory a training step takes on one device, by formula: nothing is allocated.

What autograd keeps for the backward pass follows from which weights are frozen. A frozen linear layer
keeps nothing of its input, since only its weights' gradient would need it; an adapter, a norm, a
gated product and the attention keep theirs. Added to this is what lives only for a
moment where the step is at its highest: the widest layer of a frozen encoder, the gradients of the
logits, those inside one block of the LLM. Counted are blocks of the LLaMA kind with fused attention.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from salmonn.common.errors import UserError
from salmonn.model.beats import QUERIES
from salmonn.model.features import FBANK_FFT, FBANK_FRAME, FBANK_SHIFT, fbank_lengths
from salmonn.model.lora import lora_layers
from salmonn.model.loss import rows_at_once
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import asks_raw_frames, windows_of

NF4_BLOCK = 64  # weights that share a float32 constant
FLOAT, DOUBLE, COMPLEX = 4, 8, 16


@dataclass(frozen=True)
class Case:
    """Under what conditions a model is trained."""

    device: str  # cpu | cuda
    llm_bytes: int  # of a weight that is not quantised
    quantization: str = "none"  # none | 8bit | nf4 | int8
    amp: bool = False
    checkpointing: bool = False
    gradients_stay: bool = False  # between micro-batches: accumulated, or in DDP's buckets

    @property
    def llm_compute(self) -> int:
        """Bytes of a number in the LLM's blocks."""
        return 2 if self.amp else self.llm_bytes

    @property
    def trained_compute(self) -> int:
        """Bytes of a number that enters a trained matrix."""
        return 2 if self.amp else FLOAT

    @property
    def dropout_mask(self) -> int:
        """Bytes kept for each number that dropout has seen: CPUs keep the factors, GPUs whether it stays."""
        return FLOAT if self.device == "cpu" else 1

    @property
    def adapter_mask(self) -> int:
        """The same of what an adapter reads, which is in half precision under autocast."""
        return self.trained_compute if self.device == "cpu" else 1


class Batch(NamedTuple):
    """Sizes of what is trained on."""

    clips: int
    samples: int  # of the longest clip
    tokens: int  # of the longest row
    targets: int  # of all rows


def frozen_weights(model: SALMONN, case: Case) -> dict[str, float]:
    """Bytes of the frozen weights by part, quantised ones with their constants."""
    llm = model.llama_model.get_base_model() if model.config.lora else model.llama_model
    encoders = {"Whisper": model.speech_encoder, "BEATs": model.beats}
    return {"LLM": llm_weights(llm, case)} | {
        name: sum(p.numel() * p.element_size() for p in encoder.parameters())
        for name, encoder in encoders.items()
        if encoder is not None
    }


def llm_weights(llm: nn.Module, case: Case) -> float:
    """Bytes of an LLM without its adapters; embeddings, norms and the vocabulary are not quantised."""
    everything = sum(p.numel() for name, p in llm.named_parameters() if "lora_" not in name)
    if case.quantization == "none":
        return case.llm_bytes * everything
    linear = [m for m in _frozen_linear(llm) if m is not llm.get_output_embeddings()]
    weights = sum(m.weight.numel() for m in linear)
    if case.quantization in ("8bit", "int8"):
        small: float = weights + FLOAT * sum(m.out_features for m in linear)
    else:
        small = weights / 2 + FLOAT * weights / NF4_BLOCK
    return small + case.llm_bytes * (everything - weights)


def shared_weights(model: SALMONN, case: Case) -> float:
    """Bytes of the LLM's blocks, of which `run.shard_llm` leaves each card a share; int8's scales stay whole."""
    llm = model.llama_model.get_base_model() if model.config.lora else model.llama_model
    blocks = llm.get_decoder().layers
    everything = sum(p.numel() for name, p in blocks.named_parameters() if "lora_" not in name)
    small = sum(m.weight.numel() for m in _frozen_linear(blocks)) if case.quantization == "int8" else 0
    return small + case.llm_bytes * (everything - small)


def _frozen_linear(llm: nn.Module) -> list[nn.Linear]:
    return [m for name, m in llm.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name]


def trained_weights(model: nn.Module) -> int:
    """Bytes of the trained parameters, which are float32; their gradients take as much, AdamW's moments twice that."""
    return FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)


def phases(model: SALMONN, case: Case, batch: Batch) -> dict[str, dict[str, float]]:
    """Bytes above weights and AdamW's moments at each point of a step that may be its highest, by part."""
    trained = trained_weights(model)
    llm = llm_kept(model, case, batch)
    qformer = {"Q-Former": qformer_kept(model, case, batch) + half_copies(model, case)}
    gradients: dict[str, float] = {"gradients": trained}
    before = gradients if case.gradients_stay else {}
    block = batch.clips * batch.tokens * block_bytes(model, case)
    in_block = {"LLM": llm + (block if case.checkpointing else 0), "backward": block_backward(model, case, batch)}
    return {
        "encoders": before | {"encoders": encoders_peak(model, case, batch)},
        "loss": before | qformer | {"LLM": llm, "logits": logits_peak(model, case, batch)},
        "LLM backward": before | qformer | in_block,
        "Q-Former backward": gradients | qformer | {"backward": qformer_backward(model, batch)},
        "optimiser": gradients,
    }


# ---- LLM


def llm_kept(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes that the LLM's blocks and last norm keep; with checkpointing of each block only its input."""
    config = model.llama_model.config
    each = case.llm_compute * config.hidden_size if case.checkpointing else block_bytes(model, case)
    return batch.clips * batch.tokens * (config.num_hidden_layers * each + case.llm_compute * config.hidden_size)


def block_bytes(model: SALMONN, case: Case) -> float:
    """Bytes that a block keeps of each token."""
    widths = _block_widths(model)
    kept = widths.norms * case.llm_compute * widths.hidden  # what enters a norm
    kept += case.llm_compute * (2 * widths.queries + 2 * widths.keys) + FLOAT * widths.heads  # q, out, k, v, log-sums
    kept += case.llm_compute * 2 * widths.mlp  # what enters the activation function, and the other factor
    mask = case.adapter_mask if model.config.lora_dropout else 0
    for width in widths.adapted:
        kept += width * (case.trained_compute + mask) + model.config.lora_rank * case.trained_compute
    return kept


class _Widths(NamedTuple):
    """Numbers per token in a block."""

    hidden: int
    queries: int
    keys: int
    mlp: int
    heads: int
    norms: int  # how many, not how wide
    adapted: list[int]  # inputs of the adapters


def _block_widths(model: SALMONN) -> _Widths:
    llm = model.llama_model.get_base_model() if model.config.lora else model.llama_model
    block = llm.get_decoder().layers[0]
    try:
        q, k, gate = block.self_attn.q_proj, block.self_attn.k_proj, block.mlp.gate_proj
    except AttributeError as error:
        raise UserError(f"the blocks of {type(llm).__name__} are not of the LLaMA kind ({error})") from error
    norms = sum(name.endswith("norm") for name, _ in block.named_modules())
    adapted = [layer.in_features for layer in lora_layers(block)]
    heads = llm.config.num_attention_heads
    return _Widths(q.in_features, q.out_features, k.out_features, gate.out_features, heads, norms, adapted)


def logits_peak(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes of the log-probabilities of a chunk of the targets, of two gradients of their size, and of what is kept."""
    llm = model.llama_model
    chunk = 3 * FLOAT * min(batch.targets, rows_at_once(llm)) * llm.config.vocab_size
    return chunk + target_gradients(model, case, batch)


def target_gradients(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes of the gradients of the LLM's hidden states at the targets, which wait for the backward pass."""
    return batch.targets * case.llm_bytes * model.llama_model.config.hidden_size


def block_backward(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes of the gradients at a block's widest point, the two factors and their product, and what quantisation adds.

    That is a weight made whole, or with int8 the scaled gradient, it divided by its rows' scales, and its 8 bits.
    """
    widths = _block_widths(model)
    wide = batch.clips * batch.tokens * widths.mlp
    whole = case.llm_compute * widths.hidden * widths.mlp
    added = {"none": 0, "int8": wide * (2 * FLOAT + 1)}.get(case.quantization, whole)
    return 3 * case.llm_compute * wide + added


# ---- Q-Former and what is before it


def qformer_kept(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes that norms, windows, Q-Former and projection keep."""
    config, number = model.config, case.trained_compute
    windows, kernel = windows_of(model, patches_of(model, batch))
    hidden, layers, queries = config.qformer_hidden_size, config.qformer_num_layers, config.num_speech_query_token
    width = model.speech_encoder.config.d_model + (model.beats.width if model.beats is not None else 0)
    # a CPU has no fused attention with dropout: float32, with weights before and behind dropout, and its factors
    attended = FLOAT if case.device == "cpu" else number
    alone = number if queries == 1 else attended  # one query attends to itself without the kernel
    weights = 3 * FLOAT * config.qformer_num_heads * queries if case.device == "cpu" else 0
    if asks_raw_frames(model, kernel):
        # of each head, what is asked of the raw frames, their mean, and weights before and behind dropout
        attention = number if case.device == "cpu" else FLOAT  # a GPU's autocast has softmax in float32
        each = 2 * number * width + kernel * (attention + case.adapter_mask + number)
        frame, cross = width * number, hidden * number + config.qformer_num_heads * each
    else:
        frame = width * number + layers * 2 * hidden * attended  # keys and values
        cross = hidden * attended
        cross += 3 * FLOAT * config.qformer_num_heads * kernel if case.device == "cpu" else 0
    inputs = 3 if case.amp else 1  # of queries, keys and values in self-attention
    # norms, dropout; self-attention, cross-attention (input, query), what both give, what the last part reads
    query = hidden * (3 * FLOAT + 3 * case.dropout_mask + number * (inputs + 1 + 2 + 1) + 3 * alone)
    query += 2 * config.qformer_intermediate_size * number + weights + cross
    per_window = kernel * frame + queries * (layers * query + hidden * number)
    return batch.clips * (windows * per_window + FLOAT * _features(model, batch))


def _features(model: SALMONN, batch: Batch) -> float:
    """Numbers of a clip that both encoders give."""
    whisper = model.speech_encoder.config
    audio = patches_of(model, batch) * model.beats.width if model.beats is not None else 0
    return whisper.max_source_positions * whisper.d_model + audio


def half_copies(model: SALMONN, case: Case) -> float:
    """Bytes of the half-precision copies of float32 matrices that autocast makes and the backward pass needs."""
    if not case.amp:
        return 0
    copied = sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 2)
    if case.llm_bytes == FLOAT and case.quantization == "none":
        head = model.llama_model.get_output_embeddings()  # its copy lives only while a chunk of the targets does
        copied += sum(m.weight.numel() for m in _frozen_linear(model.llama_model) if m is not head)
    return 2 * copied


def qformer_backward(model: SALMONN, batch: Batch) -> float:
    """Bytes of the windows' gradients, the sum so far and what the next matrix adds."""
    windows, kernel = windows_of(model, patches_of(model, batch))
    width = model.speech_encoder.config.d_model + (model.beats.width if model.beats is not None else 0)
    return 2 * FLOAT * batch.clips * windows * kernel * width


# ---- encoders


def encoders_peak(model: SALMONN, case: Case, batch: Batch) -> float:
    """Bytes of the widest of Whisper's layers, of the filter bank and of BEATs' layers, which come in turn."""
    config = model.speech_encoder.config
    stream = model.speech_encoder.dtype.itemsize
    inner = 2 if case.amp else stream
    # the block's input, the residual, its norm; before and behind the activation function
    frame = 3 * stream * config.d_model + 2 * inner * config.encoder_ffn_dim
    whisper = batch.clips * config.max_source_positions * frame
    if model.beats is None:
        return whisper
    # Whisper's output, kept by its norm, and what the norm makes of it
    held = 2 * FLOAT * batch.clips * config.max_source_positions * config.d_model
    return max(whisper, held + _fbank_peak(batch), held + _beats_peak(model, batch))


def _fbank_peak(batch: Batch) -> float:
    bins = FBANK_FFT // 2 + 1
    # a frame, the one shifted by a sample, the spectrum, and its power from two squares
    frame = DOUBLE * 2 * FBANK_FRAME + COMPLEX * bins + DOUBLE * 3 * bins
    return batch.clips * batch.samples // FBANK_SHIFT * frame


def _beats_peak(model: SALMONN, batch: Batch) -> float:
    encoder, number = model.beats.encoder, model.beats.dtype.itemsize
    patches = patches_of(model, batch)
    bias = encoder.heads * patches**2
    gated = encoder.heads * patches * min(patches, QUERIES)
    # one bias for all, some rows with each clip's gates; input, queries, keys, values, what was attended to
    return number * (bias + batch.clips * gated + 5 * batch.clips * patches * model.beats.width)


def patches_of(model: SALMONN, batch: Batch) -> int:
    """BEATs' patches of the longest clip; 0 without BEATs."""
    if model.beats is None:
        return 0
    frames = int(fbank_lengths(torch.tensor(batch.samples)))
    return frames // model.beats.patch_size * model.beats.patches_per_step
