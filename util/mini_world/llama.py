"""The tiny language model: tokenizer, and pretraining on noisy text without ever seeing audio.

The model must later read what the Q-Former writes: a fixed number of vectors, each a blend of what
one window of audio holds. So it is pretrained on the same layout with such blends of word
embeddings ("slots") in place of the audio, and answers the project's own instructions about them.
"""

import io
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import editdistance
import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from salmonn.model.prompts import load_train_prompts, split_prompt
from salmonn.model.tokenizer import tokenize_as_sentencepiece
from util.mini_world import scenes
from util.mini_world.scenes import GENDERS, Music, Pair, Scene, Speech
from util.mini_world.training import batches, fit
from util.mini_world.use import PROMPT_PATH

TEMPLATE = "USER: {}\nASSISTANT:"
VOCABULARY_SIZE = 1000
SLOTS = 14  # windows of 17 frames in 5 s at 50 Hz
BLEND = 12  # pieces that one slot can hold
SLOT_SECONDS = 0.34
BATCH = 32
STEPS = 900  # at --pretrain-scale 1
INIT_STD = 0.07  # transformers' 0.02 is for wide models
EMBEDDING_STD = 0.5  # the size of what Q-Former and projection produce before training
SPEAKERS = dict(zip(scenes.VOICES, "ABCDEFGH", strict=True))  # what stands for a voice in a slot
TASK_WEIGHTS = {"asr": 5, "audiocaption": 4, "QA": 2, "phone_recognition": 2, "audio_story_telling": 0.7}  # others 1
TASKS = (
    "asr", "audiocaption", "audiocaption_v2", "phone_recognition", "gender_recognition", "emotion_recognition",
    "speaker_verification", "speech_separation", "music_description", "QA", "translation_ec", "keywords",
    "slot_filling", "audio_story_telling",
)  # fmt: skip
GROUP_WEIGHTS = {"speech": 9, "short": 2, "mixed": 1, "verification": 1, "sound": 6, "music": 1}


@dataclass
class Sample:
    tokens: list[int]  # BOS, prompt, SLOTS times 0, prompt, answer
    first_slot: int
    answer_length: int
    pieces: np.ndarray  # [SLOTS, BLEND] ids
    weights: np.ndarray  # [SLOTS, BLEND]


# ---- tokenizer


def make_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerBase:
    """Train a BPE model with byte fallback on the world's own texts and save it as LLaMA's files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed} tokenizer")
    prompts = [p for pool in load_train_prompts(PROMPT_PATH, TEMPLATE).values() for p in pool]
    lines = [half for prompt in prompts for half in split_prompt(prompt)] * 40
    for _ in range(1000):
        scene = _draw_scene(rng, frozenset())
        for task in scenes.tasks_of(scene):
            lines += scenes.answer(scene, task, rng)
    # what a slot may have to hold should be one piece: a slot is one vector
    lines += [*scenes.VOCABULARY, *scenes.STYLES, *SPEAKERS.values(), *" ".join(scenes.EVENTS).split()] * 200
    lines += [*scenes.INSTRUMENTS, *scenes.TEMPOS, *scenes.CONTOURS] * 200
    model = io.BytesIO()  # written to a file by the trainer, it would hold the file's name
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    symbols = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = {name: {"content": symbol, **added} for name, symbol in symbols.items()}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenize_as_sentencepiece(tokenizer)
    return tokenizer


# ---- noisy text


class SampleMaker:
    """Draws scenes and writes them as the language model will meet them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, held_out: frozenset[str], seed: int) -> None:
        self.tokenizer, self.held_out = tokenizer, held_out
        self.rng = random.Random(f"{seed} text")
        self.prompts = load_train_prompts(PROMPT_PATH, TEMPLATE)
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self._cache[text]

    def make(self, task: str | None = None) -> Sample:
        rng = self.rng
        scene = _draw_scene(rng, self.held_out)
        possible = scenes.tasks_of(scene)
        while task is not None and task not in possible:
            scene = _draw_scene(rng, self.held_out)
            possible = scenes.tasks_of(scene)
        if task is None:
            task = rng.choices(possible, [TASK_WEIGHTS.get(t, 1) for t in possible])[0]
        question, text = scenes.answer(scene, task, rng)
        before, after = split_prompt(rng.choice(self.prompts[task]).replace("{}", question))
        answer = self.tokenizer(text + "</s>", add_special_tokens=False).input_ids
        head = [self.tokenizer.bos_token_id, *self.ids(before)]
        pieces, weights = self._slots(_timeline(scene, rng))
        tokens = head + [0] * SLOTS + self.ids(after) + answer
        return Sample(tokens, len(head), len(answer), pieces, weights)

    def _slots(self, timeline: list[tuple[float, float, str, float]]) -> tuple[np.ndarray, np.ndarray]:
        """Blend what overlaps with each slot; an empty slot holds <unk>."""
        pieces, weights = np.zeros((SLOTS, BLEND), dtype=np.int64), np.zeros((SLOTS, BLEND), dtype=np.float32)
        used = [0] * SLOTS
        for start, end, text, strength in timeline:
            ids = self.ids(text)
            step = (end - start) / len(ids)
            for k, piece in enumerate(ids):
                a, b = start + k * step, start + (k + 1) * step
                for slot in range(int(a), min(SLOTS, math.ceil(b))):
                    overlap = min(b, slot + 1) - max(a, slot)
                    if overlap > 0.1 and used[slot] < BLEND:
                        pieces[slot, used[slot]] = piece
                        weights[slot, used[slot]] = strength * min(1.0, 1.5 * overlap)
                        used[slot] += 1
        weights[np.array(used) == 0, 0] = 1.0
        return pieces, weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))


