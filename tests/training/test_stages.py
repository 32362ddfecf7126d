"""Stages after each other by one command, through quantised LLMs too; and how a list of stages is read."""

import itertools
import json
import os
import signal
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, load_stages
from salmonn.model import checkpoint
from salmonn.model.hearing import heard_otherwise
from salmonn.model.lineage import known_tasks, read_lineage
from salmonn.model.salmonn import SALMONN
from salmonn.training.stages import run_stages
from salmonn.training.step import TrainingStep
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

SHORT = [
    "run.iters_per_epoch=2", "run.optims.max_epoch=1", "run.batch_size_train=2", "run.batch_size_eval=8",
    "run.log_freq=1", "run.optims.warmup_steps=0",
]  # fmt: skip


@pytest.fixture
def stages(mini_world, tmp_path):
    """A list of the miniature stages whose files are where the small world is; stage 3 is for one process."""
    for stage in (1, 2, 3):
        ann = {f"{split}_ann_path": f"{mini_world}/ann/stage{stage}_{split}.json" for split in ("train", "valid")}
        run = {"use_distributed": stage < 3}
        base = {"base": str(ROOT / "configs/mini/base.yaml"), "datasets": ann, "run": run}
        (tmp_path / f"stage{stage}.yaml").write_text(json.dumps(base))  # JSON is YAML
    (tmp_path / "all.yaml").write_text("stages: [stage1.yaml, stage2.yaml, stage3.yaml]")
    return tmp_path


def options(world, stages, *more):
    return [*mini_options(world, stages / "out"), *SHORT, *more]


def command(world, stages, *more):
    return ["train.py", "--cfg-path", str(stages / "all.yaml"), "--options", *options(world, stages, *more)]


@pytest.mark.parametrize(
    ("quantization", "kind", "n"), [("nf4", "Linear4bit", 3), ("8bit", "Linear8bitLt", 1), ("int8", "Int8Linear", 1)]
)
def test_stages_through_a_quantised_llm(mini_world, stages, quantization, kind, n):
    """All three through one of the kinds, which differ in the module that each LLM's layer is made."""
    numbers = range(1, n + 1)
    (stages / "all.yaml").write_text(f"stages: [{', '.join(f'stage{number}.yaml' for number in numbers)}]")
    result = run_command(*command(mini_world, stages, f"model.llm_quantization={quantization}"))
    assert result.returncode == 0, result.stderr
    folders = [stages / "out" / f"stage{number}" for number in numbers]
    ends = [checkpoint.read(folder / "checkpoint_best.pth")["model"] for folder in folders]
    for folder, parameters in zip(folders, ends, strict=True):
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in parameters.values())
        assert any(p.any() for name, p in parameters.items() if "lora_B" in name)  # which begin with zeros
        assert (folder / "training_curves.png").stat().st_size > 10_000
    for before, after in itertools.pairwise(folders):
        assert OmegaConf.load(after / "config.yaml").model.ckpt == str(before / "checkpoint_best.pth")
    for before, after in itertools.pairwise(ends):
        assert any(not torch.equal(after[name], value) for name, value in before.items())
    best = f"model.ckpt={folders[-1]}/checkpoint_best.pth"
    model = SALMONN.from_config(load_config(folders[-1] / "config.yaml", [best]).model)
    assert kind in {type(module).__name__ for module in model.llama_model.modules()}
    assert all(torch.equal(p, ends[-1][name]) for name, p in model.named_parameters() if name in ends[-1])


def test_stages_on_two_processes_the_last_on_one_then_nothing_is_left(mini_world, stages):
    result = run_command(*command(mini_world, stages), ranks=2)
    assert result.returncode == 0, result.stderr
    ends = [checkpoint.read(stages / f"out/stage{stage}/checkpoint_last.pth")["progress"] for stage in (1, 2, 3)]
    assert [end["processes"] for end in ends] == [2, 2, 1]
    runs = read_lineage(stages / "out/stage3/checkpoint_best.pth")
    assert [(run.run, run.data, run.step) for run in runs] == [
        (f"stage{stage}", f"stage{stage}_train.json", 2) for stage in (1, 2, 3)
    ]
    assert [set(run.tasks) for run in runs[::2]] == [{"asr", "audiocaption"}, {"audio_story_telling"}]
    assert {"asr", "QA", "audio_story_telling"} <= known_tasks(runs)
    again = run_command(*command(mini_world, stages), ranks=2)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("training is done, 1 epoch:") == 3
    assert "trainable parameters" not in again.stderr  # no model was loaded to find nothing to do


