"""A stub in the model's place and clips that it understands: evaluation without any weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig
from torch import nn

from salmonn import preflight
from salmonn.config import load_config
from salmonn.evaluation import runner as evaluation_runner

WORDS = ["zero", "red", "blue", "green", "grey", "black"]


class StubModel:
    """Hears the loudness of a clip, 0.1 per word of WORDS, and answers "<word> dog"; odd words do not end."""

    max_seconds = 2.0
    lora_scaling = 4.0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []  # (prompt, answer)

    def eval(self) -> "StubModel":
        return self

    def generate(self, samples: dict, settings: DictConfig, prompts: list[str], return_details: bool) -> list[dict]:
        assert return_details
        assert settings.num_beams == 4
        assert samples["raw_wav"].shape == samples["padding_mask"].shape
        levels = [round(10 * wav.max().item()) for wav in samples["raw_wav"]]
        self.heard += [(prompt, WORDS[level]) for prompt, level in zip(prompts, levels, strict=True)]
        return [{"text": f" {WORDS[k]} dog", "token_ids": [k, 7], "finished": k % 2 == 0} for k in levels]


@pytest.fixture
def stub_model(monkeypatch: pytest.MonkeyPatch) -> StubModel:
    """The stub, in the place of whatever SALMONN.from_config would load."""
    stub = StubModel()

    class Loader:
        @staticmethod
        def from_config(config: DictConfig, device: torch.device) -> StubModel:
            assert Path(config.whisper_path).exists()
            assert device == torch.device("cpu")
            return stub

    monkeypatch.setattr(evaluation_runner, "SALMONN", Loader)
    monkeypatch.setattr(preflight, "build_skeleton", lambda _: nn.Module())
    return stub


@pytest.fixture
def stub_world(tmp_path: Path) -> Path:
    """Clips 0.wav ... 5.wav of rising loudness, a broken one, prompts and a config."""
    for level in range(len(WORDS)):
        soundfile.write(tmp_path / f"{level}.wav", np.full(16_000, level / 10), 16_000)
    (tmp_path / "broken.wav").write_text("this is not audio")
    (tmp_path / "models").mkdir()
    prompts = {"asr": "<Speech><SpeechHere></Speech> Write it.", "audiocaption": "<SpeechHere> Describe: {}"}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    return tmp_path


def config_for(
    world: Path, entries: list[dict[str, Any]], *options: str, key: str = "valid_ann_path_asr"
) -> DictConfig:
    (world / "ann.json").write_text(json.dumps({"annotation": entries}))
    values = {
        "model": {
            "llama_path": f"{world}/models",
            "whisper_path": f"{world}/models",
            "test_prompt_path": f"{world}/prompts.json",
        },
        "datasets": {"prefix": f"{world}/", key: f"{world}/ann.json"},
        "run": {"device": "cpu", "num_workers": 0, "amp": False, "batch_size_eval": 2},
        "evaluate": {"results_dir": f"{world}/results"},
    }
    (world / "config.yaml").write_text(json.dumps(values))  # JSON is YAML
    return load_config(world / "config.yaml", options)


def entry(level: int | str, **values: Any) -> dict[str, Any]:
    return {"path": f"{level}.wav", **values}


def results(world: Path, mode: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = world / "results" / mode
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "report.json").read_text()), [json.loads(line) for line in lines]
