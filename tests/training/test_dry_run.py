"""What the real run refuses or warns of, the dry run says too."""

import pytest
from omegaconf import OmegaConf
from torch import nn

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.training import dry_run, runner
from salmonn.training.progress import Progress, make_plan, unusual_about
from salmonn.training.run_content import build_content
from salmonn.training.run_folder import RunFolder
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT


@pytest.fixture
def config_of(mini_world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return lambda *options: load_config("configs/mini/stage1.yaml", [*train_options(mini_world, tmp_path), *options])


def test_what_is_unusual_about_a_run_is_told_before_it(config_of):
    config = config_of("run.optims.warmup_steps=9", "run.iters_per_epoch=5", "model.lora_scaling=2")
    told = unusual_about(make_plan(config.run, 107, 1), config)
    assert ["warmup_steps" in sentence for sentence in told] == [False, True]
    assert [f"warning     {sentence}" for sentence in told] == dry_run.describe(config, [])[-2:]
    assert not any(
        "warning" in line
        for line in dry_run.describe(config_of("run.optims.warmup_steps=0", "run.iters_per_epoch=9"), [])
    )


def test_a_validation_without_a_control_is_told_before_it(config_of):
    lines = dry_run.describe(config_of("run.optims.warmup_steps=0", "run.batch_size_eval=1"), [])
    assert lines[-1].startswith("warning     run.batch_size_eval = 1: there is no control with shuffled audio")


@pytest.mark.parametrize(("bad", "told"), [(0, "is well; "), (1, "is well but for 1 unreadable clip; ")])
def test_the_last_line_of_a_dry_run_says_how_many_clips_could_not_be_read(config_of, monkeypatch, capsys, bad, told):
    step = {"loss": 1.0, "grad_norm": 1.0, "tried": 9, "bad": bad, "seconds": 1.0}
    monkeypatch.setattr(dry_run, "tiny_step", lambda _: step)
    monkeypatch.setattr(dry_run, "describe", lambda *_: [])
    dry_run.dry_run([config_of()])
    output = capsys.readouterr().out
    assert f"9 clips tried, {bad} unreadable" in output
    assert f"{told}nothing was written" in output.splitlines()[-1]


def test_a_dry_run_draws_no_curves_at_wandb(config_of, monkeypatch):
    monkeypatch.setattr(runner, "open_wandb", lambda *_: pytest.fail("a run was opened at wandb"))
    assert "loss" in dry_run.tiny_step(config_of("run.wandb_project=mine"))


def test_the_step_of_a_dry_run_may_overflow():
    step = {"loss": 1.0, "grad_norm": None, "tried": 9, "bad": 0, "seconds": 1.0}
    assert "gradient norm nan" in dry_run.told_step(step)


def test_that_nothing_can_be_compiled_is_told_before_it(config_of, monkeypatch):
    options = ("run.optims.warmup_steps=0", "run.compile=True")
    monkeypatch.setattr(dry_run, "compiler_problem", lambda _: "no compiler")
    told = "warning     run.compile = True, but nothing can be compiled here, so nothing is: no compiler"
    assert dry_run.describe(config_of(*options), [])[-1] == told
    assert "compiled" not in str(dry_run.describe(config_of(options[0]), []))
    monkeypatch.setattr(dry_run, "compiler_problem", lambda _: "")
    assert "compiled" not in str(dry_run.describe(config_of(*options), []))


def test_that_one_process_has_nobody_to_share_with_is_told_before_it_and_not_of_several(config_of, monkeypatch):
    config = config_of("run.optims.warmup_steps=0", "run.iters_per_epoch=9", "run.shard_llm=True")
    assert dry_run.describe(config, [])[-1].startswith("warning     run.shard_llm = True, but this is one process")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not any("warning" in line for line in dry_run.describe(config, []))


def test_what_has_changed_since_the_run_that_is_gone_on_with_is_told(config_of):
    before = config_of("run.optims.warmup_steps=0")
    RunFolder(before).save(build_content(nn.Linear(2, 2), before, Progress(), optimizer={}, scaler={}))
    lines = dry_run.describe(config_of("run.optims.warmup_steps=0", "run.log_freq=77"), [])
    assert "goes on with checkpoint_last.pth: epoch 0, iteration 0" in lines[0]
    assert lines[1] == f"warning     the configuration has changed: run.log_freq: {before.run.log_freq} -> 77"


def test_a_folder_in_which_another_process_trains_is_refused(config_of):
    config = config_of()
    folder = RunFolder(config)
    folder.claim()
    with pytest.raises(UserError, match="another process is training in"):
        dry_run.dry_run([config])
    folder.release()
    before = OmegaConf.to_container(config)
    dry_run.dry_run([config])
    assert OmegaConf.to_container(config) == before
