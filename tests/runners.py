"""Prepared runs for tests that look into them."""

import json

import pytest

from conftest import ROOT, json_lines, train_options
from salmonn.config import load_config
from salmonn.runner import Runner

# No dropout and one prompt per task: what is left is determined by the samples alone.
PLAIN = ["model.lora_dropout=0", "run.log_freq=1", "run.optims.max_epoch=1", "run.optims.warmup_steps=0"]
PLAIN += ["run.optims.grad_clip_norm=0"]  # clipping would hide a wrong scale


@pytest.fixture
def plain_options(mini_world, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({task: "<SpeechHere> what?" for task in ("asr", "audiocaption")}))
    return [*train_options(mini_world, tmp_path), *PLAIN, f"model.prompt_path={prompts}"]


@pytest.fixture
def make_runner(plain_options, monkeypatch):
    """A prepared Runner in this process, with the Q-Former's dropout off, too."""
    monkeypatch.chdir(ROOT)

    def make(*options: str) -> Runner:
        runner = Runner(load_config("configs/mini/stage1.yaml", ["run.overwrite=True", *plain_options, *options]))
        runner.prepare()
        runner.model.eval()
        monkeypatch.setattr(runner.model, "train", lambda *_: runner.model)
        return runner

    return make


def log_lines(runner: Runner) -> list[dict]:
    return json_lines(runner.folder / "log.jsonl")
