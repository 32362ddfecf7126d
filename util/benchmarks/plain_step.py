"""One training step as the published code takes it, small and plain: what ours is measured against.

It takes the parts of a SALMONN, so both have the same weights, and then goes its own way: attention as
matmul, softmax, matmul everywhere; features clip by clip; float32 logits of the whole vocabulary over
the whole padded sequence; every segment of the sequence padded to its longest, so that padding also
stands in the middle; frozen encoders without no_grad.

Of the published defects, those that change the loss are left out: BEATs' output is zero where a clip
is padding, frozen encoders stay in eval mode, and no [PAD] row joins the vocabulary. Three things are
cheaper than published, to ours' disadvantage: BEATs' position bias is not repeated for each sample, its
scores are not divided by 32 and multiplied again, and AdamW is fused.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
import torchaudio
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.device import autocast
from salmonn.common.samples import Samples
from salmonn.model import beats
from salmonn.model.activation_memory import Recomputing
from salmonn.model.features import FBANK_BINS, FBANK_MEAN, FBANK_STD, PCM_SCALE, fbank_lengths
from salmonn.model.llm_input import tokenize
from salmonn.model.prompts import split_prompt
from salmonn.model.qformer import split_windows, window_frames
from salmonn.model.salmonn import SALMONN
from salmonn.training.optim import build_optimizer

ALL_AT_ONCE = 1 << 30  # queries
IGNORE = -100


class Step(NamedTuple):
    """A training step on one batch, in its three parts."""

    forward: Callable[[], dict[str, Tensor]]  # gives the loss, among other things
    backward: Callable[[dict[str, Tensor]], None]
    update: Callable[[], None]

    def __call__(self) -> None:
        """Take it."""
        self.backward(self.forward())
        self.update()


def plain_step(model: SALMONN, run: DictConfig, samples: Samples) -> Step:
    """The plain step of a model on a batch; `run`: the config section."""
    extractor = WhisperFeatureExtractor(chunk_length=round(model.max_seconds))
    optimizer = build_optimizer(model, run.optims)

    def forward() -> dict[str, Tensor]:
        with matmul_attention(model), everything_kept(model), autocast(run, model.device):
            return {"loss": plain_loss(model, extractor, samples)}

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Step(forward, lambda result: result["loss"].backward(), update)


def plain_loss(model: SALMONN, extractor: WhisperFeatureExtractor, samples: Samples) -> Tensor:
    """Mean cross-entropy of a batch's target tokens, a scalar."""
    raw_wav = samples["raw_wav"].to(model.device)  # [B, N]
    lengths = fbank_lengths((~samples["padding_mask"]).sum(dim=1)).to(model.device)
    log_mel = samples.get("spectrogram")  # the loader's work, where it is given
    log_mel = mels(raw_wav, extractor) if log_mel is None else log_mel.to(model.device)
    embeds = encode(model, log_mel, fbanks(raw_wav), lengths)  # [B, A, H]
    return answer_loss(model, embeds, samples["prompts"], samples["text"])