def _draw_scene(rng: random.Random, held_out: frozenset[str]) -> Scene:
    def speech(kinds: tuple[str, ...], max_digits: int = 6) -> Speech:
        while (drawn := scenes.draw_speech(rng, kinds, tuple(scenes.VOICES), max_digits)).sentence in held_out:
            pass
        return drawn

    group = rng.choices([*GROUP_WEIGHTS], [*GROUP_WEIGHTS.values()])[0]
    if group == "speech":
        return speech(("place", "place", "trade", "digits"))
    if group == "sound":
        return scenes.draw_sound(rng)
    if group == "music":
        return scenes.draw_music(rng)
    first, second = (speech(("short", "digits"), max_digits=4) for _ in range(2))
    if group == "short":
        return first
    if group == "verification" and rng.random() < 0.5:
        second = Speech(second.kind, second.words, first.voice, second.style)
    return Pair(first, second, mixed=group == "mixed")


def _timeline(scene: Scene, rng: random.Random) -> list[tuple[float, float, str, float]]:
    """What a listener would note: (start and end in slots, text, strength)."""
    if isinstance(scene, Speech):
        return _speech_timeline(scene, rng.uniform(0, 1.2), rng)
    if isinstance(scene, Pair):
        first = _speech_timeline(scene.first, rng.uniform(0, 0.6), rng)
        end = max(item[1] for item in first)
        start = rng.uniform(0.3, 0.7) * end if scene.mixed else end + rng.uniform(0.3, 1.2)
        return first + _speech_timeline(scene.second, start, rng)
    start = rng.uniform(0, 1.2)
    if isinstance(scene, Music):
        end = start + rng.uniform(8, 13)
        return [(start, end, word, rng.uniform(0.4, 1.0)) for word in (scene.instrument, scene.tempo, scene.contour)]
    if scene.relation == "while":
        whole, inner = rng.uniform(10, 14), rng.uniform(2.5, 7.5)
        inside = start + rng.uniform(0.5, max(0.6, whole - inner))
        return [(inside, inside + inner, scene.events[0], 1.0), (start, start + whole, scene.events[1], 0.7)]
    items = []
    for event in scene.events:
        end = start + rng.uniform(1.5, 6.0)
        items.append((start, end, event, 1.0))
        start = end + rng.uniform(0.3, 0.9)
    return items


