"""Where a run is, the sizes that it plans with, and how it goes on in other sizes."""

from dataclasses import asdict
from itertools import islice

import pytest
from torch import nn

from salmonn.config.loading import load_config
from salmonn.training.progress import Plan, Progress, log_plan, make_plan, unusual_about


def config_with(*options: str):
    return load_config("configs/mini/stage1.yaml", options)


def plan_of(n_train: int = 100, processes: int = 1, **run) -> Plan:
    """The plan of 2 epochs of 5 iterations of 4 samples, two of them a step, except for what is said otherwise."""
    values = {"batch_size_train": 4, "accum_grad_iters": 2, "iters_per_epoch": 5, "optims.max_epoch": 2, **run}
    return make_plan(config_with(*(f"run.{key}={value}" for key, value in values.items())).run, n_train, processes)


# ---- the plan


def test_an_epoch_is_cut_into_steps_of_which_the_last_may_have_fewer_micro_batches():
    plan = plan_of()
    assert list(plan.steps(0)) == [range(0, 2), range(2, 4), range(4, 5)]
    assert list(plan.steps(2)) == [range(2, 4), range(4, 5)]
    assert list(plan.steps(5)) == []
    assert plan.steps_per_epoch == 3


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("iters", [1, 4, 5, 6])
def test_steps_hold_every_iteration_once_and_in_order(iters: int, accumulation: int):
    plan = plan_of(iters_per_epoch=iters, accum_grad_iters=accumulation)
    steps = list(plan.steps(0))
    assert [i for step in steps for i in step] == list(range(iters))
    assert len(steps) == plan.steps_per_epoch
    assert all(len(step) == accumulation for step in steps[:-1])


def test_step_sizes_go_on_through_the_epochs_without_end():
    plan = plan_of()
    assert list(islice(plan.step_sizes(0), 7)) == [2, 2, 1, 2, 2, 1, 2]
    assert list(islice(plan.step_sizes(2), 4)) == [2, 1, 2, 2]


def test_multiples_are_counted_in_steps_of_the_epoch():
    plan = plan_of()  # steps end after iterations 2, 4 and 5
    assert [i for i in (2, 4, 5) if plan.is_multiple(i, 1)] == [2, 4, 5]
    assert [i for i in (2, 4, 5) if plan.is_multiple(i, 2)] == [4]
    assert [i for i in (2, 4, 5) if plan.is_multiple(i, 3)] == [5]
    assert not any(plan.is_multiple(i, 0) for i in (2, 4, 5))


def test_a_full_step_takes_the_samples_of_all_processes_and_micro_batches():
    plan = plan_of(processes=3)
    assert plan.samples_per_iteration == 12
    assert plan.effective_batch == 24
    assert plan.samples == 2 * 5 * 12
    assert plan.passes == 1.2


@pytest.mark.parametrize(("n_train", "iters"), [(24, 3), (25, 4), (1, 1)])
def test_an_epoch_that_is_a_pass_has_as_many_iterations_as_the_data_needs(n_train: int, iters: int):
    plan = plan_of(n_train, processes=2, epoch_based=True)
    assert plan.iters_per_epoch == iters
    assert plan.samples == 2 * iters * 8


def test_a_plan_is_told_in_a_line():
    assert str(plan_of(processes=3)) == (
        "2 epochs of 3 steps, effective batch 24 (4 x accumulation 2 x 3 processes): 120 samples, 1.20 passes over the "
        "data"
    )
    one = plan_of(iters_per_epoch=1, accum_grad_iters=1, **{"optims.max_epoch": 1})
    assert str(one).startswith("1 epoch of 1 step, effective batch 4 (4 x accumulation 1 x 1 process): 4 samples")


def test_what_is_unusual_about_a_plan_is_told_with_it(caplog):
    model = nn.ModuleDict({"ln_speech": nn.LayerNorm(3)})
    with caplog.at_level("INFO"):
        log_plan(plan_of(), config_with("run.optims.warmup_steps=5"), model)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "6 trainable parameters (norms 6)" in caplog.text
    caplog.clear()
    log_plan(plan_of(), config_with("run.optims.warmup_steps=6", "model.lora_scaling=2"), model)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0].startswith("training with model.lora_scaling = 2;")
    assert warnings[1].startswith("run.optims.warmup_steps = 6 is longer than an epoch of 5 iterations")


