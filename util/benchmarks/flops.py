"""How many operations a training sample takes, by formula: what MFU is measured against.

Counted are the multiplications and additions of matrix products and convolutions, as PyTorch's own
counter does; a causal mask halves nothing. Spectra, norms and softmax are left out. A backward pass
costs as much again for each operand that needs a gradient: weights that are frozen need none, so the
LLM's matrices count once, those of Q-Former and LoRA, and the two products of attention, twice.
"""

from typing import NamedTuple

from torch import nn

from salmonn.model.qformer import is_cheaper_by_queries, window_frames
from salmonn.model.salmonn import SALMONN


class Flops(NamedTuple):
    """Operations of a part for one sample."""

    forward: float
    backward: float


def sample_flops(model: SALMONN, patches: float, tokens: float, targets: float) -> dict[str, Flops]:
    """Operations by part for a clip of `patches` BEATs patches in a row of `tokens`, of which `targets` are scored."""
    whisper, beats = (Flops(count, 0.0) for count in (_whisper(model), _beats(model, patches)))
    return {
        "Whisper": whisper,
        "BEATs": beats,
        "Q-Former": _qformer(model, patches),
        "LLM": _llm(model, tokens, targets),
    }


def _whisper(model: SALMONN) -> float:
    encoder = model.speech_encoder
    T, D = encoder.config.max_source_positions, encoder.config.d_model
    convolutions = 2 * 2 * T * encoder.conv1.weight.numel() + 2 * T * encoder.conv2.weight.numel()
    return convolutions + 2 * T * _weights(encoder.layers) + len(encoder.layers) * _attention(T, T, D)


def _beats(model: SALMONN, patches: float) -> float:
    if model.beats is None:
        return 0.0
    beats, encoder = model.beats, model.beats.encoder
    gates = [module for name, module in encoder.named_modules() if name.endswith("grep_linear")]
    # the gate's small matrix serves each head
    weights = _weights(encoder.layers) + (encoder.heads - 1) * sum(map(_weights, gates))
    weights += beats.patch_embedding.weight.numel()
    weights += _weights(beats.post_extract_proj) if beats.post_extract_proj is not None else 0
    weights += encoder.pos_conv[0].weight_v.numel()
    return 2 * patches * weights + len(encoder.layers) * _attention(patches, patches, beats.width)


def _qformer(model: SALMONN, patches: float) -> Flops:
    """With the projection into the LLM's space."""
    config, queries = model.config, model.config.num_speech_query_token
    windows, kernel = windows_of(model, patches)
    forward = 2 * queries * _weights(model.speech_llama_proj)  # type: ignore[arg-type]
    for layer in model.speech_Qformer.bert.encoder.layer:
        cross = layer.crossattention.self
        from_window = _weights(cross.key) + _weights(cross.value)
        by_queries = asks_raw_frames(model, kernel)
        forward += 2 * queries * (_weights(layer) - from_window) + 2 * (queries if by_queries else kernel) * from_window
        forward += _attention(queries, queries, config.qformer_hidden_size)
        width = cross.heads * cross.key.in_features if by_queries else config.qformer_hidden_size
        forward += _attention(queries, kernel, width)
    return Flops(windows * forward, 2 * windows * forward)


def windows_of(model: SALMONN, patches: float) -> tuple[float, float]:
    """Number of a clip's windows, and the frames in each."""
    config, frames = model.config, max(model.speech_encoder.config.max_source_positions, patches)
    if not config.window_level_Qformer:
        return 1, frames
    kernel, stride = (window_frames(config[key]) for key in ("second_per_window", "second_stride"))
    return 1 + (frames - kernel) // stride, kernel


def asks_raw_frames(model: SALMONN, kernel: float) -> bool:
    """Whether the Q-Former's queries read windows of so many frames without making keys and values of each."""
    config = model.config
    return is_cheaper_by_queries(
        config.num_speech_query_token, int(kernel), config.qformer_num_heads, config.qformer_hidden_size
    )


def audio_tokens(model: SALMONN) -> int:
    """Tokens that stand for a clip in the LLM's input."""
    return model.n_audio_tokens([model.log_mel.n_samples])[0]


def _llm(model: SALMONN, tokens: float, targets: float) -> Flops:
    llm = model.llama_model.get_base_model() if model.config.lora else model.llama_model
    config, decoder = llm.config, llm.get_decoder()
    adapters = sum(_weights(module) for name, module in decoder.named_modules() if name.endswith(("lora_A", "lora_B")))
    frozen = 2 * tokens * (_weights(decoder) - adapters) + 2 * targets * _weights(llm.get_output_embeddings())
    heads_width = config.num_attention_heads * config.head_dim
    trained = 2 * tokens * adapters + config.num_hidden_layers * _attention(tokens, tokens, heads_width)
    return Flops(frozen + trained, frozen + 2 * trained)


def _weights(module: nn.Module) -> int:
    """Size of all weight matrices in a module, quantised ones as they were."""
    return sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def _attention(queries: float, keys: float, width: int) -> float:
    """Scores, and their product with the values, of all heads."""
    return 4 * queries * keys * width
