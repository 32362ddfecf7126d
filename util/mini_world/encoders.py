"""The tiny Whisper and BEATs, pretrained on the training clips and then frozen for good.

Whisper learns which phoneme and which word each frame belongs to (the synthesiser knows when it
said what; CTC without these times learns far slower). BEATs learns to classify: what sounds at
each step, and how the clip is as a whole (voice, style, instrument ...).
"""

import itertools
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from salmonn.audio.decode import load_clip
from salmonn.model.beats import BEATs
from salmonn.model.features import LogMel, kaldi_fbank
from util.mini_world import scenes
from util.mini_world.render import Clip, Track
from util.mini_world.scenes import GENDERS, Music, Sound
from util.mini_world.shapes import BEATS_CONFIG
from util.mini_world.training import batches, endless, fit

SECONDS = 5  # what the tiny Whisper hears, instead of 30
FRAMES_PER_SECOND = 50
WHISPER_STEPS, WHISPER_BATCH = 500, 8  # steps at --pretrain-scale 1
BEATS_STEPS, BEATS_BATCH = 600, 16
ATTRIBUTE_WEIGHT = 0.2
SOUND_REPEATS, MUSIC_REPEATS = 3, 2
INIT_STD = 0.08  # transformers' 0.02 is for wide models
IGNORE = -100
SOUNDS = ("silence", *scenes.EVENTS, "speech", "music")  # two may be on at the same time
ATTRIBUTES = {  # one value per clip, where it has the attribute at all
    "gender": ("female", "male"),
    "style": scenes.STYLES,
    "voice": tuple(scenes.VOICES),
    "instrument": scenes.INSTRUMENTS,
    "tempo": scenes.TEMPOS,
    "contour": scenes.CONTOURS,
}


def _wave(clip: Clip, audio_dir: Path) -> Tensor:
    """16 kHz samples [1, N], by the same code as in training."""
    return torch.from_numpy(load_clip([audio_dir / clip.path[1:]], SECONDS))[None]


# ---- Whisper


def make_whisper(folder: Path, clips: list[Clip], audio_dir: Path, scale: float, seed: int) -> dict[str, float]:
    """Build, pretrain and save the speech encoder; returns its framewise accuracies on the validation clips."""
    torch.manual_seed(seed)
    frames = SECONDS * FRAMES_PER_SECOND
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)
    extractor.save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=80,
        d_model=96,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_layers=1,  # never used
        decoder_attention_heads=2,
        decoder_ffn_dim=8,
        max_source_positions=frames,
        max_target_positions=16,
        init_std=INIT_STD,
        dropout=0.0,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=4,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    whisper = WhisperModel(config)
    quality = _pretrain_whisper(whisper, LogMel(extractor), clips, audio_dir, scale, seed) if scale else {}
    whisper.save_pretrained(folder)
    return quality


def _pretrain_whisper(
    whisper: WhisperModel, log_mel: LogMel, clips: list[Clip], audio_dir: Path, scale: float, seed: int
) -> dict[str, float]:
    spoken = [clip for clip in clips if clip.words and not clip.broken]
    train, valid = ([clip for clip in spoken if clip.split == split] for split in ("train", "valid"))
    phones = sorted({phone for clip in (*train, *valid) for track in clip.phones for _, phone in track})
    words = sorted({word for clip in (*train, *valid) for track in clip.words for _, word in track})
    heads = nn.ModuleDict({"phone": nn.Linear(96, len(phones)), "word": nn.Linear(96, len(words))})

    def examples(chosen: list[Clip]) -> tuple[Tensor, Tensor, Tensor]:
        mels = torch.cat([log_mel(_wave(c, audio_dir)).half() for c in chosen])  # [N, 80, 500]
        return mels, _frame_labels([c.phones for c in chosen], phones), _frame_labels([c.words for c in chosen], words)

    mels, phone_labels, word_labels = examples(train)
    order = endless(range(len(train)), random.Random(seed))
    encoder = whisper.get_encoder()

    def loss_of() -> Tensor:
        rows = list(itertools.islice(order, WHISPER_BATCH))
        states = encoder(mels[rows].float()).last_hidden_state.flatten(0, 1)
        pairs = ((heads["phone"](states), phone_labels[rows]), (heads["word"](states), word_labels[rows]))
        losses = [F.cross_entropy(logits, labels[:, k].flatten()) for logits, labels in pairs for k in range(2)]
        return sum(losses) / 2  # type: ignore[return-value]

    fit("whisper", nn.ModuleList([encoder, heads]), encoder.layers, loss_of, round(WHISPER_STEPS * scale))
    mels, phone_labels, word_labels = examples(valid)
    with torch.no_grad():
        states = encoder(mels.float()).last_hidden_state
    quality = {}
    for name, labels, names in (("phone", phone_labels, phones), ("word", word_labels, words)):
        alone = (labels[:, 0] == labels[:, 1]) & (labels[:, 0] != names.index(""))
        right = heads[name](states).argmax(-1) == labels[:, 0]
        quality[f"frame_{name}_accuracy"] = round(float(right[alone].float().mean()), 3)
    return quality


