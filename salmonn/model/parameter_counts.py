"""Numbers of trainable parameters, by the model's parts."""

from collections import Counter
from collections.abc import Mapping

from torch import nn

# The trainable parts, by the beginning of their parameters' names.
_PARTS = {
    "speech_Qformer.": "Q-Former",
    "speech_query_tokens": "query tokens",
    "speech_llama_proj.": "projection",
    "sound_proj.": "sound projection",
    "ln_": "norms",
    "llama_model.": "LoRA",
    "speech_encoder.": "Whisper",
    "beats.": "BEATs",
    "ctc_": "CTC",
}


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of trainable parameters by part."""
    return count_by_part({name: p.numel() for name, p in model.named_parameters() if p.requires_grad})


def count_by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sums of the sizes of named parameters by part, the largest first."""
    counts: Counter[str] = Counter()
    for name, size in sizes.items():
        counts[next(part for start, part in _PARTS.items() if name.startswith(start))] += size
    return dict(counts.most_common())


def show_counts(counts: dict[str, int]) -> str:
    """Parameter counts as a line for people."""
    parts = ", ".join(f"{part} {_millions(n)}" for part, n in counts.items())
    return f"{_millions(sum(counts.values()))} trainable parameters ({parts})"


def _millions(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 10_000 else str(n)
