"""The corpus: which clips there are, their files, and the annotation files of the three stages."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from util.mini_world.render import BREAKAGES, Clip, render
from util.mini_world.scenes import (
    GENDERS,
    VOICES,
    Pair,
    Scene,
    Speech,
    answer,
    draw_music,
    draw_sound,
    draw_speech,
    tasks_of,
)

SHARES = {"speech": 0.38, "short": 0.10, "mixed": 0.10, "sound": 0.34, "music": 0.08}
VALID_SHARE = 0.05  # of the training clips, on top of them
FORMATS = {"wav": 80, "ogg": 3, "mp3": 2, "flac": 15}  # weights; an ogg takes as long as 13 wavs, an mp3 as 28
RATES = {16_000: 70, 8_000: 5, 22_050: 5, 24_000: 5, 32_000: 5, 44_100: 5, 48_000: 5}  # Hz; weights, likewise
SPLITS = ("test", "valid", "train")  # in the order in which sentences are given out
STAGE_TASKS = {  # None: everything that is trained before stage 3
    "stage1": {"asr", "audiocaption"},
    "stage2": None,
    "stage3": {"audio_story_telling"},
}
ALWAYS_ASKED = {"gender_recognition", "emotion_recognition", "audiocaption", "music_description"}  # in stage 2
UNTRAINED_TASKS = {"keywords", "slot_filling", "audio_story_telling"}  # not in stage 2


class LeakError(Exception):
    """Something of a test set is in a training or validation set."""


def plan(train_clips: int, test_clips: int, broken: float, seed: int) -> list[Clip]:
    """Decide on every clip of the world; nothing is rendered yet."""
    rng = random.Random(seed)
    sizes = {"test": test_clips, "valid": max(10, round(VALID_SHARE * train_clips)), "train": train_clips}
    taken: dict[str, str] = {}  # sentence: split that it belongs to
    clips: list[Clip] = []
    for split in SPLITS:
        count = sizes[split] + (round(broken * train_clips) if split == "train" else 0)
        for i in range(count):
            is_broken = i >= sizes[split]
            group = rng.choices([*SHARES], [*SHARES.values()])[0] if is_broken else _group(i / sizes[split])
            scene = _draw(group, split, taken, rng)
            kind = rng.choice(list(BREAKAGES)) if is_broken else ""
            suffix = BREAKAGES[kind] if kind else rng.choices([*FORMATS], [*FORMATS.values()])[0]
            path = f"/{group}/{split}_{i:05d}.{suffix}"
            clip_seed = (seed, SPLITS.index(split), i)
            rate = rng.choices([*RATES], [*RATES.values()])[0]
            clips.append(Clip(split, path, scene, rate, rng.random() < 0.2, clip_seed, group == "short", kind))
    return clips


def _group(position: float) -> str:
    """Group of the clip at a relative position in its split, so that every split has its share of all."""
    for group, share in SHARES.items():
        position -= share
        if position < -1e-9:
            return group
    return "music"


def _draw(group: str, split: str, taken: dict[str, str], rng: random.Random) -> Scene:
    if group == "sound":
        return draw_sound(rng)
    if group == "music":
        return draw_music(rng)
    voices = tuple(GENDERS if split == "test" else VOICES)

    def fresh(kinds: tuple[str, ...], max_digits: int = 6) -> Speech:
        while True:
            speech = draw_speech(rng, kinds, voices, max_digits)
            if taken.setdefault(speech.sentence, split) == split:
                return speech

    if group == "speech":
        return fresh(("place", "place", "trade", "digits"))
    if group == "short":
        return fresh(("short", "digits"), max_digits=4)
    first = fresh(("short", "digits"), max_digits=4)
    while (second := fresh(("short", "digits"), max_digits=4)).voice == first.voice:
        pass
    return Pair(first, second, mixed=True)


def write_audio(clips: list[Clip], audio_dir: Path, pools: Sequence[Executor]) -> list[Clip]:
    """Render all files; returns the clips with their timings.

    Each pool is one fresh process that renders its share in order: what espeak-ng says depends a
    little on what it said before, so a free choice of the worker would change the corpus.
    """
    for group in SHARES:
        (audio_dir / group).mkdir(parents=True, exist_ok=True)
    task = partial(render, audio_dir=audio_dir)
    shares = [pool.map(task, clips[i :: len(pools)], chunksize=8) for i, pool in enumerate(pools)]
    return [next(shares[i % len(pools)]) for i in tqdm(range(len(clips)), desc="clips", mininterval=1.0)]


def write_annotations(clips: list[Clip], ann_dir: Path, seed: int) -> dict[str, int]:
    """Write the annotation files of the stages and of the tests; returns the number of entries of each."""
    ann_dir.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict]] = {}
    for split in SPLITS:
        rng = random.Random(f"{seed} {split}")
        chosen = [clip for clip in clips if clip.split == split]
        pairs = _verification_pairs([clip for clip in chosen if clip.short], rng)
        if split == "test":
            by_task: dict[str, list[dict]] = defaultdict(list)
            for clip in chosen:
                for task in tasks_of(clip.scene):
                    by_task[task].append(_entry(clip, task, rng))
            by_task["speaker_verification"] = pairs
            for task, entries in by_task.items():
                numbered = [{**entry, "testset_id": f"{task}_{i:04d}"} for i, entry in enumerate(entries)]
                files[f"test_{task}"] = numbered
            continue
        for stage, tasks in STAGE_TASKS.items():
            entries = [_entry(clip, task, rng) for clip in chosen for task in _stage_tasks(clip, tasks, rng)]
            files[f"{stage}_{split}"] = entries + (pairs if stage == "stage2" else [])
    for name, entries in files.items():
        text = json.dumps({"annotation": entries}, ensure_ascii=False, indent=1)
        (ann_dir / f"{name}.json").write_text(text, encoding="utf-8")
    return {name: len(entries) for name, entries in files.items()}


def _stage_tasks(clip: Clip, tasks: set[str] | None, rng: random.Random) -> list[str]:
    possible = tasks_of(clip.scene)
    if tasks is not None:
        return [task for task in possible if task in tasks]
    # speech can be asked about in more ways than the rest: not all of them, or the rest would be lost
    always = [task for task in possible if task in ALWAYS_ASKED]
    others = [task for task in possible if task not in ALWAYS_ASKED | UNTRAINED_TASKS]
    return always + rng.sample(others, min(2 if isinstance(clip.scene, Speech) else 1, len(others)))


def _entry(clip: Clip, task: str, rng: random.Random) -> dict:
    question, text = answer(clip.scene, task, rng)
    return {"path": clip.path, "text": text, "task": task} | ({"Q": question} if question else {})


def _verification_pairs(clips: list[Clip], rng: random.Random) -> list[dict]:
    """Two pairs for each short clip, one with another clip of the same voice and one with another voice."""
    entries = []
    for clip in clips:
        for same in (True, False):
            others = [o for o in clips if o is not clip and (o.scene.voice == clip.scene.voice) == same]
            if others:
                other = rng.choice(others)
                pair = Pair(clip.scene, other.scene, mixed=False)  # type: ignore[arg-type]  # short clips are speech
                text = answer(pair, "speaker_verification", rng)[1]
                entries.append(
                    {"path": clip.path, "expand_wav": [other.path], "text": text, "task": "speaker_verification"}
                )
    return entries


def sentences(clips: Iterable[Clip]) -> set[str]:
    found = set()
    for clip in clips:
        scene = clip.scene
        if isinstance(scene, Speech):
            found.add(scene.sentence)
        elif isinstance(scene, Pair):
            found |= {scene.first.sentence, scene.second.sentence}
    return found


def check_splits(clips: list[Clip]) -> None:
    """Raise LeakError unless no clip and no sentence of the test set is in another split."""
    test = [clip for clip in clips if clip.split == "test"]
    rest = [clip for clip in clips if clip.split != "test"]
    for what, leaked in (
        ("sentences", sentences(test) & sentences(rest)),
        ("paths", {c.path for c in test} & {c.path for c in rest}),
        ("recordings", {c.digest for c in test} & {c.digest for c in rest}),
    ):
        if leaked:
            raise LeakError(f"{len(leaked)} {what} of the test set are in training or validation: {sorted(leaked)[:3]}")


def check_annotations(ann_dir: Path) -> None:
    """The same for the files as written: paths, joined clips and spoken texts."""

    def contents(pattern: str) -> tuple[set[str], set[str]]:
        paths, texts = set(), set()
        for file in ann_dir.glob(pattern):
            for entry in json.loads(file.read_text(encoding="utf-8"))["annotation"]:
                paths.update([entry["path"], *entry.get("expand_wav", [])])
                if entry["task"] in ("asr", "speech_separation"):
                    texts.update(entry["text"].split("\n"))
        return paths, texts

    for what, test, rest in zip(("paths", "sentences"), contents("test_*.json"), contents("stage*.json"), strict=True):
        if test & rest:
            raise LeakError(f"{what} of test_*.json are in stage*.json: {sorted(test & rest)[:3]}")