def _frame_labels(clips: list[list[Track]], names: list[str]) -> Tensor:
    """[N, 2, frames] what is on at the middle of each frame; both rows are equal where one speaker is alone."""
    frames = SECONDS * FRAMES_PER_SECOND
    middle = (np.arange(frames) + 0.5) / FRAMES_PER_SECOND
    labels = np.zeros((len(clips), 2, frames), dtype=np.int64)
    silence = names.index("")
    for row, tracks in enumerate(clips):
        for k, track in enumerate(tracks):
            which = np.searchsorted([start for start, _ in track], middle, side="right") - 1
            labels[row, k] = np.array([names.index(name) for _, name in track])[which]
        first, second = labels[row, 0], labels[row, len(tracks) - 1]
        labels[row] = np.where(first == silence, second, first), np.where(second == silence, first, second)
    return torch.from_numpy(labels)


# ---- BEATs


class Classifier(nn.Module):
    """BEATs with the head of its fine-tuned files, applied to every time step."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.beats = BEATs(BEATS_CONFIG)
        self.predictor = nn.Linear(BEATS_CONFIG["encoder_embed_dim"], classes)

    def forward(self, fbanks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, T, classes] of the time steps (16 fbank frames each) and where they are valid [B, T]."""
        padded = nn.utils.rnn.pad_sequence(fbanks, batch_first=True).float()
        features, padding = self.beats(padded, torch.tensor([len(fbank) for fbank in fbanks]))  # [B, T * 8, D]
        bands = self.beats.patches_per_step
        return self.predictor(features.unflatten(1, (-1, bands)).mean(dim=2)), ~padding[:, ::bands]


