"""The connector (paper, section 3.1): LayerNorms, windows, window-level Q-Former, projection into the LLM's space.

The same few queries attend to each window of the audio. The Q-Former is a post-LayerNorm BERT over query tokens only.
Attribute names make the published parameter names.

Shapes: B clips, T encoder frames, L windows of a clip, W = B * L, K frames of a window, Q queries, A = L * Q audio
tokens, D the Q-Former's width, C the context's, H the LLM's.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.device import is_autocast
from salmonn.common.errors import UserError
from salmonn.model.encoders import EncoderOutputs

LAYER_NORM_EPS = 1e-12  # BERT's
DROPOUT = 0.1
WHISPER_FRAMES_PER_SECOND = 50  # 1500 frames of a 30 s clip


class Connector(nn.Module):
    """From the two encoders' outputs to the LLM's input embeddings: all that is trained but LoRA.

    `config`: a complete `model` section; `audio_width` 0 for models without BEATs; `frames` that Whisper gives.
    """

    def __init__(self, config: DictConfig, speech_width: int, audio_width: int, llm_width: int, frames: int) -> None:
        super().__init__()
        require_window_fits(config, frames)
        self.config, self.frames, self.context_width = config, frames, speech_width + audio_width
        self.ln_speech = nn.LayerNorm(speech_width)
        if audio_width:
            self.ln_audio = nn.LayerNorm(audio_width)
        hidden = config.qformer_hidden_size
        self.speech_Qformer = QFormer(
            hidden,
            config.qformer_num_layers,
            config.qformer_num_heads,
            config.qformer_intermediate_size,
            self.context_width,
        )
        self.speech_query_tokens = nn.Parameter(0.02 * torch.randn(1, config.num_speech_query_token, hidden))
        self.speech_llama_proj = nn.Linear(hidden, llm_width)
        if config.freeze_speech_QFormer:
            self.speech_Qformer.requires_grad_(False)
            self.speech_query_tokens.requires_grad_(False)
        if config.freeze_speech_llama_proj:
            self.speech_llama_proj.requires_grad_(False)

    def forward(self, encoded: EncoderOutputs) -> Tensor:
        """Audio tokens [B, A, H] of what the encoders say."""
        return self.embed(self.fuse(encoded))

    def fuse(self, encoded: EncoderOutputs) -> Tensor:
        """Both normalised, the shorter one zero-padded in time, concatenated on the width: [B, T, C]."""
        speech = self.ln_speech(encoded.speech.float())
        if encoded.audio is None or encoded.padding is None:
            return speech
        audio = self.ln_audio(encoded.audio.float()).masked_fill(encoded.padding[..., None], 0.0)
        frames = max(speech.shape[1], audio.shape[1])
        both = (F.pad(x, (0, 0, 0, frames - x.shape[1])) for x in (speech, audio.to(speech.dtype)))
        return torch.cat([*both], dim=-1)

    @property
    def window(self) -> tuple[int, int]:
        """Frames of a window, and from one to the next."""
        return window_frames(self.config.second_per_window), window_frames(self.config.second_stride)

    def n_windows(self, lengths: Sequence[int]) -> list[int]:
        """Windows of clips of so many samples: all, or with `model.only_filled_windows` those that begin within."""
        if not self.config.window_level_Qformer:
            return [1] * len(lengths)
        kernel, stride = self.window
        most = 1 + (self.frames - kernel) // stride
        return [filled_windows(n, stride, most) if self.config.only_filled_windows else most for n in lengths]

    def n_tokens(self, lengths: Sequence[int]) -> list[int]:
        """Audio tokens of clips of so many samples."""
        return [self.config.num_speech_query_token * n for n in self.n_windows(lengths)]

    def n_frames(self, lengths: Sequence[int]) -> list[int]:
        """Encoder frames of the windows of clips of so many samples."""
        return self.frames_of(self.n_windows(lengths))

    def frames_of(self, n_windows: Sequence[int]) -> list[int]:
        """Encoder frames of so many windows."""
        kernel, stride = self.window
        return [(n - 1) * stride + kernel for n in n_windows]

    def filled(self, encoded: EncoderOutputs, lengths: Tensor) -> list[Tensor]:
        """Audio tokens [A, H] of each clip, of those windows alone that begin within its length [B] in samples."""
        return self.tokens_of(self.heard(encoded, lengths))

    def heard(self, encoded: EncoderOutputs, lengths: Tensor) -> list[Tensor]:
        """Fused features [K, C] of each clip, of those windows alone that begin within its length [B] in samples."""
        n_frames = self.n_frames(lengths.tolist())
        return [*self.fuse(encoded.in_a_row(n_frames))[0].split(n_frames)]  # nothing is computed for padding

    def tokens_of(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Audio tokens [A, H] of each clip's features [K, C], whole windows."""
        windows = [split_windows(clip[None], *self.window) for clip in clips]
        tokens = self._tokens_of(torch.cat(windows)).split([len(clip) for clip in windows])
        return [clip.flatten(0, 1) for clip in tokens]

    def embed(self, features: Tensor) -> Tensor:
        """[B, T, C] -> [B, A, H], window-major."""
        windows = features
        if self.config.window_level_Qformer:
            windows = split_windows(features, *self.window)
        embeds = self._tokens_of(windows)
        return embeds.reshape(features.shape[0], -1, embeds.shape[-1])

    def _tokens_of(self, windows: Tensor) -> Tensor:
        """[W, K, C] -> [W, Q, H]."""
        return self.speech_llama_proj(self.speech_Qformer(self.speech_query_tokens, windows))


