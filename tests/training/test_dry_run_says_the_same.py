"""A dry run and the real one refuse the same, in the same words: each kind of bad input is given to both."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.training.dry_run import dry_run
from salmonn.training.stages import run_stages
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT

SHORT = ["run.iters_per_epoch=1", "run.batch_size_train=2", "run.optims.max_epoch=1", "run.optims.warmup_steps=0"]


class Inputs:
    """Copies of the miniature world's parts, to be spoilt."""

    def __init__(self, world: Path, folder: Path) -> None:
        self.world, self.folder = world, folder

    def copy(self, name: str) -> Path:
        part, to = self.world / name, self.folder / Path(name).name
        (shutil.copytree if part.is_dir() else shutil.copy)(part, to)
        return to

    def llama(self, change: Callable[[dict], None], binary: bool = False) -> str:
        """The LLM's folder with other weights."""
        folder = self.copy("weights/llama")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        if binary:
            (folder / "model.safetensors").unlink()
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return f"model.llama_path={folder}"

    def annotation(self, change: Callable[[int, dict], None], split: str = "valid") -> str:
        path = self.copy(f"ann/stage1_{split}.json")
        content = json.loads(path.read_text())
        for i, entry in enumerate(content["annotation"]):
            change(i, entry)
        path.write_text(json.dumps(content))
        return f"datasets.{split}_ann_path={path}"

    def clips(self, write: Callable[[Path], None]) -> list[str]:
        """A validation set of clips of the test's own."""
        for i in range(10):
            write(self.folder / f"{i}.wav")
        return [
            self.annotation(lambda i, entry: entry.update(path=f"/own/{i % 10}.wav")),
            f"datasets.path_map=[{{from: /own, to: {self.folder}}}]",
        ]


def lacks_a_tensor(weights: dict) -> None:
    del weights["model.layers.0.self_attn.q_proj.weight"]


def has_another_shape(weights: dict) -> None:
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(3, 5)


def has_one_more(weights: dict) -> None:
    weights["model.layers.0.self_attn.new.weight"] = torch.zeros(2)


def without_folder(_: int, entry: dict) -> None:
    entry.update(path="/nowhere" + entry["path"])


def noise(file: Path) -> None:
    file.write_bytes(os.urandom(999))


def nothing(file: Path) -> None:
    soundfile.write(file, np.zeros(0), 16_000)


def cut_weights(inputs: Inputs) -> list[str]:
    option = inputs.llama(lambda _: None, binary=True)
    file = inputs.folder / "llama/pytorch_model.bin"
    os.truncate(file, file.stat().st_size // 2)
    return [option]


def whisper_of_other_layers(inputs: Inputs) -> list[str]:
    config = inputs.copy("weights/whisper") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"encoder_layers": 1}))
    return [f"model.whisper_path={config.parent}"]


CASES: dict[str, tuple[Callable[[Inputs], list[str]], str]] = {
    "a tensor is missing": (lambda inputs: [inputs.llama(lacks_a_tensor)], "lacks 1 weights"),
    "a tensor has another shape": (lambda inputs: [inputs.llama(has_another_shape)], "holds other shapes than its"),
    "a tensor is too many": (lambda inputs: [inputs.llama(has_one_more)], "holds more than its config.json says"),
    "pickled, a tensor is missing": (lambda inputs: [inputs.llama(lacks_a_tensor, binary=True)], "lacks 1 weights"),
    "pickled, cut": (cut_weights, "cannot be loaded"),
    "Whisper of other layers": (whisper_of_other_layers, "of different models"),
    "a target of LoRA is unknown": (lambda _: ["model.lora_target_modules=[q_proj, nope]"], "the LLM has no nope"),
    "no validation clip is there": (lambda inputs: [inputs.annotation(without_folder)], "none of the"),
    "no training clip is there": (lambda inputs: [inputs.annotation(without_folder, "train")], "none of the"),
    "validation clips are noise": (lambda inputs: inputs.clips(noise), "none of the"),
    "validation clips are empty": (lambda inputs: inputs.clips(Path.touch), "none of the"),
    "validation clips hold nothing": (lambda inputs: inputs.clips(nothing), "none of the"),
    "all clips are too long": (lambda _: ["datasets.max_clip_seconds=0.001"], "longer than datasets.max_clip_seconds"),
    "nothing was verified": (lambda _: ["datasets.integrity=verified"], "needs the verdicts"),
    "the cache is below a file": (lambda _: [f"run.encoder_cache={ROOT}/train.py/cache"], "no folder that can be"),
    "the folder is below a file": (lambda _: [f"run.output_dir={ROOT}/train.py/out"], "no folder that can be"),
    "the prefix is a file": (lambda _: [f"datasets.prefix={ROOT}/train.py"], "none of the"),
    "the checkpoint is a folder": (lambda inputs: [f"model.ckpt={inputs.copy('weights/llama')}"], "is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_the_real_run_refuses_the_dry_run_refuses_in_the_same_words(mini_world, tmp_path, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    (tmp_path / "bad").mkdir()
    spoil, told = CASES[name]
    options = [*train_options(mini_world, tmp_path), *SHORT, *spoil(Inputs(mini_world, tmp_path / "bad"))]
    messages = []
    for run in (dry_run, run_stages):
        with pytest.raises(UserError) as refused:
            run([load_config("configs/mini/stage1.yaml", options)])
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert told in messages[0]
    assert not (tmp_path / "stage1").exists()  # nothing was begun


def test_a_few_readable_clips_among_many_missing_ones_are_enough(mini_world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("salmonn.data.filtering._LOOKED_AT", (2, 3))
    path = tmp_path / "most_missing.json"
    entries = json.loads((mini_world / "ann/stage1_train.json").read_text())["annotation"]
    path.write_text(json.dumps({"annotation": [{**entries[0], "path": f"/no/{i}"} for i in range(40)] + entries[:9]}))
    options = [*train_options(mini_world, tmp_path), f"datasets.train_ann_path={path}"]
    dry_run([load_config("configs/mini/stage1.yaml", options)])
