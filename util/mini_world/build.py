"""Builds a whole world: the language model beside the corpus, then the two encoders that hear it."""

import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.common.files import write_text
from util.jobs import read_note
from util.mini_world import corpus

FOLDERS = ("audio", "ann", "weights")
SUMMARY = "world.json"


def build(out: Path, settings: dict[str, Any]) -> None:
    """Make the world in `out`, unless it is there already."""
    settings = {**settings, "code": _fingerprint()}
    summary_path = out / SUMMARY
    earlier = _read_summary(out)
    if earlier and earlier["complete"] and earlier["settings"] == settings and _is_whole(out, earlier):
        print(f"{out} is complete already ({sum(earlier['clips'].values())} clips, same settings).")
        return
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"complete": False, "settings": settings}
    _write(summary_path, summary)

    seed, scale = settings["seed"], settings["pretrain_scale"]
    seconds: dict[str, float] = {}
    with timed("all", seconds), _workers(3) as (first, second, third):
        clips = corpus.plan(settings["train_clips"], settings["test_clips"], settings["broken"], seed)
        held_out = frozenset(corpus.sentences(clip for clip in clips if clip.split != "train"))
        # it takes longest and hears nothing
        jobs = [third.submit(_make, "llama", "llama", out / "weights/llama", held_out, scale, seed)]
        with timed("corpus", seconds):
            clips = corpus.write_audio(clips, out / "audio", (first, second))
            entries = corpus.write_annotations(clips, out / "ann", seed)
            corpus.check_splits(clips)
            corpus.check_annotations(out / "ann")
        heard = (clips, out / "audio", scale, seed)
        jobs.append(first.submit(_make, "whisper", "encoders", out / "weights/whisper", *heard))
        jobs.append(second.submit(_make, "beats", "encoders", out / "weights/beats.pt", *heard))
        for job in as_completed(jobs):
            job.result()  # what fails first ends the others
        quality: dict[str, dict[str, float]] = {}
        for job in jobs:
            part, found, took = job.result()
            quality |= {part: found}
            seconds |= {part: took}
    summary |= {
        "complete": True,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "clips": {split: sum(c.split == split and not c.broken for c in clips) for split in corpus.SPLITS},
        "entries": entries,
        "broken": {clip.path: clip.broken for clip in clips if clip.broken},
        "quality": quality,
    }
    _write(summary_path, summary)
    print(report(summary))


def _make(part: str, module: str, *arguments: Any) -> tuple[str, dict[str, float], float]:
    """Run `make_PART` of a module of this folder; the part, its quality, and the seconds it took.

    Named, not handed over: only the workers import PyTorch.
    """
    began = time.monotonic()
    make = getattr(import_module(f"util.mini_world.{module}"), f"make_{part}")
    return part, make(*arguments), time.monotonic() - began


@contextmanager
def _workers(n: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Pools of one process each; where something fails, what they still do, for minutes, is not waited for."""
    # spawned, not forked: torch and espeak-ng each keep state that does not survive a fork
    pools = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) for _ in range(n)]
    try:
        yield pools
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        for pool in pools:
            pool.shutdown()


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def report(summary: dict[str, Any]) -> str:
    lines = [
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()),
        "clips: " + ", ".join(f"{name} {count}" for name, count in summary["clips"].items())
        + f", and {len(summary['broken'])} broken files",
    ]  # fmt: skip
    for model, quality in summary["quality"].items():
        if quality:
            tested = "scenes drawn anew" if model == "llama" else "clips it has not seen"
            lines.append(f"{model} on {tested}: " + ", ".join(f"{k} {v}" for k, v in quality.items()))
    return "\n".join(lines)


def _fingerprint() -> str:
    """Of the code and prompts that decide on the world, so that an outdated world is made anew."""
    root = Path(__file__).parents[2]
    files = [*sorted(Path(__file__).parent.glob("*.py")), root / "configs/prompts/train_prompt.json"]
    return hashlib.sha1(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _read_summary(out: Path) -> dict[str, Any] | None:
    """world.json of an earlier build. Raises UserError for a folder that holds something else."""
    path = out / SUMMARY
    if path.is_file():
        try:
            earlier = read_note(path, {"complete": bool, "settings": dict})
            return read_note(path, {"clips": dict, "entries": dict}) if earlier["complete"] else earlier
        except UserError as error:
            print(f"{path} is damaged, and the world is made anew ({error})", flush=True)
            return None
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {SUMMARY}: give --out a new folder")
    return None


def _is_whole(out: Path, summary: dict[str, Any]) -> bool:
    files = [out / "ann" / f"{name}.json" for name in summary["entries"]]
    files += [out / "weights" / name for name in ("beats.pt", "whisper/config.json", "llama/tokenizer.model")]
    clips = sum(1 for path in (out / "audio").glob("*/*") if path.is_file())
    return all(file.is_file() for file in files) and clips >= sum(summary["clips"].values())


def _write(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
