"""Scores over the LoRA scaling, Figure 3 of the paper: the scaling as trained, none at all, and what is between."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.evaluation.command import parse_arguments
from salmonn.evaluation.lora_sweep import curves_of, sweep
from salmonn.evaluation.pipeline import evaluate_tasks
from salmonn.evaluation.tasks import EvalTask, load_tasks
from salmonn.model.salmonn import SALMONN
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

NAMES = ["er", "asr"]


@pytest.fixture(scope="module")
def setting(mini_world, tmp_path_factory):
    """(config, tasks, options) of the small world with a checkpoint whose adapters do something."""
    folder = tmp_path_factory.mktemp("sweep")
    options = [*mini_options(mini_world, folder), "generate.max_new_tokens=6", "generate.num_beams=1"]
    options += ["run.batch_size_eval=16", "evaluate.shuffled_control=False"]
    model = SALMONN.from_config(load_config("configs/mini/evaluate.yaml", [*options, "model.ckpt="]).model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_checkpoint(folder / "random.pth", model)
    tasks = load_tasks(ROOT / "configs/mini/eval_tasks.yaml", NAMES)
    for task in tasks:
        task.annotation = f"{mini_world}/ann/{Path(task.annotation).name}"
    options.append(f"model.ckpt={folder}/random.pth")
    return load_config("configs/mini/evaluate.yaml", options), tasks, options


@pytest.fixture(scope="module")
def swept(setting, tmp_path_factory) -> Path:
    config, tasks, _ = setting
    folder = tmp_path_factory.mktemp("results")
    sweep(config, tasks, [0.0, 2.0, 4.0], folder)
    return folder


def texts(folder: Path) -> dict[str, list[str]]:
    lines = {name: (folder / name / "predictions.jsonl").read_text().splitlines() for name in NAMES}
    return {name: [json.loads(line)["text"] for line in found] for name, found in lines.items()}


def test_each_clip_is_encoded_once_with_an_encoder_cache(setting, swept, tmp_path, monkeypatch):
    _, tasks, options = setting
    cache = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=0.5"]
    config = load_config("configs/mini/evaluate.yaml", [*options, *cache])
    heard, run_encoders = [], SALMONN.run_encoders

    def counted(self, raw_wav, *rest):
        heard.append(len(raw_wav))
        return run_encoders(self, raw_wav, *rest)

    monkeypatch.setattr(SALMONN, "run_encoders", counted)
    sweep(config, tasks, [0.0, 2.0, 4.0], tmp_path / "results")
    for scaling in ("0", "2", "4"):
        assert texts(tmp_path / "results" / f"scaling_{scaling}") == texts(swept / f"scaling_{scaling}")
    n_clips = sum(len(json.loads(Path(task.annotation).read_text())["annotation"]) for task in tasks)
    assert sum(heard) <= n_clips + 1  # and one clip of silence, which tells how much room there must be


def test_scaling_four_is_the_plain_evaluation_exactly(setting, swept, tmp_path):
    config, tasks, _ = setting
    evaluate_tasks(config, tasks, tmp_path)
    for name in NAMES:
        for file in ("predictions.jsonl", "report.json", "statistics.json"):
            assert (swept / "scaling_4" / name / file).read_text() == (tmp_path / name / file).read_text()


def test_scaling_zero_is_the_language_model_without_adapters(setting, swept, tmp_path):
    config, tasks, options = setting
    trained = torch.load(config.model.ckpt, weights_only=True)["model"]
    without = {name: value for name, value in trained.items() if "lora_" not in name}
    torch.save({"model": without}, tmp_path / "without.pth")
    bare = load_config(
        "configs/mini/evaluate.yaml", [*options, "model.lora=False", f"model.ckpt={tmp_path}/without.pth"]
    )
    evaluate_tasks(bare, tasks, tmp_path / "results")
    assert texts(tmp_path / "results") == texts(swept / "scaling_0")
    assert texts(swept / "scaling_0") != texts(swept / "scaling_2") != texts(swept / "scaling_4")


def test_the_page_shows_every_scaling_and_the_picture_is_there(swept):
    page = (swept / "report.md").read_text()
    assert all(f"scaling {s}" in page for s in (0, 2, 4))
    assert (swept / "lora_sweep.png").read_bytes().startswith(b"\x89PNG")
    reports = json.loads((swept / "report.json").read_text())
    assert [report["er"]["provenance"]["lora_scaling"] for report in reports.values()] == [0.0, 2.0, 4.0]


def test_a_set_that_cannot_be_heard_is_told_after_the_others_are_done(setting, tmp_path):
    config, tasks, _ = setting
    absent = [{"path": f"/absent/{i}.wav", "text": "red", "testset_id": str(i)} for i in range(2)]
    (tmp_path / "absent.json").write_text(json.dumps({"annotation": absent}))
    silent = replace(tasks[1], name="silent", annotation=f"{tmp_path}/absent.json")
    with pytest.raises(UserError, match=r"silent: .*none of the 2 clips can be read"):
        sweep(config, [tasks[0], silent], [0.0, 4.0], tmp_path)
    reports = json.loads((tmp_path / "report.json").read_text())
    assert [list(by_task) for by_task in reports.values()] == [["er"], ["er"]]


def test_published_scores_stand_at_their_scalings():
    scores = {"scores": {"wer": 0.1, "wer_shuffled": 1.0}, "intervals": {"wer": [0.0, 0.2]}}
    scores |= {"scores_finished": {"wer": 0.08}}
    tasks = [EvalTask("asr", metrics=["wer"], by_scaling={"wer": [0.4, 0.3, 0.2, 0.15, 0.1]})]
    (curve,) = curves_of(tasks, {4.0: {"asr": scores}, 1.0: {"asr": scores}})
    assert (curve.metric, list(curve.x), list(curve.values)) == ("wer", [4.0, 1.0], [0.1, 0.1])
    assert list(curve.finished) == [0.08, 0.08]  # as the published scores
    assert curve.published == {0.0: 0.4, 1.0: 0.3, 2.0: 0.2, 3.0: 0.15, 4.0: 0.1}


def test_a_model_without_adapters_is_refused(setting, tmp_path):
    _, tasks, options = setting
    config = load_config("configs/mini/evaluate.yaml", [*options, "model.lora=False"])
    with pytest.raises(UserError, match=r"model\.lora = False"):
        sweep(config, tasks, [0.0], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mode", "lora_sweep", "--scalings", "0,four"], "'0,four': expected numbers"),
        (["--mode", "lora_sweep", "--scalings", "0,nan"], "scalings are 0 or more"),
        (["--mode", "table3", "--tasks", "asr,asr"], "each once"),
        (["--mode", "table3", "--scalings", "0"], "--mode table3 takes no --scalings"),
        (["--mode", "generate"], "--mode generate needs --ann FILE"),
        (["--mode", "validate_submission", "--ann", "a.json"], "needs --csv FILE"),
        (["--compare", "a", "b", "--tasks", "asr"], "--compare takes no --tasks"),
        (["--mode", "lora_swep"], "invalid choice"),
    ],
)
def test_operands_that_do_not_fit_the_mode_are_refused(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises((UserError, SystemExit)) as refused:
        parse_arguments()
    assert told in f"{refused.value}{capsys.readouterr().err}"
    assert getattr(refused.value, "code", 2) == 2
