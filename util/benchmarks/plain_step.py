"""One training step as the published code takes it, small and plain: what ours is measured against.

It takes the parts of a SALMONN, so both have the same weights, and then goes its own way: the published
attention (`plain_attention.py`) and features (`plain_features.py`); logits of the whole vocabulary over
the whole padded sequence; every segment of the sequence padded to its longest, so that padding also
stands in the middle; frozen encoders without no_grad; the optimiser's loop over the parameters.

Of the published defects, those that change the loss are left out: BEATs' output is zero where a clip
is padding, frozen encoders stay in eval mode, and no [PAD] row joins the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from transformers import WhisperFeatureExtractor

from salmonn.common.device import autocast
from salmonn.common.samples import Samples
from salmonn.model.activation_memory import Recomputing
from salmonn.model.features import fbank_lengths
from salmonn.model.llm_input import tokenize
from salmonn.model.prompts import split_prompt
from salmonn.model.qformer import window_frames
from salmonn.model.salmonn import SALMONN
from salmonn.training.optim import build_optimizer
from util.benchmarks import plain_features
from util.benchmarks.plain_attention import published_attention

IGNORE = -100


@dataclass(frozen=True)
class Step:
    """A training step on one batch, in its three parts."""

    forward: Callable[[], dict[str, Tensor]]  # gives the loss, among other things
    backward: Callable[[dict[str, Tensor]], object]
    update: Callable[[], object]

    def __call__(self) -> object:
        """Take it; returns what the update tells."""
        self.backward(self.forward())
        return self.update()


def plain_step(model: SALMONN, run: DictConfig, samples: Samples, sdpa: bool = False) -> Step:
    """The plain step of a model on a batch, or its SDPA form; `run`: the config section."""
    extractor = extractor_of(model)
    optimizer = looping_optimizer(model, run)

    def forward() -> dict[str, Tensor]:
        with published_attention(model, sdpa), everything_kept(model), autocast(run, model.device):
            return {"loss": plain_loss(model, extractor, samples)}

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Step(forward, lambda result: result["loss"].backward(), update)


def extractor_of(model: SALMONN) -> WhisperFeatureExtractor:
    """The settings of Whisper's features for what a model hears."""
    return WhisperFeatureExtractor(chunk_length=round(model.max_seconds))


def looping_optimizer(model: SALMONN, run: DictConfig) -> AdamW:
    """Our optimiser's groups in torch's default implementation, which is not fused."""
    groups = build_optimizer(model, run.optims).param_groups
    return AdamW([{key: value for key, value in group.items() if key != "fused"} for group in groups])


def plain_loss(model: SALMONN, extractor: WhisperFeatureExtractor, samples: Samples) -> Tensor:
    """Mean cross-entropy of a batch's target tokens, a scalar."""
    return answer_loss(model, heard(model, extractor, samples), samples["prompts"], samples["text"])


def heard(model: SALMONN, extractor: WhisperFeatureExtractor, samples: Samples) -> Tensor:
    """Audio tokens [B, A, H] of a batch."""
    raw_wav = samples["raw_wav"].to(model.device)  # [B, N]
    lengths = fbank_lengths((~samples["padding_mask"]).sum(dim=1)).to(model.device)
    log_mel = samples.get("spectrogram")  # [B, 80, 3000]; the loader's work, where it is given
    log_mel = mels(raw_wav, extractor) if log_mel is None else log_mel.to(model.device)
    return encode(model, log_mel, fbanks(raw_wav), lengths)


def mels(raw_wav: Tensor, extractor: WhisperFeatureExtractor) -> Tensor:
    """log-mel [B, 80, 3000] of waveforms [B, N], clip by clip."""
    each = [plain_features.log_mel(wav.cpu().numpy(), extractor) for wav in raw_wav]
    return torch.stack(each).to(raw_wav.device)


