"""Command lines of other SALMONN trainers are answered with today's form, and exit code 2."""

import sys

import pytest
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.schema import DatasetsConfig
from salmonn.evaluation import command as evaluation
from salmonn.evaluation.tasks import annotation_key
from salmonn.training import command as training


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--mode is needed: one of valid_asr, valid_aac"),
        (["--cfg-path", "salmonn_eval_config.yaml"], "--mode is needed"),
        (["--mode", "valid_asr", "--device", "cuda:0"], "--device: --options run.device=cuda:0"),
        (["--task", "asr"], "--task: --mode valid_asr or valid_aac"),
        (["--task=aac", "--skip_scoring"], "--skip_scoring: --mode submission_asr"),
        (["--num_it", "100", "--num_warmup", "10"], "--num_warmup: --mode efficiency --options .*warmup=10"),
        (["--num-it", "10"], "--num-it: --mode efficiency --options evaluate.efficiency.runs=100"),
    ],
)
def test_the_evaluators_options_are_answered_with_ours(monkeypatch, arguments, told):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(UserError, match=told):
        evaluation.parse_arguments()


def test_ours_are_not_taken_for_former_ones(monkeypatch):
    arguments = ["--mode", "table3", "--tasks", "asr", "--options", "run.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert evaluation.parse_arguments().tasks == ["asr"]


@pytest.mark.parametrize("option", ["--dryrun", "--device"])
def test_the_trainers_options_are_answered_with_ours(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg-path", "configs/mini/stage1.yaml", option])
    with pytest.raises(UserError, match=f"{option}: {training.FORMER[option]}"):
        training.main()


@pytest.mark.parametrize(
    ("mode", "given", "key"),
    [
        ("valid_asr", ["valid_ann_path_asr", "test_ann_path", "test_ann_path_asr"], "valid_ann_path_asr"),
        ("valid_asr", ["test_ann_path", "test_ann_path_asr"], "test_ann_path"),
        ("valid_asr", ["test_ann_path_asr", "test_ann_path_aac"], "test_ann_path_asr"),
        ("valid_aac", ["test_ann_path_asr", "test_ann_path_aac"], "test_ann_path_aac"),
        ("submission_asr", ["test_ann_path_aac"], "test_ann_path_asr"),
        ("valid_aac", [], "valid_ann_path_aac"),
    ],
)
def test_a_mode_scores_the_set_that_the_evaluator_scores(mode, given, key):
    datasets = OmegaConf.structured(DatasetsConfig(**{name: f"{name}.json" for name in given}))
    assert annotation_key(mode, datasets) == key
