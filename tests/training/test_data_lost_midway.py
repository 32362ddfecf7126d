"""A run whose clips can no longer be read saves what it has done, then says what is wrong."""

from collections.abc import Callable, Generator, Iterator

import pytest

from salmonn.common.samples import Samples
from salmonn.data.integrity import Verdict
from salmonn.data.loader import LoadingError
from salmonn.data.quarantine import MIN_TRIED
from salmonn.model import checkpoint
from salmonn.training import runner as runner_module
from salmonn.training.dry_run import tiny_step

GONE = [Verdict(f"{i}.wav", False, "unreadable: Stale file handle") for i in range(100)]


def nothing_left(samples: Samples) -> Samples:
    """As if neither its clips nor any that could take their place had been read."""
    return samples | {"text": [], "tried": 100, "unreadable": GONE}


def others_in_their_place(samples: Samples) -> Samples:
    return samples | {"tried": MIN_TRIED, "unreadable": GONE}


def with_one(batches: Iterator[Samples], number: int, changed: Callable[[Samples], Samples]) -> Generator[Samples]:
    for i, samples in enumerate(batches):
        yield changed(samples) if i == number else samples


@pytest.mark.parametrize(
    ("changed", "done", "told"),
    [
        (nothing_left, 2, r"hardly a clip can be read, e\.g\. 99\.wav: unreadable: Stale"),
        (others_in_their_place, 3, r"10\d of the 50\d entries tried so far (.|\n)*datasets\.max_bad_fraction = 0\.05"),
    ],
)
def test_what_was_done_is_saved_first(make_runner, changed, done, told):
    runner = make_runner("run.iters_per_epoch=6", "run.batch_size_train=1", "datasets.max_bad_fraction=0.05")
    runner.batches = with_one(runner.batches, 2, changed)
    with pytest.raises(LoadingError, match=rf"{told}(.|\n)*What was done until then is saved"):
        runner.train()
    runner.close()
    assert checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]["iteration"] == done
    again = make_runner("run.iters_per_epoch=6", "run.batch_size_train=1", "run.overwrite=False")
    assert again.train()  # the clips are there again, and what could not be read then is not held against it
    again.close()
    assert again.progress.iteration == 6


def test_a_run_that_has_read_nothing_leaves_no_checkpoint_that_binds_the_next_one_to_its_data(make_runner):
    runner = make_runner("run.iters_per_epoch=6", "run.batch_size_train=1")
    runner.batches = with_one(runner.batches, 0, nothing_left)
    with pytest.raises(LoadingError, match="hardly a clip can be read"):
        runner.train()
    runner.close()
    assert not list(runner.folder.glob("*.pth"))


def test_what_no_clip_of_can_be_read_is_told_by_the_dry_run_too(make_runner, monkeypatch):
    runner = make_runner()
    runner.close()
    monkeypatch.setattr(runner_module.Runner, "_training_batches", lambda *_: (nothing_left({}) for _ in range(9)))
    with pytest.raises(LoadingError, match="hardly a clip can be read"):
        tiny_step(runner.config)


def test_a_finished_model_that_does_not_listen_is_told_of_by_evaluation_too(make_runner, monkeypatch, capfd):
    deaf = {"loss": 2.0, "accuracy": 0.3, "loss_shuffled": 2.0, "accuracy_shuffled": 0.3, "tasks": {}}
    monkeypatch.setattr(runner_module, "validate", lambda *_: deaf)
    runner = make_runner("run.optims.warmup_steps=3000")
    valid = runner.datasets["valid_ann_path"]
    runner.validate(valid, epoch=0, step=0)
    assert "NOT LISTENING" not in capfd.readouterr().err
    runner.run_config.evaluate = True
    runner.validate(valid, epoch=0, step=0)
    assert "NOT LISTENING" in capfd.readouterr().err
    runner.close()