def mels(raw_wav: Tensor, extractor: WhisperFeatureExtractor) -> Tensor:
    """log-mel [B, 80, 3000] of waveforms [B, N], clip by clip, as the published loader makes them."""
    with torch.autocast(raw_wav.device.type, enabled=False):
        each = [extractor(wav.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt") for wav in raw_wav]
    return torch.cat([one.input_features for one in each]).to(raw_wav.device)


def fbanks(raw_wav: Tensor) -> Tensor:
    """Filter bank [B, T, 128] of waveforms [B, N], clip by clip."""
    each = []
    for wav in raw_wav:
        fbank = torchaudio.compliance.kaldi.fbank(
            wav[None].double() * PCM_SCALE, num_mel_bins=FBANK_BINS, sample_frequency=SAMPLE_RATE
        )
        each.append(((fbank - FBANK_MEAN) / (2 * FBANK_STD)).float())
    return torch.stack(each)


def encode(model: SALMONN, log_mel: Tensor, fbank: Tensor, fbank_frames: Tensor) -> Tensor:
    """Both encoders, windows, Q-Former, projection; `fbank_frames` [B] are valid -> [B, A, H]."""
    speech = model.speech_encoder(log_mel.to(model.speech_encoder.dtype)).last_hidden_state  # [B, T, D]
    audio, padding = model.beats(fbank.to(model.beats.dtype), fbank_frames)  # [B, P, D_beats]
    speech = model.ln_speech(speech.float())
    audio = model.ln_audio(audio.float()).masked_fill(padding[..., None], 0.0)
    frames = max(speech.shape[1], audio.shape[1])
    both = torch.cat([F.pad(x, (0, 0, 0, frames - x.shape[1])) for x in (speech, audio)], dim=-1)
    kernel, stride = (window_frames(model.config[key]) for key in ("second_per_window", "second_stride"))
    windows = split_windows(both, kernel, stride)  # [B * L, kernel, D]
    hidden = model.speech_Qformer(model.speech_query_tokens, windows)
    return model.speech_llama_proj(hidden).reshape(len(both), -1, model.speech_llama_proj.out_features)


def answer_loss(model: SALMONN, embeds: Tensor, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Loss of the target tokens behind prompt and audio [B, A, H]: all logits, then all but the targets ignored."""
    tokenizer, llm = model.tokenizer, model.llama_model.get_base_model()
    before, after = zip(*map(split_prompt, prompts), strict=True)
    targets = [
        ids[: model.config.max_txt_len] for ids in tokenize(tokenizer, [text + model.config.end_sym for text in texts])
    ]
    segments = [[tokenizer.bos_token_id]] * len(texts), tokenize(tokenizer, before), tokenize(tokenizer, after), targets
    ids, masks = zip(*(_padded(segment, model.device) for segment in segments), strict=True)
    text = [llm.get_input_embeddings()(segment) for segment in ids]
    inputs = torch.cat([*text[:2], embeds.to(text[0].dtype), *text[2:]], dim=1)  # [B, L, H]
    audio_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device)
    mask = torch.cat([*masks[:2], audio_mask, *masks[2:]], dim=1)
    ignored = torch.full((len(texts), inputs.shape[1] - ids[3].shape[1]), IGNORE, device=model.device)
    labels = torch.cat([ignored, ids[3].masked_fill(masks[3] == 0, IGNORE)], dim=1)

    logits = llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits.float()  # [B, L, V]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def _padded(ids: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, N] of rows of different length."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    return tuple(pad_sequence(x, batch_first=True).to(device) for x in (rows, [torch.ones_like(row) for row in rows]))


@contextmanager
def matmul_attention(model: SALMONN) -> Iterator[None]:
    """Let Whisper and the LLM take transformers' eager attention, BEATs and the Q-Former the one below."""
    parts = (model.speech_encoder, model.llama_model.get_base_model())
    before = [part.config._attn_implementation for part in parts]
    for part in parts:
        part.set_attn_implementation("eager")
    try:
        with mock.patch.object(F, "scaled_dot_product_attention", _attention):
            yield
    finally:
        for part, implementation in zip(parts, before, strict=True):
            part.set_attn_implementation(implementation)


@contextmanager
def everything_kept(model: SALMONN) -> Iterator[None]:
    """Let autograd keep what `salmonn.model.activation_memory` would make again, and BEATs all of a layer's scores."""
    lean = {module: type(module) for module in model.modules() if isinstance(module, Recomputing)}
    for module, kind in lean.items():
        module.__class__ = kind.__bases__[1]
    try:
        with mock.patch.object(beats, "QUERIES", ALL_AT_ONCE):
            yield
    finally:
        for module, kind in lean.items():
            module.__class__ = kind


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """q [B, H, Q, D], k and v [B, H, K, D], mask added to the scores [B, H, Q, K] -> [B, H, Q, D]."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(dim=-1), dropout_p) @ v
