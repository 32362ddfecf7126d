"""A miniature world without skill, made for a check, and the options that point a mini config at it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT_PATH = ROOT / "configs/prompts/train_prompt.json"


def make_random_world(world: Path, train_clips: int, test_clips: int, broken: float = 0.0) -> None:
    """Make a small one in a process of its own: files and formats, random weights.

    Raises subprocess.CalledProcessError where that fails.
    """
    command = [sys.executable, "util/make_mini_world.py", "--out", str(world), "--seed", "0", "--pretrain-scale", "0"]
    command += ["--train-clips", str(train_clips), "--test-clips", str(test_clips), "--broken", str(broken)]
    subprocess.run(command, cwd=ROOT, check=True)


def mini_options(world: Path, output: Path) -> list[str]:
    """Overrides that point a mini config at a world somewhere else, with loading in its own process."""
    return [
        f"model.llama_path={world}/weights/llama",
        f"model.whisper_path={world}/weights/whisper",
        f"model.beats_path={world}/weights/beats.pt",
        f"datasets.prefix={world}/audio",
        f"run.output_dir={output}",
        "run.num_workers=0",
    ]


def train_options(world: Path, output: Path, stage: str = "stage1") -> list[str]:
    """`mini_options`, and the annotation files of a stage of that world."""
    ann = (f"datasets.{split}_ann_path={world}/ann/{stage}_{split}.json" for split in ("train", "valid"))
    return [*mini_options(world, output), *ann]