def test_more_passes_than_a_small_data_set_bears_are_told():
    config = config_with("run.optims.warmup_steps=0", "run.optims.max_epoch=50", "run.epoch_based=True")
    assert unusual_about(make_plan(config.run, 1000, 1), config) == []
    [told] = unusual_about(make_plan(config.run, 1001, 1), config)  # the last batch of an epoch begins the next pass
    assert told.startswith("50 passes over the data")


# ---- going on


def gone_on(before: dict, now: dict, processes: tuple[int, int] = (1, 1), iteration: int = 7, **run) -> Progress:
    """A run that is 7 iterations into its second epoch, taken up with other sizes."""
    sizes = {"batch_size_train": 4, "accum_grad_iters": 1}
    progress = Progress(epoch=1, epoch_iteration=iteration, iteration=27, processes=processes[0], samples=108)
    options = {**sizes, **run, **now}.items()
    progress.go_on({**sizes, **before}, config_with(*(f"run.{k}={v}" for k, v in options)).run, processes[1])
    return progress


def test_in_the_same_sizes_a_run_goes_on_where_it_was(caplog):
    before = asdict(Progress(epoch=1, epoch_iteration=7, iteration=27, samples=108))
    assert asdict(gone_on({}, {})) == before
    assert asdict(gone_on({}, {}, epoch_based=True)) == before
    assert caplog.text == ""


@pytest.mark.parametrize(("batch_size", "processes", "iteration"), [(8, 1, 3), (2, 1, 14), (4, 2, 3), (2, 2, 7)])
def test_in_a_pass_over_the_data_the_place_is_found_by_its_samples(batch_size: int, processes: int, iteration: int):
    progress = gone_on({}, {"batch_size_train": batch_size}, (1, processes), epoch_based=True)
    assert (progress.epoch_iteration, progress.processes) == (iteration, processes)
    assert (progress.epoch, progress.iteration, progress.samples) == (1, 27, 108)  # the log and the stream go on


def test_in_an_epoch_of_iterations_the_place_stays(caplog):
    progress = gone_on({}, {"batch_size_train": 8}, (1, 2))
    assert (progress.epoch_iteration, progress.samples, progress.processes) == (7, 108, 2)
    assert "number of processes: 2 instead of 1; the samples go on where they were" in caplog.text


@pytest.mark.parametrize(("before", "now", "iteration"), [(1, 2, 6), (1, 4, 4), (7, 3, 6), (2, 2, 7)])
def test_in_other_steps_it_begins_with_the_first_micro_batch_of_one(before: int, now: int, iteration: int):
    progress = gone_on({"accum_grad_iters": before}, {"accum_grad_iters": now})
    assert progress.epoch_iteration == iteration


# ---- the best validation


def test_the_best_validation_is_the_most_accurate_and_of_equals_that_of_lowest_loss():
    validations = [(0.5, 1.0), (0.5, 0.9), (0.5, 0.9), (0.4, 0.1), (0.6, 2.0), (0.6, float("nan")), (0.6, 1.9)]
    progress, kept = Progress(), []
    for accuracy, loss in validations:
        progress.valid = {"accuracy": accuracy, "loss": loss}
        if progress.is_best():
            progress.best = progress.valid
            kept.append((accuracy, loss))
    assert kept == [(0.5, 1.0), (0.5, 0.9), (0.6, 2.0), (0.6, 1.9)]


def test_a_best_validation_of_before_without_a_loss_gives_way_to_a_more_accurate_one_only():
    progress = Progress.from_saved({"best": {"accuracy": 0.5}})
    found = []
    for progress.valid in ({"accuracy": 0.5, "loss": 0.1}, {"accuracy": 0.6, "loss": 9.0}):
        found.append(progress.is_best())
    assert found == [False, True]