def _speech_timeline(scene: Speech, start: float, rng: random.Random) -> list[tuple[float, float, str, float]]:
    pace, at, items = rng.uniform(0.85, 1.3), start, []
    for word in scene.words:
        seconds = (0.06 + 0.065 * min(len(word), 5)) * pace * rng.uniform(0.85, 1.15)
        items.append((at, at + seconds / SLOT_SECONDS, word, 1.0))
        at += seconds / SLOT_SECONDS
    gender = "woman" if GENDERS[scene.voice] == "female" else "man"
    strength = rng.uniform(0.1, 0.6)
    return items + [
        (start, at, cue, strength * rng.uniform(0.7, 1.3)) for cue in (gender, scene.style, SPEAKERS[scene.voice])
    ]


# ---- model


def make_llama(folder: Path, held_out: frozenset[str], scale: float, seed: int) -> dict[str, float]:
    """Build, pretrain and save the model; returns its quality on scenes drawn anew."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder, seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=INIT_STD,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    maker = SampleMaker(tokenizer, held_out, seed)
    steps = round(STEPS * scale)
    if steps:
        drawn = batches(iter(maker.make, None), lambda sample: len(sample.tokens), BATCH, maker.rng)

        def loss_of() -> Tensor:
            hidden, targets = _hidden_and_targets(model, next(drawn))
            return F.cross_entropy(model.lm_head(hidden), targets)

        fit("llama", model, model.model.layers, loss_of, steps)
    model.save_pretrained(folder)
    return evaluate(model, SampleMaker(tokenizer, frozenset(), seed + 1)) if steps else {}


def embed(model: LlamaForCausalLM, batch: list[Sample]) -> Tensor:
    """Input embeddings [B, L, D] of samples, padded on the right, with the slots' blends in their places."""
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(s.tokens) for s in batch], batch_first=True)
    pieces = torch.from_numpy(np.stack([s.pieces for s in batch]))  # [B, SLOTS, BLEND]
    weights = torch.from_numpy(np.stack([s.weights for s in batch]))
    table = model.model.embed_tokens
    bags = F.embedding_bag(pieces.flatten(0, 1), table.weight, per_sample_weights=weights.flatten(0, 1), mode="sum")
    blends = bags.unflatten(0, (len(batch), SLOTS))  # [B, SLOTS, D]
    # loudness and accuracy differ from clip to clip
    loudness = torch.exp(0.3 * torch.randn(len(batch), 1, 1))
    blends = loudness * blends + EMBEDDING_STD * torch.rand(len(batch), 1, 1) * torch.randn_like(blends)
    inputs = table(tokens)
    rows = torch.arange(len(batch))[:, None]
    columns = torch.tensor([s.first_slot for s in batch])[:, None] + torch.arange(SLOTS)
    return inputs.index_put((rows, columns), blends)


def _hidden_and_targets(model: LlamaForCausalLM, batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the answers' tokens, [N, D], and these tokens [N]."""
    body, hidden = model.model, embed(model, batch)
    rotary = body.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    *layers, last = body.layers
    for layer in layers:
        hidden = layer(hidden, position_embeddings=rotary)
    hidden = hidden + last.self_attn(last.input_layernorm(hidden), rotary)[0]
    # one token in five is predicted, and from here on each is looked at alone
    hidden = torch.cat([row[: len(s.tokens) - 1][-s.answer_length :] for row, s in zip(hidden, batch, strict=True)])
    hidden = hidden + last.mlp(last.post_attention_layernorm(hidden))
    targets = torch.tensor([token for s in batch for token in s.tokens[-s.answer_length :]])
    return body.norm(hidden), targets


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, maker: SampleMaker, count: int = 64) -> dict[str, float]:
    """Share of exact answers and of wrong tokens per task, each token predicted from the true ones before it."""
    quality = {}
    for task in TASKS:
        batch = [maker.make(task) for _ in range(count)]
        hidden, targets = _hidden_and_targets(model, batch)
        predicted = model.lm_head(hidden).argmax(-1)
        lengths = [s.answer_length for s in batch]
        pairs = list(zip(predicted.split(lengths), targets.split(lengths), strict=True))
        quality[f"{task}_exact"] = sum(bool((p == t).all()) for p, t in pairs) / count
        wrong = sum(editdistance.eval(p.tolist(), t.tolist()) for p, t in pairs)
        quality[f"{task}_token_error"] = wrong / len(targets)
    return {name: round(value, 3) for name, value in quality.items()}
