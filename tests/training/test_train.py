"""`train.py` as a user runs it, on a small miniature world with random weights."""

import json

import pytest
import torch

from salmonn.common.cli import argument_parser
from salmonn.config.missing_files import has_mini_model
from salmonn.model import checkpoint
from tests.fixtures.commands import json_lines, run_command, torchrun
from tests.fixtures.mini_world import train_options

SHORT = [
    "run.iters_per_epoch=3", "run.optims.max_epoch=2", "run.batch_size_train=2", "run.batch_size_eval=8",
    "run.log_freq=1", "run.optims.warmup_steps=0",
]  # fmt: skip


def train(world, output, *options, config="configs/mini/stage1.yaml", ranks=1):
    stage = config.split("/")[-1].removesuffix(".yaml")
    arguments = ["--cfg-path", config, "--options", *train_options(world, output, stage), *SHORT, *options]
    return run_command("train.py", *arguments, ranks=ranks)


def log_lines(folder, kind):
    lines = json_lines(folder / "log.jsonl")
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def one_process(mini_world, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    result = train(mini_world, output)
    assert result.returncode == 0, result.stderr
    return output / "stage1"


def test_one_process_trains_validates_and_saves(one_process):
    steps = [line["step"] for line in log_lines(one_process, "train")]
    assert steps == [1, 2, 3, 4, 5, 6]
    for line in log_lines(one_process, "train"):
        assert line["grad_norm"] > 0
        assert line["lr"] > 0
    valid = log_lines(one_process, "valid")
    assert [line["epoch"] for line in valid] == [0, 1]
    for line in valid:
        assert line["loss"] > 0
        assert line["loss_shuffled"] > 0
        assert 0 <= line["accuracy"] <= 1
    summary = json.loads((one_process / "summary.json").read_text())
    assert summary["iterations"] == 6
    for line in valid:
        assert line["tasks"].keys() == {"asr", "audiocaption"}
        assert line["tasks"]["asr"].keys() == {"loss", "accuracy", "loss_shuffled", "accuracy_shuffled"}
    events = b"".join(file.read_bytes() for file in (one_process / "tensorboard").iterdir())
    for curve in (b"train/lr", b"train/memory_gb", b"valid/loss_shuffled", b"valid/asr/accuracy"):
        assert curve in events
    assert (one_process / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_hold_trainable_parameters_and_the_state_to_go_on(one_process):
    last = checkpoint.read(one_process / "checkpoint_last.pth")
    summary = json.loads((one_process / "summary.json").read_text())
    assert sum(p.numel() for p in last["model"].values()) == summary["trainable_parameters"]
    assert {"optimizer", "scaler", "config", "epoch", "step", "progress"} <= last.keys()
    assert (last["epoch"], last["step"]) == (1, 6)
    assert last["config"]["model"]["qformer_hidden_size"] == 128
    best = checkpoint.read(one_process / "checkpoint_best.pth")
    accuracies = [line["accuracy"] for line in log_lines(one_process, "valid")]
    assert best["progress"]["best"]["accuracy"] == max(accuracies)


def test_validation_does_not_depend_on_the_number_of_processes(mini_world, one_process, tmp_path):
    """No sample is counted twice to fill the last batch."""
    results = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        ann = [f"datasets.test_ann_path={mini_world}/ann/stage1_valid.json", "run.evaluate=True"]
        ckpt = f"model.ckpt={one_process}/checkpoint_last.pth"
        result = train(mini_world, output, *ann, ckpt, ranks=processes)
        assert result.returncode == 0, result.stderr
        results.append(log_lines(output / "stage1/evaluate", "valid")[0])
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-4)
    assert results[0]["accuracy"] == results[1]["accuracy"]


def test_broken_files_are_skipped_counted_and_listed(mini_world, tmp_path):
    result = train(mini_world, tmp_path, "run.iters_per_epoch=20", "run.optims.max_epoch=1", "run.batch_size_train=8")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "stage1/summary.json").read_text())
    listed = json_lines(tmp_path / "stage1/quarantine.jsonl")
    assert summary["bad_files"] == len(listed) > 0
    assert all(entry["path"] and entry["reason"] for entry in listed)
    counts = [(line["tried"], line["bad"], line["bad_files"]) for line in log_lines(tmp_path / "stage1", "train")]
    assert counts == sorted(counts)
    assert counts[-1][0] >= 20 * 8 + counts[-1][1]
    events = b"".join(file.read_bytes() for file in (tmp_path / "stage1/tensorboard").iterdir())
    assert b"train/bad_files" in events
    assert "unreadable files so far: " in result.stderr


