"""What a run saves and when it ends: the best checkpoint, signals, full disks, going on with other settings."""

import itertools
import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from salmonn.data.loader import open_datasets
from salmonn.model import checkpoint
from salmonn.training import runner as runner_module
from salmonn.training.runner import Runner
from tests.fixtures.commands import run_command
from tests.fixtures.runners import log_lines, plain_options_of, prepared


def test_the_best_checkpoint_is_that_of_highest_accuracy(make_runner, monkeypatch):
    runner = make_runner("run.iters_per_epoch=1", "run.optims.max_epoch=3", "run.batch_size_train=1")
    accuracies = iter([0.2, 0.5, 0.4])
    monkeypatch.setattr(
        runner, "validate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies), "loss_shuffled": 2.0}
    )
    assert runner.train()
    runner.close()
    assert checkpoint.read(runner.folder / "checkpoint_best.pth")["epoch"] == 1
    assert checkpoint.read(runner.folder / "checkpoint_last.pth")["epoch"] == 2
    assert checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]["best"]["epoch"] == 1


def test_of_equally_accurate_validations_the_one_of_lowest_loss_is_the_best_also_when_the_run_is_taken_up(
    make_runner, monkeypatch
):
    losses = [0.5, 0.3, 0.4]
    monkeypatch.setattr(
        Runner, "validate", lambda _, __, epoch, *___: {"loss": losses[epoch], "accuracy": 1.0, "loss_shuffled": 2.0}
    )
    runs = {"at once": [3], "taken up": [2, 3]}  # the epochs after which it ends
    for name, ends in runs.items():
        for end in ends:
            length = ("run.iters_per_epoch=1", "run.batch_size_train=1", f"run.optims.max_epoch={end}")
            runner = make_runner(*length, f"run.exp_name={name}", "run.resume=auto", "run.overwrite=False")
            assert runner.train()
            runner.close()
        best, last = (checkpoint.read(runner.folder / f"checkpoint_{kind}.pth") for kind in ("best", "last"))
        assert best["epoch"] == last["progress"]["best"]["epoch"] == 1, name


def test_a_checkpoint_tells_the_content_that_was_opened_whatever_took_its_place_since(
    make_runner, mini_world, monkeypatch, tmp_path
):
    file = tmp_path / "own.json"
    shutil.copy(mini_world / "ann/stage1_train.json", file)

    def open_then_replace(*args):
        opened = open_datasets(*args)
        (tmp_path / "new.json").write_text(file.read_text() + " ")
        (tmp_path / "new.json").replace(file)
        return opened

    before = Annotations(file).content
    monkeypatch.setattr(runner_module, "open_datasets", open_then_replace)
    runner = make_runner(f"datasets.train_ann_path={file}")
    assert runner.state.annotations["train_ann_path"] == before != Annotations(file).content
    runner.close()


INSIDE = ["run.iters_per_epoch=6", "run.optims.max_epoch=2", "run.batch_size_train=1", "run.valid_every_steps=2"]


STOPPED = [*INSIDE, "run.save_every_steps=1", "run.optims.init_lr=0.01"]


