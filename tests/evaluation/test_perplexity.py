"""Perplexity of right answers with and without the instruction, against the model's own loss."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.evaluation.perplexity import WITH, WITHOUT, measure_perplexity, points_of
from salmonn.evaluation.tasks import load_tasks
from salmonn.model.salmonn import SALMONN
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

NAMES = ["gr", "ke"]


@pytest.fixture(scope="module")
def setting(mini_world, tmp_path_factory):
    """(options, tasks, two checkpoints) of the small world."""
    folder = tmp_path_factory.mktemp("perplexity")
    options = [*mini_options(mini_world, folder), "run.batch_size_eval=5"]
    model = SALMONN.from_config(load_config("configs/mini/evaluate.yaml", [*options, "model.ckpt="]).model)
    files = [folder / "first.pth", folder / "second.pth"]
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        save_checkpoint(path, model)
    tasks = load_tasks(ROOT / "configs/mini/eval_tasks.yaml", NAMES)
    for task in tasks:
        task.annotation = f"{mini_world}/ann/{Path(task.annotation).name}"
    return options, tasks, [str(path) for path in files]


def config_of(setting, *more: str):
    options, _, files = setting
    return load_config("configs/mini/evaluate.yaml", [*options, f"model.ckpt={files[0]}", *more])


@pytest.fixture(scope="module")
def measured(setting, tmp_path_factory) -> Path:
    config, folder = config_of(setting), tmp_path_factory.mktemp("results")
    measure_perplexity(config, setting[1], points_of(config, setting[2], []), folder)
    return folder


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def by_hand(setting, ckpt: str, scaling: float | None, instructed: bool) -> float:
    """exp(mean loss per target token) of the gender task, clip by clip through the model's own forward."""
    from salmonn.data.annotations import Annotations
    from salmonn.data.collate import collate
    from salmonn.data.dataset import SALMONNDataset

    config = config_of(setting, f"model.ckpt={ckpt}")
    model = SALMONN.from_config(config.model).eval()
    if scaling is not None:
        model.lora_scaling = scaling
    annotations = Annotations(setting[1][0].annotation)
    dataset = SALMONNDataset.from_config(annotations, config.datasets, max_seconds=model.max_seconds)
    prompt = json.loads(Path(config.model.test_prompt_path).read_text())["gender_recognition"]
    asked = prompt if instructed else "<Speech><SpeechHere></Speech>"
    sums = np.zeros(2)
    for item in dataset:
        batch = {**collate([item]), "prompts": [f"USER: {asked}\nASSISTANT:"]}
        with torch.no_grad():
            out = model(batch, verbose=True)
        sums += (out["loss"].item() * out["total"].item(), out["total"].item())
    return math.exp(sums[0] / sums[1])


def test_both_perplexities_are_those_of_the_models_own_loss_at_every_checkpoint(setting, measured):
    found = report(measured)
    assert list(found) == ["first", "second"]
    for label, ckpt in zip(found, setting[2], strict=True):
        assert found[label]["gr"][WITH] == pytest.approx(by_hand(setting, ckpt, None, instructed=True), rel=1e-4)
        assert found[label]["gr"][WITHOUT] == pytest.approx(by_hand(setting, ckpt, None, instructed=False), rel=1e-4)
        low, high = found[label]["gr"][f"{WITH} interval"]
        assert low < found[label]["gr"][WITH] < high
        assert found[label]["gr"]["provenance"]["checkpoint"] == ckpt
    assert (measured / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert WITHOUT in (measured / "report.md").read_text()


def test_scalings_are_points_too(setting, tmp_path):
    config = config_of(setting)
    measure_perplexity(config, setting[1][:1], points_of(config, [], [0.0, 4.0]), tmp_path)
    found = report(tmp_path)
    assert list(found) == ["0", "4"]
    assert found["0"]["gr"][WITH] == pytest.approx(by_hand(setting, setting[2][0], 0.0, instructed=True), rel=1e-4)
    assert found["0"]["gr"][WITH] != pytest.approx(found["4"]["gr"][WITH], rel=1e-3)


def test_a_point_does_not_depend_on_the_points_before_it(setting, measured, tmp_path):
    config = config_of(setting)
    measure_perplexity(config, setting[1], points_of(config, setting[2][1:], []), tmp_path)
    assert report(tmp_path)["second"] == report(measured)["second"]


def test_two_ranks_and_a_rerun_tell_the_same_and_measure_nothing_twice(setting, measured, tmp_path):
    options, _, files = setting
    tasks = f"evaluate.tasks_file={tmp_path}/tasks.yaml"
    lines = (ROOT / "configs/mini/eval_tasks.yaml").read_text()
    (tmp_path / "tasks.yaml").write_text(
        lines.replace("output/mini/world/ann", str(Path(setting[1][0].annotation).parent))
    )
    command = ["evaluate.py", "--mode", "perplexity", "--cfg-path", "configs/mini/evaluate.yaml"]
    command += ["--tasks", ",".join(NAMES), "--checkpoints", ",".join(files)]
    command += ["--options", *options, tasks, f"evaluate.results_dir={tmp_path}"]
    result = run_command(*command, ranks=2)
    assert result.returncode == 0, result.stderr
    config = config_of(setting)
    measure_perplexity(config, setting[1], points_of(config, files, []), tmp_path / "perplexity")  # again, alone
    found = report(tmp_path / "perplexity")
    for label in ("first", "second"):
        for name in NAMES:
            expected = report(measured)[label][name]
            for key in (WITH, WITHOUT):
                assert found[label][name][key] == pytest.approx(expected[key], rel=1e-5)
            assert found[label][name]["n"] == expected["n"]
    answers = [line for path in (tmp_path / "perplexity/answers").rglob("*.jsonl") for line in path.open()]
    assert len(answers) == sum(one[name]["heard"] for one in report(measured).values() for name in NAMES)


def test_a_checkpoint_that_is_absent_is_told_before_anything_is_loaded(setting, tmp_path):
    config = config_of(setting)
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        measure_perplexity(config, setting[1], points_of(config, [setting[2][0], "nowhere.pth"], []), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_curve_has_one_axis_and_scalings_need_adapters(setting, tmp_path):
    config = config_of(setting)
    with pytest.raises(UserError, match="not both"):
        points_of(config, setting[2], [0.0, 4.0])
    config.model.lora = False
    with pytest.raises(UserError, match=r"model\.lora = False"):
        measure_perplexity(config, setting[1], points_of(config, [], [0.0]), tmp_path)


def test_a_checkpoint_with_other_parameters_is_refused_as_it_would_leave_some_of_another(setting, tmp_path):
    config, (first, _) = config_of(setting), setting[2]
    content = torch.load(first, weights_only=True)
    content["model"]["speech_encoder.conv1.bias"] = torch.zeros(96)
    torch.save(content, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"hold other parameters \(speech_encoder\.conv1\.bias\)"):
        measure_perplexity(config, setting[1], points_of(config, [first, f"{tmp_path}/more.pth"], []), tmp_path / "new")