def test_the_next_stage_starts_from_the_checkpoint_of_the_one_before(mini_world, one_process, tmp_path):
    options = [f"model.ckpt={one_process}/checkpoint_best.pth", "run.optims.init_lr=0", "run.optims.min_lr=0"]
    options += ["run.optims.warmup_start_lr=0", "run.optims.max_epoch=1"]
    result = train(mini_world, tmp_path, *options, config="configs/mini/stage2.yaml")
    assert result.returncode == 0, result.stderr
    before = checkpoint.read(one_process / "checkpoint_best.pth")["model"]
    after = checkpoint.read(tmp_path / "stage2" / "checkpoint_last.pth")["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert f"starting from {one_process}/checkpoint_best.pth: " in result.stderr
    assert ", step 3, of the run stage1" in result.stderr or ", step 6, of the run stage1" in result.stderr
    assert "validation samples, 1 process\n" in result.stderr
    assert "nothing trained to start from" not in result.stderr


@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_mixed_precision_trains_with_float32_parameters(mini_world, tmp_path, amp_dtype):
    result = train(mini_world, tmp_path, "run.amp=True", f"run.amp_dtype={amp_dtype}", "run.optims.max_epoch=1")
    assert result.returncode == 0, result.stderr
    parameters = checkpoint.read(tmp_path / "stage1" / "checkpoint_last.pth")["model"]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in parameters.values())


def test_a_finished_run_is_not_overwritten_by_accident(mini_world, one_process):
    result = train(mini_world, one_process.parent, "run.resume=none")
    assert result.returncode == 2
    assert "already holds a run" in result.stderr
    assert "Traceback" not in result.stderr


def test_real_configs_without_weights_say_what_is_missing_in_one_screen():
    for config in ("configs/stage2.yaml", "configs/7b/stage1.yaml"):
        result = run_command("train.py", "--cfg-path", config)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) < 24
        for what in ("llama_path", "whisper_path", "beats_path", "train_ann_path", "prefix"):
            assert what in result.stderr
        assert ("make quickstart" in result.stderr) is not has_mini_model()
        assert "Traceback" not in result.stderr


def test_under_torchrun_the_message_is_the_last_thing_on_the_screen():
    result = run_command(*torchrun(), "train.py", "--cfg-path", "configs/stage1.yaml")
    assert result.returncode == 1  # torchrun's own
    last_screen = "\n".join(result.stderr.splitlines()[-24:])
    assert "this run cannot start:" in last_screen
    assert result.stderr.count("make quickstart") == last_screen.count("make quickstart") == (not has_mini_model())


def test_a_task_without_a_prompt_is_named_before_training(mini_world, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"asr": ["<SpeechHere> x"]}))
    result = train(mini_world, tmp_path, f"model.prompt_path={prompts}")
    assert result.returncode == 2
    assert "audiocaption" in result.stderr
    assert "Traceback" not in result.stderr


def test_data_that_cannot_be_read_at_all_stops_the_run_with_a_message(mini_world, tmp_path):
    (tmp_path / "empty").mkdir()
    result = train(mini_world, tmp_path, f"datasets.prefix={tmp_path}/empty")
    assert result.returncode == 2
    assert "datasets.prefix" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_how_to_start():
    result = run_command("train.py", "--help")
    assert result.returncode == 0
    assert "torchrun" in result.stdout
    assert "make quickstart" in result.stdout


def test_bad_data_leaves_the_run_that_is_there_alone(mini_world, tmp_path):
    result = train(mini_world, tmp_path, "run.optims.max_epoch=1")
    assert result.returncode == 0, result.stderr
    before = sorted(p.name for p in (tmp_path / "stage1").iterdir())
    (tmp_path / "broken.json").write_text("{")
    result = train(mini_world, tmp_path, "run.overwrite=True", f"datasets.train_ann_path={tmp_path}/broken.json")
    assert result.returncode == 2
    assert "broken.json cannot be read" in result.stderr
    assert sorted(p.name for p in (tmp_path / "stage1").iterdir()) == before


def test_repeated_options_all_count():
    parser = argument_parser("")
    arguments = ["--cfg-path", "x", "--options", "a=1", "b=2", "--options", "c=3"]
    assert parser.parse_args(arguments).options == ["a=1", "b=2", "c=3"]
    assert parser.parse_args(["--cfg-path", "x"]).options == []