@pytest.fixture(scope="module")
def whole(mini_world, tmp_path_factory):
    """A run of `STOPPED` that was never stopped."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        runner = prepared([*plain_options_of(mini_world, tmp_path_factory.mktemp("whole")), *STOPPED], monkeypatch)
        assert runner.train()
        runner.close()
    return runner


def test_a_validation_inside_an_epoch_may_be_the_best(make_runner, monkeypatch):
    runner = make_runner(*INSIDE)
    accuracies = iter([0.2, 0.5, 0.4, 0.5, 0.6, 0.3])  # after steps 2, 4, 6 of either epoch
    monkeypatch.setattr(
        runner, "validate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies), "loss_shuffled": 2.0}
    )
    assert runner.train()
    runner.close()
    best, last = (checkpoint.read(runner.folder / f"checkpoint_{name}.pth") for name in ("best", "last"))
    assert (best["epoch"], best["step"], best["progress"]["best"]["accuracy"]) == (1, 10, 0.6)
    assert (last["progress"]["best"]["step"], last["progress"]["valid"]["accuracy"]) == (10, 0.3)
    assert json.loads((runner.folder / "summary.json").read_text())["best"]["step"] == 10


def stop_by_signal(runner, at: int):
    """A signal while the parameters of that iteration are validated."""
    encode = runner.model.encode_clips

    def encode_then_hear_the_signal(*args):
        if not torch.is_grad_enabled() and runner.progress.iteration == at:
            runner.stop_request.name = "SIGTERM"
        return encode(*args)

    runner.model.encode_clips = encode_then_hear_the_signal
    assert not runner.train()


def die_before_saving(runner, at: int):
    """As by kill -9 when a validation is done and nothing is written yet."""
    save = runner.state.save

    def die(*args):
        if runner.progress.iteration == at:
            raise KeyboardInterrupt
        save(*args)

    runner.state.save = die
    with pytest.raises(KeyboardInterrupt):
        runner.train()


def die_between_best_and_last(runner, at: int):
    """As by kill -9 when the best checkpoint is written and the last is not."""
    save = runner.run_folder.save

    def die(content):
        if content["step"] == at:
            raise KeyboardInterrupt
        save(content)

    runner.run_folder.save = die
    with pytest.raises(KeyboardInterrupt):
        runner.train()


def die_after_writing_it_down(runner, at: int):
    """As by kill -9 when the log has a validation of which no checkpoint knows."""
    write = runner.log.write

    def die(kind, step, **values):
        write(kind, step, **values)
        if (kind, step) == ("valid", at):
            raise KeyboardInterrupt

    runner.log.write = die
    with pytest.raises(KeyboardInterrupt):
        runner.train()


@pytest.mark.parametrize(
    ("stop", "at"),
    [
        *itertools.product([stop_by_signal, die_before_saving, die_between_best_and_last], [2, 8]),
        *((die_after_writing_it_down, at) for at in (2, 6, 12)),  # 6 and 12: at an epoch's end
    ],
)
def test_a_stop_at_a_validation_inside_an_epoch_changes_neither_it_nor_the_best_checkpoint(
    make_runner, whole, stop, at
):
    stop(stopped := make_runner(*STOPPED), at)
    stopped.close()
    runner = make_runner(*STOPPED, "run.overwrite=False")
    assert runner.train()
    runner.close()
    validations = [[line for line in log_lines(r) if line["kind"] == "valid"] for r in (whole, runner)]
    assert [line["step"] for line in validations[0]] == [2, 4, 6, 8, 10, 12]
    assert validations[0] == validations[1]  # each once, with the same values
    for name in ("best", "last"):
        one, two = (checkpoint.read(r.folder / f"checkpoint_{name}.pth") for r in (whole, runner))
        assert (one["step"], one["progress"]["best"]) == (two["step"], two["progress"]["best"])
        assert all(torch.equal(two["model"][key], value) for key, value in one["model"].items())


def test_a_run_in_fp16_goes_on_with_its_loss_scaler(make_runner, mini_world, tmp_path):
    """Which counts the steps since its last change: anew, it would change at others, and the run would be another."""
    entries = json.loads((mini_world / "ann/stage1_valid.json").read_text())["annotation"][:3]
    (tmp_path / "few.json").write_text(json.dumps({"annotation": entries}))  # float16 is slow on a CPU
    options = ["run.amp=True", "run.iters_per_epoch=4", "run.optims.max_epoch=1", "run.batch_size_train=1"]
    options += ["run.valid_every_steps=2", *(f"datasets.{s}_ann_path={tmp_path}/few.json" for s in ("train", "valid"))]
    runner = make_runner(*options, "run.exp_name=whole")
    assert runner.step.scaler.is_enabled()
    assert runner.train()
    runner.close()
    one = checkpoint.read(runner.folder / "checkpoint_last.pth")
    stop_by_signal(stopped := make_runner(*options), at=2)
    stopped.close()
    runner = make_runner(*options, "run.overwrite=False")
    assert runner.train()
    runner.close()
    two = checkpoint.read(runner.folder / "checkpoint_last.pth")
    assert two["scaler"] == one["scaler"] != torch.amp.GradScaler("cpu").state_dict()
    assert all(torch.equal(two["model"][key], value) for key, value in one["model"].items())


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_best_checkpoint_damaged_in_the_meantime_is_told_by_the_run_itself(make_runner, monkeypatch, comes_back):
    """And not by the stage that starts from it."""
    options = ["run.iters_per_epoch=1", "run.batch_size_train=1", "run.optims.max_epoch=2"]
    runner = make_runner(*options)
    accuracies = iter([0.4, 0.5] if comes_back else [0.5, 0.4])
    monkeypatch.setattr(
        runner, "validate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies), "loss_shuffled": 2.0}
    )
    assert runner.train()
    runner.close()
    best = runner.folder / "checkpoint_best.pth"
    best.write_bytes(best.read_bytes()[:5000])
    for path in [] if comes_back else runner.folder.glob("checkpoint_last-*"):
        path.unlink()
    again = Runner(OmegaConf.merge(runner.config, {"run": {"overwrite": False}}))
    if comes_back:
        assert again.run()
        assert checkpoint.read(best)["progress"]["best"]["accuracy"] == 0.5
    else:
        with pytest.raises(UserError, match=r"checkpoint_best\.pth .*(.|\n)*No other checkpoint .* of its step 1"):
            again.run()


def test_a_best_checkpoint_that_could_not_be_written_does_not_count(make_runner, monkeypatch):
    runner = make_runner("run.iters_per_epoch=1", "run.optims.max_epoch=3", "run.batch_size_train=1")
    accuracies = iter([0.2, 0.5, 0.4])
    monkeypatch.setattr(
        runner, "validate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies), "loss_shuffled": 2.0}
    )
    save_best, calls = runner.run_folder.save_best, []

    def full_the_second_time(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("No space left on device")
        save_best(*args, **kwargs)

    monkeypatch.setattr(runner.run_folder, "save_best", full_the_second_time)
    assert runner.train()
    runner.close()
    best = checkpoint.read(runner.folder / "checkpoint_best.pth")
    assert best["progress"]["best"]["epoch"] == best["epoch"] == 2  # of those that could be kept
    assert json.loads((runner.folder / "summary.json").read_text())["best"]["epoch"] == 2


def test_a_signal_in_validation_is_heard_and_the_run_goes_on_with_that_validation(make_runner, monkeypatch):
    options = "run.iters_per_epoch=2", "run.optims.max_epoch=1", "run.batch_size_train=1"
    runner = make_runner(*options)
    encode = runner.model.encode_clips

    def encode_then_hear_the_signal(*args):
        if not torch.is_grad_enabled():
            runner.stop_request.name = "SIGTERM"
        return encode(*args)

    monkeypatch.setattr(runner.model, "encode_clips", encode_then_hear_the_signal)
    assert not runner.train()
    runner.close()
    progress = checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]
    assert (progress["epoch"], progress["epoch_iteration"], progress["samples"]) == (0, 2, 2)
    assert not (runner.folder / "checkpoint_best.pth").exists()
    runner = make_runner(*options, "run.overwrite=False")
    assert runner.train()
    runner.close()
    assert [(line["kind"], line["step"]) for line in log_lines(runner)] == [("train", 1), ("train", 2), ("valid", 2)]
    assert (runner.folder / "checkpoint_best.pth").exists()


def test_a_signal_between_micro_batches_drops_the_unfinished_step(make_runner, monkeypatch):
    options = "run.accum_grad_iters=2", "run.iters_per_epoch=4", "run.batch_size_train=1"
    runner = make_runner(*options)
    backward, calls = runner.step.backward, []

    def backward_then_signal(*args):
        calls.append(1)
        if len(calls) == 3:  # the first micro-batch of the second step
            runner.stop_request.name = "SIGTERM"
        return backward(*args)

    monkeypatch.setattr(runner.step, "backward", backward_then_signal)
    assert not runner.train()
    runner.close()
    progress = checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]
    assert (progress["epoch_iteration"], progress["iteration"], progress["samples"]) == (2, 2, 2)


def test_a_signal_during_the_last_save_ends_a_list_of_stages(make_runner, monkeypatch):
    runner = make_runner("run.iters_per_epoch=1", "run.batch_size_train=1")
    save = runner.run_folder.save

    def save_and_signal(content):
        save(content)
        if content["progress"]["epoch"] == 1:
            runner.stop_request.name = "SIGTERM"

    monkeypatch.setattr(runner.run_folder, "save", save_and_signal)
    assert not runner.train()
    assert checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]["epoch"] == 1


def test_a_stop_that_could_not_save_is_an_error(make_runner, monkeypatch):
    runner = make_runner("run.iters_per_epoch=2", "run.batch_size_train=1")
    runner.stop_request.name = "SIGTERM"
    monkeypatch.setattr(checkpoint, "write_content", lambda *_a, **_k: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError, match=r"nothing could be written to .* make room"):
        runner.train()


def test_another_precision_or_batch_size_goes_on_with_the_same_run(make_runner, mini_world, tmp_path):
    """No loss scaler's state to take up; in a pass over the data the place is found again, and no log line is lost."""
    entries = json.loads((mini_world / "ann/stage1_train.json").read_text())["annotation"][:48]
    (tmp_path / "few.json").write_text(json.dumps({"annotation": entries}))  # float16 is slow on a CPU
    shared = ["run.epoch_based=True", "run.optims.max_epoch=2", "run.save_every_steps=6"]
    shared.append(f"datasets.train_ann_path={tmp_path}/few.json")
    runner = make_runner(*shared, "run.batch_size_train=4")
    original = runner._finish_step

    def stop_after_6(epoch, group):
        if group[-1] == 5:
            runner.stop_request.name = "SIGTERM"
        return original(epoch, group)

    runner._finish_step = stop_after_6
    assert not runner.train()
    runner.close()
    steps = [line["step"] for line in log_lines(runner)]
    runner = make_runner(*shared, "run.overwrite=False", "run.batch_size_train=8", "run.amp=True")
    assert (runner.progress.epoch_iteration, runner.progress.iteration, runner.progress.samples) == (3, 6, 24)
    assert runner.step.scaler.is_enabled()
    assert runner.train()
    runner.close()
    after = [line["step"] for line in log_lines(runner) if line["kind"] == "train"]
    assert after[:6] == steps
    assert after == list(range(1, 16))  # 6 of 4 samples, 3 of 8 to the end of the pass, and 6 of another


def test_a_run_does_not_replace_the_checkpoint_it_starts_from(plain_options, tmp_path):
    (tmp_path / "stage1").mkdir()
    ckpt = tmp_path / "stage1" / "checkpoint_best.pth"
    ckpt.touch()
    result = run_command(
        "train.py", "--cfg-path", "configs/mini/stage1.yaml", "--options", *plain_options, f"model.ckpt={ckpt}"
    )
    assert result.returncode == 2
    assert "lies in the folder" in result.stderr
    assert ckpt.exists()
