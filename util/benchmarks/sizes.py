"""Models of random weights in four sizes, and a batch to train them on; nothing is downloaded."""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import model_config
from salmonn.model.beats import PUBLISHED_SIZES
from salmonn.model.int8 import quantise_llm
from salmonn.model.llm import llm_attention, quantization_config
from salmonn.model.lora import lora_layers
from salmonn.model.random_model import (
    VICUNA_7B,
    VICUNA_13B,
    WHISPER_LARGE,
    Shape,
    llama_shape,
    random_llm,
    random_model,
    whisper_shape,
)
from salmonn.model.salmonn import SALMONN
from util.mini_world.shapes import BEATS_CONFIG
from util.mini_world.use import PROMPT_PATH

WORDS = (20, 50)  # of a text: most of LibriSpeech's have as many
CLIP_SHARES = (1 / 3, 1 / 2)  # of what Whisper hears: 10 to 15 s of 30 s, as most of LibriSpeech's clips


@dataclass(frozen=True)
class Size:
    """Shapes of the parts; defaults are those of the published model."""

    llm: Shape
    whisper: Shape = field(default_factory=lambda: WHISPER_LARGE)
    beats: Shape = field(default_factory=lambda: PUBLISHED_SIZES)
    model: dict[str, Any] = field(default_factory=dict)
    seconds: int = 30  # that Whisper hears
    needs_gpu: bool = False


SIZES = {
    "mini": Size(  # as in the miniature world; larger random weights, so that everything matters for the loss
        llm=llama_shape(128, 3, 4, 256, vocab_size=1000, initializer_range=0.1),
        whisper=whisper_shape(96, 2, 4, 192, max_source_positions=250, init_std=0.08),
        beats=BEATS_CONFIG,
        model={"qformer_hidden_size": 128, "qformer_num_heads": 4, "qformer_intermediate_size": 512},
        seconds=5,
    ),
    "small": Size(llama_shape(1024, 12, 16, 2816), whisper_shape(768, 12, 12, 3072)),
    "7b": Size(VICUNA_7B, needs_gpu=True),
    "13b": Size(VICUNA_13B, needs_gpu=True),
}


def build(
    name: str,
    device: torch.device,
    dtype: str = "float32",
    quantization: str = "none",
    layers: int | None = None,
    **more: Any,
) -> SALMONN:
    """The model of a size with its frozen parts in `dtype`; the same values each time, but for their rounding.

    `layers`: of each of its parts, where not all. `more`: other keys of the `model` section. On a GPU the weights are
    drawn in `dtype` right there.
    Raises UserError for a size that a CPU cannot train.
    """
    size = SIZES[name] if layers is None else _shortened(SIZES[name], layers)
    if size.needs_gpu and device.type == "cpu":
        raise UserError(f"--size {name} needs a GPU: give --device cuda, or --size mini or small")
    config = model_config(
        {"prompt_path": str(PROMPT_PATH), "encoder_dtype": dtype, "llm_dtype": dtype}
        | {"llm_quantization": quantization, **size.model, **more}
    )
    torch.manual_seed(0)
    with device:
        llm = random_llm(size.llm, getattr(torch, dtype))
        llm.set_attn_implementation(llm_attention(config) or "sdpa")
        if quantization == "int8":
            quantise_llm(llm, device)
        elif quantization != "none":
            _quantise(llm, quantization_config(config, device))
        model = random_model(config, llm, size.whisper, size.beats, make_tokenizer(), size.seconds)
        for layer in lora_layers(model.llama_model):  # zero at first: then A would have no gradient
            nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    return model.to(device)


def _shortened(size: Size, layers: int) -> Size:
    return replace(
        size,
        llm=size.llm | {"num_hidden_layers": layers},
        whisper=size.whisper | {"encoder_layers": layers},
        beats=size.beats | {"encoder_layers": layers},
        model=size.model | {"qformer_num_layers": layers},
    )


def _quantise(llm: PreTrainedModel, settings: Any) -> None:
    """What loading does to stored weights, here to those of a model that is on its device already."""
    from transformers.integrations import replace_with_bnb_linear

    dense = {name: module.weight.data for name, module in llm.named_modules() if type(module) is nn.Linear}
    replace_with_bnb_linear(llm, ["lm_head"], settings)
    llm.is_loaded_in_8bit, llm.is_loaded_in_4bit = settings.load_in_8bit, settings.load_in_4bit  # for peft
    for name in [name for name in dense if name != "lm_head"]:
        module, weight = llm.get_submodule(name), dense.pop(name)
        module.weight = type(module.weight)(weight, requires_grad=False, **module.weight.__dict__)
        module.weight._quantize(weight.device)  # as moving it there does, without the way over the host


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of 900 pieces, learned from the training prompts; </s> is one of them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_prompts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make_batch(model: SALMONN, n: int, shares: tuple[float, float] = CLIP_SHARES) -> Samples:
    """Samples of `n` clips of noise from 1/3 to 1/2 of what the model hears, with texts of 20 to 50 words.

    `shares`: other lengths. One prompt for all: with several, the published padding between prompt and answer
    changes the loss.
    """
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    words = " ".join(_prompts()).split()
    lengths = [int(share * model.max_seconds * SAMPLE_RATE) for share in _evenly(*shares, n)]
    wavs = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    raw_wav = pad_sequence(wavs, batch_first=True)  # [B, N]
    return {
        "raw_wav": raw_wav,
        "padding_mask": torch.arange(raw_wav.shape[1])[None] >= torch.tensor(lengths)[:, None],
        "text": [" ".join(rng.choices(words, k=round(k))) for k in _evenly(*WORDS, n)],
        "task": ["asr"] * n,
        "Q": [""] * n,
        "id": [f"/noise/{i}.wav" for i in range(n)],
        "prompts": [model.train_prompts["asr"][0]] * n,
    }


def rows_of(samples: Samples, rows: slice) -> Samples:
    """Some samples of a batch, as they would be collated alone."""
    given: dict[str, Any] = dict(samples)
    chosen = cast(Samples, {key: values[rows] for key, values in given.items()})
    longest = (~chosen["padding_mask"]).sum(dim=1).max()
    raw_wav, padding_mask = chosen["raw_wav"][:, :longest], chosen["padding_mask"][:, :longest]
    return {**chosen, "raw_wav": raw_wav, "padding_mask": padding_mask}


def _evenly(first: float, last: float, n: int) -> list[float]:
    return torch.linspace(first, last, n).tolist()


def _prompts() -> list[str]:
    return [prompt for pool in json.loads(PROMPT_PATH.read_text(encoding="utf-8")).values() for prompt in pool]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