def test_a_signal_ends_the_stage_and_the_list_and_the_same_command_goes_on(mini_world, stages, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    configs = partial(load_stages, stages / "all.yaml", options(mini_world, stages))
    finish = TrainingStep.finish

    def finish_at_a_signal(*step):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "finish", finish_at_a_signal)
        run_stages(configs())
    assert "stopped by SIGTERM after iteration 1" in capsys.readouterr().err
    assert not (stages / "out/stage2").exists()
    run_stages(configs())
    assert "going on with" in capsys.readouterr().err
    steps = [json.loads((stages / f"out/stage{i}/summary.json").read_text())["iterations"] for i in (1, 2, 3)]
    assert steps == [2, 2, 2]


def test_problems_of_a_later_stage_are_told_before_the_first_begins(mini_world, stages):
    last = OmegaConf.load(stages / "stage3.yaml")
    last.datasets.train_ann_path = "nowhere.json"
    OmegaConf.save(last, stages / "stage3.yaml")
    result = run_command(*command(mini_world, stages))
    assert result.returncode == 2
    assert "datasets.train_ann_path: nowhere.json does not exist" in result.stderr
    assert "model.ckpt" not in result.stderr  # stages 1 and 2 will write them
    assert not (stages / "out").exists()


def test_the_listed_stages_start_from_each_other_wherever_they_write():
    for configs_folder, folder in (("", "output"), ("7b/", "output/7b"), ("mini/", "output/mini")):
        configs = load_stages(f"configs/{configs_folder}all_stages.yaml")
        assert [config.run.exp_name for config in configs] == ["stage1", "stage2", "stage3"]
        assert [config.model.ckpt for config in configs] == [
            "", f"{folder}/stage1/checkpoint_best.pth", f"{folder}/stage2/checkpoint_best.pth",
        ]  # fmt: skip
    moved = load_stages("configs/all_stages.yaml", ["run.output_dir=elsewhere", "model.ckpt=start.pth"])
    assert [config.model.ckpt for config in moved] == [
        "start.pth", "elsewhere/stage1/checkpoint_best.pth", "elsewhere/stage2/checkpoint_best.pth",
    ]  # fmt: skip
    assert len(load_stages("configs/stage1.yaml")) == 1


@pytest.mark.parametrize(("folder", "output"), [("fast", "output/fast"), ("mini/fast", "output/mini")])
def test_stage_0_and_those_after_it_go_together_without_options(folder, output):
    together = load_stages(f"configs/{folder}/all_stages.yaml")
    alone = [load_config(f"configs/{folder}/stage{stage}.yaml") for stage in (1, 2, 3)]
    assert [config.run.exp_name for config in together] == ["stage0", "stage1", "stage2", "stage3"]
    assert [config.run.objective for config in together] == ["ctc", "answer", "answer", "answer"]
    for i, config in enumerate([*together[1:], *alone]):
        before = f"{output}/stage{i % 3}/checkpoint_best.pth"
        assert config.model.ckpt == before
        assert heard_otherwise(together[0].model, config.model) == []
    assert len({config.run.output_dir for config in together + alone}) == 1


def test_the_fast_stages_differ_from_the_published_ones_in_windows_and_start_alone():
    for stage in (1, 2, 3):
        fast, published = (load_config(f"configs/{folder}stage{stage}.yaml") for folder in ("fast/", ""))
        differing = {key for key in fast.model if fast.model[key] != published.model[key]}
        makes_room = {"gradient_checkpointing"} if stage < 3 else set()
        assert differing == {"second_per_window", "second_stride", "ckpt"} | makes_room
        assert OmegaConf.merge(fast.run, {"output_dir": published.run.output_dir}) == published.run
        assert fast.datasets == published.datasets


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("stages: []", [], "must be a list"),
        ("stages: [a.yaml]\nrun: {seed: 1}", [], "stand alone"),
        ("stages: [a.yaml, b.yaml]", ["run.exp_name=x"], "run.exp_name: not for several stages"),
        ("stages: [a.yaml, a.yaml]", [], "a run.exp_name of its own"),
        ("stages: [a.yaml, b.yaml]", ["run.resume=x.pth"], "run.resume = x.pth: not for several stages"),
        ("stages: [alone.yaml, a.yaml]", [], "only the last stage"),
        ("stages: [c.yaml]", [], "c.yaml does not exist"),
    ],
)
def test_a_list_of_stages_that_cannot_be_run_is_refused(tmp_path, text, options, told):
    (tmp_path / "list.yaml").write_text(text)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("run: {seed: 0}")
    (tmp_path / "alone.yaml").write_text("run: {use_distributed: False}")
    with pytest.raises(UserError, match=told):
        load_stages(tmp_path / "list.yaml", options)