def fbanks(raw_wav: Tensor) -> Tensor:
    """Filter bank [B, T, 128] of waveforms [B, N], clip by clip."""
    return torch.stack([plain_features.fbank(wav) for wav in raw_wav])


def encode(model: SALMONN, log_mel: Tensor, fbank: Tensor, fbank_frames: Tensor) -> Tensor:
    """Both encoders, windows, Q-Former, projection; `fbank_frames` [B] are valid -> [B, A, H]."""
    speech = model.speech_encoder(log_mel.to(model.speech_encoder.dtype)).last_hidden_state  # [B, T, D]
    assert model.beats is not None  # the published model has both
    audio, padding = model.beats(fbank.to(model.beats.dtype), fbank_frames)  # [B, P, D_beats]
    speech = model.ln_speech(speech.float())
    audio = model.ln_audio(audio.float()).masked_fill(padding[..., None], 0.0)
    frames = max(speech.shape[1], audio.shape[1])
    both = torch.cat([F.pad(x, (0, 0, 0, frames - x.shape[1])) for x in (speech, audio)], dim=-1)
    kernel, stride = (window_frames(model.config[key]) for key in ("second_per_window", "second_stride"))
    windows = F.unfold(both.transpose(1, 2)[:, :, None], (1, kernel), stride=(1, stride))  # [B, D * kernel, L]
    windows = windows.unflatten(1, (-1, kernel)).permute(0, 3, 2, 1).flatten(0, 1)  # [B * L, kernel, D]
    hidden = model.speech_Qformer(model.speech_query_tokens, windows)
    return model.speech_llama_proj(hidden).reshape(len(both), -1, model.speech_llama_proj.out_features)


def answer_loss(model: SALMONN, embeds: Tensor, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Loss of the target tokens behind prompt and audio [B, A, H]: all logits, then all but the targets ignored."""
    llm = model.llama_model.get_base_model()
    ended = tokenize(model.tokenizer, [text + model.config.end_sym for text in texts])
    targets, is_target = _padded([ids[: model.config.max_txt_len] for ids in ended], model.device)  # [B, N]
    prompt, prompt_mask = prompt_inputs(model, embeds, prompts)
    inputs = torch.cat([prompt, llm.get_input_embeddings()(targets)], dim=1)  # [B, L, H]
    mask = torch.cat([prompt_mask, is_target], dim=1)
    ignored = torch.full(prompt_mask.shape, IGNORE, device=model.device)
    labels = torch.cat([ignored, targets.masked_fill(is_target == 0, IGNORE)], dim=1)

    logits = llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits  # [B, L, V]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def prompt_inputs(model: SALMONN, embeds: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the LLM reads before it answers, each segment padded on its right: embeddings [B, L, H] and mask [B, L]."""
    tokenizer, embed = model.tokenizer, model.llama_model.get_input_embeddings()
    before, after = (tokenize(tokenizer, texts) for texts in zip(*map(split_prompt, prompts), strict=True))
    segments = [[tokenizer.bos_token_id]] * len(prompts), before, after
    ids, masks = zip(*(_padded(segment, model.device) for segment in segments), strict=True)
    text = [embed(segment) for segment in ids]
    audio_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device)
    inputs = torch.cat([*text[:2], embeds.to(text[0].dtype), text[2]], dim=1)
    return inputs, torch.cat([*masks[:2], audio_mask, masks[2]], dim=1)


def _padded(ids: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, N] of rows of different length."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    masks = [torch.ones_like(row) for row in rows]
    return pad_sequence(rows, batch_first=True).to(device), pad_sequence(masks, batch_first=True).to(device)


@contextmanager
def everything_kept(model: SALMONN) -> Iterator[None]:
    """Let autograd keep what `salmonn.model.activation_memory` would make again."""
    lean = {module: type(module) for module in model.modules() if isinstance(module, Recomputing)}
    for module, kind in lean.items():
        module.__class__ = kind.__bases__[1]
    try:
        yield
    finally:
        for module, kind in lean.items():
            module.__class__ = kind
