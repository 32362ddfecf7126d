"""A token is in nothing that a run, its continuation, an evaluation or a converter leaves behind or says."""

import importlib

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.config.loading import load_config
from salmonn.evaluation.pipeline import evaluate
from salmonn.model import checkpoint
from salmonn.training.runner import Runner
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

SHORT = ["run.iters_per_epoch=2", "run.optims.max_epoch=1", "run.batch_size_train=2", "run.batch_size_eval=8"]


def holding(folder, text):
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize("token", ["hf_planted_secret", "${oc.env:PLANTED}"])
def test_no_byte_of_a_run_of_its_results_and_of_its_exports_holds_the_token(
    plain_options, mini_world, command, tmp_path, monkeypatch, capsys, token
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PLANTED", "hf_planted_secret")
    heard = []
    monkeypatch.setattr("salmonn.model.salmonn.load_whisper", spy("salmonn.model.salmonn.load_whisper", heard))
    options = [*plain_options, *SHORT, f"run.output_dir={tmp_path / 'runs'}", "run.keep_checkpoints=2"]
    for given, epochs in (("hf_planted_secret_2", 1), (token, 2)):
        more = [f"model.token={given}", f"run.optims.max_epoch={epochs}"]
        assert Runner(load_config("configs/mini/stage1.yaml", [*options, *more])).run()
    assert heard == ["hf_planted_secret_2", "hf_planted_secret"]  # each start has its own
    run, kept = tmp_path / "runs/stage1", token if "$" in token else ""
    assert checkpoint.read(run / "checkpoint_last.pth")["config"]["model"]["token"] == kept
    assert OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))["model"]["token"] == kept

    best = run / "checkpoint_best.pth"
    of_eval = [
        *mini_options(mini_world, tmp_path), f"model.token={token}", f"model.ckpt={best}", "evaluate.name=planted",
        f"datasets.valid_ann_path_asr={mini_world}/ann/test_asr.json", f"evaluate.results_dir={tmp_path}/results",
        "generate.max_new_tokens=2", "generate.num_beams=1",
    ]  # fmt: skip
    evaluate(load_config("configs/mini/evaluate.yaml", of_eval), "valid_asr")

    told = "".join(capsys.readouterr())
    assert "going on with" in told
    old = torch.load(best, weights_only=True)
    old["config"]["model"]["token"] = "hf_planted_secret"  # as earlier versions wrote it
    old["config"]["run"] |= {"wandb_api_key": "hf_planted_secret", "hub": [{"hf_token": "hf_planted_secret"}]}
    torch.save(old, tmp_path / "old.pth")
    told += command("inspect", tmp_path / "old.pth") + command("to-folder", tmp_path / "old.pth", tmp_path / "folder")
    told += command("to-pth", tmp_path / "folder", tmp_path / "back.pth")
    told += command("export-lora", tmp_path / "old.pth", tmp_path / "lora")
    (tmp_path / "old.pth").unlink()

    assert "hf_planted" not in told
    assert len(list(tmp_path.rglob("*.*"))) > 15
    assert holding(tmp_path, "hf_planted") == []


def spy(name, heard):
    module, _, function = name.rpartition(".")
    original = getattr(importlib.import_module(module), function)

    def call(config):
        heard.append(config.token)
        return original(config)

    return call