def require_window_fits(config: DictConfig, frames: int) -> None:
    """Raise UserError for a window that is longer than what Whisper hears."""
    kernel = window_frames(config.second_per_window)
    if config.window_level_Qformer and kernel > frames:
        raise UserError(
            f"model.second_per_window = {config.second_per_window}: {kernel} frames, but this Whisper hears "
            f"{frames} ({frames / WHISPER_FRAMES_PER_SECOND:g} s)"
        )


def filled_windows(samples: int, stride: int, most: int) -> int:
    """Windows that begin within a clip of so many samples, with `stride` encoder frames from one to the next."""
    return max(1, min(most, math.ceil(clip_frames(samples) / stride)))


def clip_frames(samples: int) -> int:
    """Encoder frames that a clip of so many samples reaches into."""
    return math.ceil(samples * WHISPER_FRAMES_PER_SECOND / SAMPLE_RATE)


def window_frames(seconds: float) -> int:
    """Length of a window (or stride) in encoder frames; Python's rounding, as published."""
    return round(1500 * seconds / 30.0)


def split_windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[B, T, D] -> [B * L, kernel, D], L = 1 + (T - kernel) // stride; an incomplete last window is dropped."""
    windows = x.unfold(1, kernel, stride)  # [B, L, D, kernel]
    return windows.permute(0, 1, 3, 2).flatten(0, 1)


class MultiHeadAttention(nn.Module):
    """Queries from `x`, keys and values from `context`."""

    def __init__(self, hidden: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(context_width, hidden)
        self.value = nn.Linear(context_width, hidden)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [W, Q, D], context [W, K, C] -> [W, Q, D]."""
        if is_cheaper_by_queries(x.shape[1], context.shape[1], self.heads, x.shape[2]):
            return self._by_queries(x, context)
        q, k, v = self._heads(self.query, x), self._heads(self.key, context), self._heads(self.value, context)
        if context.shape[1] == 1:  # one key has all the weight: the kernels' gradients of q and k are noise, these 0
            y = F.dropout(_attention(q, k), DROPOUT, self.training).to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=DROPOUT if self.training else 0.0)
        return y.transpose(1, 2).flatten(2)

    def _by_queries(self, x: Tensor, context: Tensor) -> Tensor:
        """The same without keys and values: the matrices multiply the few queries and what they take of the context.

        For q (W c + b) is (q W) c + q b, and the mean of values is the value of the mean.
        """
        q = self._heads(self.query, x) / math.sqrt(x.shape[-1] / self.heads)
        key, value, key_bias, value_bias = (
            parameter.unflatten(0, (self.heads, 1, -1) if parameter.ndim == 1 else (self.heads, -1))
            for parameter in (self.key.weight, self.value.weight, self.key.bias, self.value.bias)
        )
        asked = torch.einsum("whqd,hdc->whqc", q, key).flatten(1, 2)  # [W, H * Q, C]
        constant = (q * key_bias).sum(-1, keepdim=True).flatten(1, 2)  # the same for each frame
        weights = torch.baddbmm(constant, asked, context.mT).softmax(dim=-1)  # [W, H * Q, K]
        weights = F.dropout(weights, DROPOUT, self.training).unflatten(1, q.shape[1:3])
        mean = (weights.flatten(1, 2) @ context).unflatten(1, q.shape[1:3])  # [W, H, Q, C]
        y = torch.einsum("whqc,hdc->whqd", mean, value) + weights.sum(-1, keepdim=True) * value_bias
        return y.transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """What `forward` multiplies the values with: x [W, Q, D], context [W, K, C] -> [W, H, Q, K]."""
        q, k = self._heads(self.query, x), self._heads(self.key, context)
        return _attention(q, k)

    def _heads(self, projection: nn.Linear, source: Tensor) -> Tensor:
        """[W, N, *] -> [W, H, N, D / H]."""
        return projection(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def is_cheaper_by_queries(queries: int, frames: int, heads: int, hidden: int) -> bool:
    """Whether queries asked of the raw frames, whose means give values, cost less than keys and values of all frames.

    By the products, half of each, for each number of a frame.
    """
    return queries * (hidden + heads * frames) < frames * hidden


def _attention(q: Tensor, k: Tensor) -> Tensor:
    """q [W, H, Q, D / H], k [W, H, K, D / H] -> [W, H, Q, K], rows that sum to 1."""
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)


class Output(nn.Module):
    """Projection, dropout, residual, LayerNorm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, y: Tensor, residual: Tensor) -> Tensor:
        """y [W, Q, width], residual [W, Q, D] -> [W, Q, D]."""
        return self.LayerNorm(self.dropout(self.dense(y)) + residual)


