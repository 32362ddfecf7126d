"""BEATs audio encoder (Chen et al., 2022), written for the published checkpoint format.

Differs from the published code in one point: patches that are padding are as absent as in a batch
of one (zeroed before the positional convolution, no attention to them, reported in the mask).
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from salmonn.model.features import FBANK_BINS

PUBLISHED_SIZES: dict[str, Any] = {  # of BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, the published SALMONN's
    "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12,
    "embed_dim": 512, "input_patch_size": 16, "conv_pos": 128, "conv_pos_groups": 16, "num_buckets": 320,
    "max_distance": 800, "deep_norm": True, "gru_rel_pos": True, "relative_position_embedding": True,
}  # fmt: skip
# Settings of the published fine-tuned files that this encoder relies on.
_REQUIRED = ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "encoder_layers", "embed_dim")
FEW_CHANNELS = 16  # of a group: spectra cost more than they save
WIDE = 256  # layers that on a CPU take one clip after the other: in narrower ones the calls cost more than the padding
QUERIES = 256  # of a clip that attend at a time


class PositionalConv(nn.Module):
    """Grouped convolution whose weight is normalised per tap: weight = g * v / |v|, norm over dims 0 and 1."""

    def __init__(self, width: int, taps: int, groups: int) -> None:
        super().__init__()
        self.taps, self.groups = taps, groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, taps))
        self.weight_v = nn.Parameter(torch.randn(width, width // groups, taps) * math.sqrt(4.0 / (taps * width)))
        self.bias = nn.Parameter(torch.zeros(width))
        self._kept: tuple[tuple, Tensor] | None = None  # spectra of the weight, and what they were made of

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        if x.device.type == "cpu":
            return self._on_cpu(x)
        weight = self._weight(self.weight_v)
        return self._group_by_group(x, weight) if x.device.type == "cuda" else self._at_once(x, weight)

    def _on_cpu(self, x: Tensor) -> Tensor:
        """Never in half precision: its kernels are not always right there (torch 2.11, AMX). [B, D, T] -> [B, D, T]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        result = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            if self.weight_v.shape[1] < FEW_CHANNELS:
                return self._at_once(x.to(wide), self._weight(self.weight_v.to(wide))).to(result)
            return self._by_spectra(x.to(wide), self._spectra_of_weight(wide)).to(result)

    def _spectra_of_weight(self, wide: torch.dtype) -> Tensor:
        """[F, G, D / G, D / G] of the weight in G groups; of a frozen one kept, as it takes as long as a short clip."""
        made_of = (wide, *((p.data_ptr(), p._version) for p in (self.weight_v, self.weight_g)))
        if self._kept is not None and self._kept[0] == made_of:
            return self._kept[1]
        weight = self._weight(self.weight_v.to(wide))
        spectra = torch.fft.rfft(weight, 2 * self.taps).conj().unflatten(0, (self.groups, -1)).permute(3, 0, 2, 1)
        if not spectra.requires_grad:
            self._kept = made_of, spectra
        return spectra

    def _at_once(self, x: Tensor, weight: Tensor) -> Tensor:
        y = F.conv1d(x, weight, self.bias.to(x.dtype), padding=self.taps // 2, groups=self.groups)
        return y[..., : x.shape[-1]]  # an even number of taps gives one output too many

    def _weight(self, v: Tensor) -> Tensor:
        """[D, D / groups, taps]."""
        return self.weight_g * v / v.norm(dim=1, keepdim=True).norm(dim=0, keepdim=True)  # both at once is slow

    def _by_spectra(self, x: Tensor, filters: Tensor) -> Tensor:
        """The same [B, D, T] in blocks as long as the taps, a product of channels for each frequency: faster."""
        length, n = x.shape[-1], 2 * self.taps
        blocks = -(-length // self.taps)
        padding = self.taps // 2, blocks * self.taps + self.taps - length - self.taps // 2
        spectra = torch.fft.rfft(F.pad(x, padding).unfold(2, n, self.taps)).unflatten(1, (self.groups, -1))
        spectra = spectra.permute(4, 1, 0, 3, 2).flatten(2, 3)  # [F, G, B * blocks, D / G], G groups
        y = (spectra @ filters).unflatten(2, (len(x), blocks))  # [F, G, B, blocks, D / G]
        y = torch.fft.irfft(y.permute(2, 1, 4, 3, 0), n)[..., : self.taps].flatten(3).flatten(1, 2)
        return y[..., :length] + self.bias[:, None].to(x.dtype)

    def _group_by_group(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same convolution, a whole one for each group: cuDNN has fast kernels for those alone."""
        groups = zip(x.chunk(self.groups, 1), weight.chunk(self.groups), self.bias.chunk(self.groups), strict=True)
        y = torch.cat([F.conv1d(part, w, bias, padding=self.taps // 2) for part, w, bias in groups], dim=1)
        return y[..., : x.shape[-1]]


class Attention(nn.Module):
    """Self-attention with a relative position bias that each query gates (gated relative position, WavLM)."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.gated = gated
        if gated:
            self.grep_linear = nn.Linear(width // heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None, key_mask: Tensor) -> Tensor:
        """x [B, T, D], bias [H, T, T], key_mask [B, 1, 1, T] added to the scores -> [B, T, D]."""
        B, T, D = x.shape
        q, k, v = (p(x).view(B, T, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if bias is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask.to(q.dtype))
        else:  # some queries at a time, which stay in the cache: the masks of all are larger than anything else here
            parts = zip(q.split(QUERIES, dim=2), bias.split(QUERIES, dim=1), strict=True)
            masked = ((part, self._mask(part, rows, key_mask)) for part, rows in parts)
            y = torch.cat([F.scaled_dot_product_attention(part, k, v, attn_mask=m) for part, m in masked], dim=2)
        return self.out_proj(y.transpose(1, 2).reshape(B, T, D))

    def _mask(self, q: Tensor, bias: Tensor, key_mask: Tensor) -> Tensor:
        """What is added to the scores of queries [B, H, Q, D] with bias [H, Q, T]: [B, H, Q, T]."""
        if not self.gated:
            return (bias + key_mask).to(q.dtype)
        a, b = torch.sigmoid(self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        gate = a * (b * self.grep_a - 1.0) + 2.0  # [B, H, Q, 1]
        return torch.addcmul(key_mask.to(gate.dtype), gate, bias.to(gate.dtype)).to(q.dtype)


class Layer(nn.Module):
    """Post-LayerNorm block; `alpha` is DeepNorm's residual weight."""

    def __init__(self, width: int, ffn: int, heads: int, gated: bool, alpha: float, dropout: float) -> None:
        super().__init__()
        self.alpha, self.dropout = alpha, dropout
        self.self_attn = Attention(width, heads, gated)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor | None, key_mask: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; bias and key_mask as in `Attention`."""
        attended = F.dropout(self.self_attn(x, bias, key_mask), self.dropout, self.training)
        x = self.self_attn_layer_norm(self.alpha * x + attended)
        fed = F.dropout(self.fc2(F.gelu(self.fc1(x))), self.dropout, self.training)
        return self.final_layer_norm(self.alpha * x + fed)


class Encoder(nn.Module):
    """Positional convolution, LayerNorm, then the layers; no LayerNorm behind them."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        width, heads, layers = cfg["encoder_embed_dim"], cfg["encoder_attention_heads"], cfg["encoder_layers"]
        self.heads, self.layerdrop = heads, cfg.get("encoder_layerdrop", 0.0)
        self.dropout = cfg.get("dropout", 0.0)
        self.buckets, self.max_distance = cfg.get("num_buckets", 320), cfg.get("max_distance", 1280)
        alpha = (2 * layers) ** 0.25 if cfg.get("deep_norm", False) else 1.0
        gated = cfg.get("gru_rel_pos", False)
        self.pos_conv = nn.Sequential(
            PositionalConv(width, cfg.get("conv_pos", 128), cfg.get("conv_pos_groups", 16)), nn.GELU()
        )
        self.layer_norm = nn.LayerNorm(width)
        blocks = [Layer(width, cfg["encoder_ffn_embed_dim"], heads, gated, alpha, self.dropout) for _ in range(layers)]
        if cfg.get("relative_position_embedding", False):
            # One table for all layers; the published files keep it with every layer's attention.
            table = nn.Embedding(self.buckets, heads)
            for block in blocks:
                block.self_attn.relative_attention_bias = table
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x [B, T, D], zero where padded; padding [B, T] True where padded -> [B, T, D]."""
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        x = F.dropout(x, self.dropout, self.training)
        key_mask = torch.zeros_like(padding, dtype=x.dtype).masked_fill_(padding, -torch.inf)[:, None, None, :]
        bias = self.position_bias(x.shape[1], x.device)
        if self.training or x.device.type != "cpu" or x.shape[-1] < WIDE:
            return self._through_layers(x, bias, key_mask)
        # clip by clip: nothing is computed for padding, and what is stays in the caches
        lengths = (~padding).sum(dim=1).clamp(min=1).tolist()
        shorter = {n: None if bias is None else bias[:, :n, :n] for n in lengths}
        clips = [
            self._through_layers(clip[None, :n], shorter[n], mask[None, ..., :n])[0]
            for clip, mask, n in zip(x, key_mask, lengths, strict=True)
        ]
        return pad_sequence([*clips, x[0]], batch_first=True)[:-1]

    def _through_layers(self, x: Tensor, bias: Tensor | None, key_mask: Tensor) -> Tensor:
        """x [B, T, D], bias and key_mask as in `Attention` -> [B, T, D]."""
        for layer in self.layers:
            if not self.training or torch.rand(()) >= self.layerdrop:
                x = layer(x, bias, key_mask)
        return x

    def position_bias(self, length: int, device: torch.device) -> Tensor | None:
        """Relative position bias [H, T, T] of the shared table; None in models without one."""
        table = getattr(self.layers[0].self_attn, "relative_attention_bias", None)
        if table is None:
            return None
        by_distance = table(self.bucket(torch.arange(1 - length, length, device=device))).T  # [H, 2T - 1]
        return by_distance.unfold(1, length, 1).flip(1)  # query i takes the distances -i to T - 1 - i

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each key - query distance [...] -> [...]: half for each sign, exact near, logarithmic far."""
        half = self.buckets // 2
        exact = half // 2
        far = distance.abs()
        # float32 logarithm as published: its rounding decides at the bucket borders
        ratio = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return torch.where(far < exact, far, logarithmic) + half * (distance > 0)


class BEATs(nn.Module):
    """Patches of 16 x 16 spectrogram bins through a Transformer: fbank [B, T, 128] -> [B, T // 16 * 8, D]."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        missing = [key for key in _REQUIRED if key not in cfg]
        if missing:
            raise UserError(f"this BEATs configuration lacks {', '.join(missing)}")
        if cfg.get("layer_norm_first", False) or cfg.get("activation_fn", "gelu") != "gelu":
            raise UserError("only BEATs with layer_norm_first False and activation_fn gelu, as published, is supported")
        self.cfg = cfg
        patch, width = cfg.get("input_patch_size", 16), cfg["encoder_embed_dim"]
        self.patch_size, self.width = patch, width
        self.patches_per_step = FBANK_BINS // patch
        self.patch_embedding = nn.Conv2d(1, cfg["embed_dim"], patch, stride=patch, bias=cfg.get("conv_bias", False))
        self.layer_norm = nn.LayerNorm(cfg["embed_dim"])
        self.post_extract_proj = nn.Linear(cfg["embed_dim"], width) if cfg["embed_dim"] != width else None
        self.encoder = Encoder(cfg)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of what `forward` takes."""
        return self.patch_embedding.weight.dtype

    def forward(self, fbank: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode filter banks; a row's result does not depend on the others.

        fbank [B, T, 128]; lengths [B] valid frames (None: all). Returns features [B, P, D] with
        P = T // 16 * 8, index = time * 8 + frequency, zero where padded, and padding [B, P] (True).
        """
        x = self.patch_embedding(fbank.unsqueeze(1))  # [B, C, T // 16, 8]
        x = self.layer_norm(x.flatten(2).transpose(1, 2))  # [B, P, C]
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        if lengths is None:
            lengths = torch.full((x.shape[0],), fbank.shape[1], device=x.device)
        valid = lengths // self.patch_size * self.patches_per_step  # [B]
        padding = torch.arange(x.shape[1], device=x.device)[None, :] >= valid[:, None]
        x = self.encoder(x.masked_fill(padding[..., None], 0.0), padding)
        return x.masked_fill(padding[..., None], 0.0), padding


def load_beats(path: str | Path, device: str = "cpu") -> BEATs:
    """Load a published BEATs file `{"cfg", "model"}`; its classifier head (`predictor`) is left out.

    With device "meta" the file is only checked. Raises UserError for a file of another kind and for
    keys that do not fit.
    """
    content = read_beats_file(path, lazily=device == "meta")
    with torch.device(device):
        model = BEATs(content["cfg"])
    theirs = {k: v for k, v in content["model"].items() if not k.startswith("predictor.")}
    problems = checkpoint.fit_problems(theirs, {k: v.shape for k, v in model.state_dict().items()})
    if problems:
        raise UserError("\n  ".join([f"{path} does not fit its own configuration:", *problems[:12]]))
    checkpoint.require_finite(theirs, path)
    if device != "meta":
        model.load_state_dict(theirs)
    return model


def read_beats_file(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read a BEATs file and check its kind."""
    content = checkpoint.read(path, "BEATs checkpoint", lazily)
    if not isinstance(content.get("cfg"), dict):
        raise UserError(f'{path} is not a BEATs checkpoint: expected {{"cfg", "model"}} as in BEATs_iter3_plus_*.pt')
    return content
