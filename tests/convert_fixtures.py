"""Shared by the tests of util/convert.py: the command in this process, and checkpoints to give it."""

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import GOLDEN, golden_config
from salmonn import checkpoint
from util import convert

GOLDEN_PTH = GOLDEN / "base" / "salmonn.pth"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run util/convert.py in this process; returns what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        convert.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def config_file(tmp_path) -> Path:
    """A config file with the golden case's real paths, as a user has it."""
    OmegaConf.save({"model": golden_config("base")}, tmp_path / "golden.yaml")
    return tmp_path / "golden.yaml"


@pytest.fixture
def trained_pth(golden, tmp_path) -> Path:
    """The golden model as our training writes it: a complete config, and what a run needs to go on."""
    model = golden("base").model
    config = {
        "model": {**OmegaConf.to_container(model.config), "token": "hf_secret"},
        "run": {"exp_name": "stage2"},
        "datasets": {"train_ann_path": "ann/stage2_train.json"},
    }
    state = {"optimizer": {"state": {}}, "scaler": {}, "progress": {"best": {"accuracy": 0.75, "loss": 1.5}}}
    checkpoint.save(tmp_path / "trained.pth", model, epoch=3, step=900, config=config, **state)
    return tmp_path / "trained.pth"


def written(path: Path, parameters: dict, **more) -> Path:
    torch.save({"model": parameters, **more}, path)
    return path