class AttentionBlock(nn.Module):
    """Attention and its output."""

    def __init__(self, hidden: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.self = MultiHeadAttention(hidden, heads, context_width)
        self.output = Output(hidden, hidden)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [W, Q, D], context [W, K, C] -> [W, Q, D]."""
        return self.output(self.self(x, context), x)


class Intermediate(nn.Module):
    """First half of the queries' feed-forward."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[W, Q, D] -> [W, Q, width]."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention among the queries, cross-attention to the window, query feed-forward."""

    def __init__(self, hidden: int, heads: int, width: int, context_width: int) -> None:
        super().__init__()
        self.attention = AttentionBlock(hidden, heads, hidden)
        self.crossattention = AttentionBlock(hidden, heads, context_width)
        self.intermediate_query = Intermediate(hidden, width)
        self.output_query = Output(width, hidden)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [W, Q, D], context [W, K, C] -> [W, Q, D]."""
        x = self.attention(x, x)
        x = self.crossattention(x, context)
        return self.output_query(self.intermediate_query(x), x)


class Embeddings(nn.Module):
    """LayerNorm and dropout of the query tokens."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, query_tokens: Tensor) -> Tensor:
        """[W, Q, D] -> [W, Q, D]."""
        return self.dropout(self.LayerNorm(query_tokens))


class Encoder(nn.Module):
    """The layers one behind another; no LayerNorm at the end."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [W, Q, D], context [W, K, C] -> [W, Q, D]."""
        for layer in self.layer:
            x = layer(x, context)
        return x


class Bert(nn.Module):
    """Query tokens without positions, through the layers."""

    def __init__(self, hidden: int, layers: int, heads: int, width: int, context_width: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(hidden)
        self.encoder = Encoder(Layer(hidden, heads, width, context_width) for _ in range(layers))

    def forward(self, query_tokens: Tensor, context: Tensor) -> Tensor:
        """query_tokens [W, Q, D], context [W, K, C] -> [W, Q, D]."""
        return self.encoder(self.embeddings(query_tokens), context)


class QFormer(nn.Module):
    """The window-level Q-Former: each window is attended to by the same query tokens."""

    def __init__(self, hidden: int, layers: int, heads: int, width: int, context_width: int) -> None:
        super().__init__()
        self.bert = Bert(hidden, layers, heads, width, context_width)
        self.apply(_initialise)

    def forward(self, query_tokens: Tensor, context: Tensor) -> Tensor:
        """query_tokens [1, Q, D], windows [W, K, C] -> [W, Q, D]."""
        if is_autocast(context.device):  # once for all matrices that read them
            context = context.to(torch.get_autocast_dtype(context.device.type))
        return self.bert(query_tokens.expand(context.shape[0], -1, -1), context)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal(0, 0.02) weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