def make_beats(path: Path, clips: list[Clip], audio_dir: Path, scale: float, seed: int) -> dict[str, float]:
    """Build, pretrain and save the audio encoder; returns its accuracies on the validation clips."""
    torch.manual_seed(seed)
    names = [*SOUNDS, *(f"{a} {value}" for a, values in ATTRIBUTES.items() for value in values)]
    model = Classifier(len(names))
    quality = _pretrain_beats(model, clips, audio_dir, scale, seed) if scale else {}
    weights = model.beats.state_dict() | {f"predictor.{k}": v for k, v in model.predictor.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {**BEATS_CONFIG, "predictor_class": len(names)}
    torch.save({"cfg": config, "model": weights, "label_dict": dict(enumerate(names))}, path)
    return quality


def _pretrain_beats(model: Classifier, clips: list[Clip], audio_dir: Path, scale: float, seed: int) -> dict[str, float]:
    good = [clip for clip in clips if not clip.broken]
    train, valid = ([clip for clip in good if clip.split == split] for split in ("train", "valid"))
    fbanks = _fbanks(train, audio_dir)
    steps = SECONDS * 100 // 16  # time steps of the longest clip
    sounding, attributes = _sounding(train, steps), _attributes(train)
    # what is rarer and more varied comes more often
    repeats = [{Sound: SOUND_REPEATS, Music: MUSIC_REPEATS}.get(type(clip.scene), 1) for clip in train]
    model.beats.encoder.layerdrop = 0.0  # as short as this training is, dropping layers only slows it
    rng = random.Random(seed)
    order = endless(np.repeat(np.arange(len(train)), repeats).tolist(), rng)
    drawn = batches(order, lambda row: len(fbanks[row]), BEATS_BATCH, rng)

    def loss_of() -> Tensor:
        rows = next(drawn)
        logits, valid_steps = model([fbanks[row] for row in rows])
        T = logits.shape[1]
        loss = F.cross_entropy(logits[..., : len(SOUNDS)][valid_steps], sounding[rows][:, :T][valid_steps])
        for name, values in _split(logits).items():
            labels = attributes[name][rows]
            known = (labels != IGNORE)[:, None] & valid_steps
            if known.any():
                loss = loss + ATTRIBUTE_WEIGHT * F.cross_entropy(values[known], labels[:, None].expand(-1, T)[known])
        return loss

    fit("beats", model, model.beats.encoder.layers, loss_of, round(BEATS_STEPS * scale))
    with torch.no_grad():
        logits, valid_steps = model(_fbanks(valid, audio_dir))
    return _beats_quality(logits, valid_steps, _sounding(valid, steps)[:, : logits.shape[1]], _attributes(valid))


def _fbanks(clips: list[Clip], audio_dir: Path) -> list[Tensor]:
    return [kaldi_fbank(_wave(clip, audio_dir))[0].half() for clip in clips]


def _split(logits: Tensor) -> dict[str, Tensor]:
    parts = logits[..., len(SOUNDS) :].split([len(values) for values in ATTRIBUTES.values()], dim=-1)
    return dict(zip(ATTRIBUTES, parts, strict=True))


def _sounding(clips: list[Clip], steps: int) -> Tensor:
    """[N, steps, sounds]: distribution over the sounds that are on, one or two equally likely ones."""
    on = np.zeros((len(clips), steps, len(SOUNDS)), dtype=np.float32)
    edges = np.arange(steps + 1) * 0.16  # s
    for row, clip in enumerate(clips):
        kind = "music" if isinstance(clip.scene, Music) else "speech"
        spans = clip.events if isinstance(clip.scene, Sound) else [(0.0, float(SECONDS), kind)]
        for start, end, name in spans:
            overlap = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
            on[row, :, SOUNDS.index(name)] = overlap > 0.08
    on[..., 0] = on.sum(axis=-1) == 0
    return torch.from_numpy(on / on.sum(axis=-1, keepdims=True))


def _attributes(clips: list[Clip]) -> dict[str, Tensor]:
    def value(clip: Clip, name: str) -> str:
        if name == "gender":
            return GENDERS.get(getattr(clip.scene, "voice", ""), "")
        return getattr(clip.scene, name, "")

    def index(clip: Clip, name: str) -> int:
        found = value(clip, name)
        return ATTRIBUTES[name].index(found) if found in ATTRIBUTES[name] else IGNORE

    return {name: torch.tensor([index(clip, name) for clip in clips]) for name in ATTRIBUTES}


def _beats_quality(
    logits: Tensor, valid_steps: Tensor, sounding: Tensor, attributes: dict[str, Tensor]
) -> dict[str, float]:
    right = ((logits[..., : len(SOUNDS)].softmax(dim=-1) > 0.25) == (sounding > 0)).all(dim=-1)
    quality = {"step_sounds_exact": float(right[valid_steps].float().mean())}
    weight = valid_steps[..., None].float()
    for name, values in _split(logits).items():
        clip_logits = (values * weight).sum(dim=1) / weight.sum(dim=1)
        known = attributes[name] != IGNORE
        if known.any():
            quality[name] = float((clip_logits.argmax(-1) == attributes[name])[known].float().mean())
    return {name: round(accuracy, 3) for name, accuracy in quality.items()}
