"""The published implementation's numbers in `tests/golden/`, and the tiny models that gave them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.model.salmonn import SALMONN

GOLDEN = Path(__file__).resolve().parent.parent.parent / "tests/golden"
CASES = ("base", "no_beats")


def golden_config(case: str) -> DictConfig:
    """The `model` section of a golden case with its paths made absolute."""
    config = OmegaConf.load(GOLDEN / case / "config.yaml").model
    for key in ("llama_path", "whisper_path", "beats_path", "ckpt"):
        if config[key]:
            config[key] = str(GOLDEN / case / config[key])
    return config


def load_golden(case: str, device: str = "cpu") -> SimpleNamespace:
    """A golden case: its model on the device in float32, arrays, samples, waveforms."""
    folder, config = GOLDEN / case, golden_config(case)
    config.llm_dtype = "float32"
    return SimpleNamespace(
        model=SALMONN.from_config(config, device).eval(),
        expected=np.load(folder / "expected.npz"),
        batch_expected=np.load(folder / "batch_expected.npz"),
        wavs={k: torch.from_numpy(v) for k, v in np.load(folder / "inputs.npz").items()},
        meta=json.loads((folder / "samples.json").read_text(encoding="utf-8")),
    )


def golden_sample(case: SimpleNamespace, i: int) -> dict:
    """Sample i of a golden case as a batch of one."""
    sample = case.meta["samples"][i]
    wav = case.wavs[sample["wav"]][None]
    return {
        "raw_wav": wav,
        "padding_mask": torch.zeros_like(wav, dtype=torch.bool),
        "text": [sample["text"]],
        "task": [sample["task"]],
        "Q": [sample["question"]],
        "id": [sample["wav"]],
        "prompts": [sample["prompt"]],
    }
