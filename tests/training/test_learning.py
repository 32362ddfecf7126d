"""What a training step does: averaging over ranks and groups, clipping, schedule."""

import math
from itertools import islice

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.config.schema import RunConfig
from salmonn.model import checkpoint
from salmonn.training import step as training_step
from salmonn.training.runner import Runner
from salmonn.training.step import TrainingStep
from tests.fixtures.commands import run_command
from tests.fixtures.paths import ROOT
from tests.fixtures.runners import log_lines


def updates(runner: Runner) -> torch.Tensor:
    """How far one call of `train_epoch(0)` moves the trainable parameters."""
    before = [p.detach().clone() for p in runner.step.trainable]
    runner.train_epoch(0)
    runner.log.close()
    runner.run_folder.release()
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(runner.step.trainable, before, strict=True)])


# Runs Runner without dropout; the batches of 2 ranks x 2 are those of 1 rank x 4.
WITHOUT_DROPOUT = """
import sys
from salmonn.common import distributed
from salmonn.config import load_config
from salmonn.training.runner import Runner
runner = Runner(load_config("configs/mini/stage1.yaml", sys.argv[1:]))
runner.prepare()
runner.model.eval()
runner.model.train = lambda mode=True: runner.model
runner.train()
runner.close()
distributed.shutdown()
"""


@pytest.fixture
def step(plain_options, tmp_path):
    """Takes one step, in a folder of this name, and gives its gradient and what was printed."""
    script = tmp_path / "run.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{WITHOUT_DROPOUT}")

    def take(name: str, processes: int, batch: int, accumulate: int, *more: str) -> tuple[torch.Tensor, str]:
        options = [f"run.exp_name={name}", f"run.batch_size_train={batch}", f"run.accum_grad_iters={accumulate}"]
        options += [f"run.iters_per_epoch={accumulate}", "run.optims.max_epoch=1"]
        result = run_command(str(script), *plain_options, *options, *more, ranks=processes)
        assert result.returncode == 0, result.stderr
        state = checkpoint.read(tmp_path / name / "checkpoint_last.pth")["optimizer"]["state"]
        return torch.cat([values["exp_avg"].flatten() for values in state.values()]).double(), result.stderr

    return take


def test_a_batch_gives_the_same_gradient_however_it_is_cut(step, tmp_path):
    """1 rank x 4, 2 ranks x 2 and 2 accumulated x 2: targets of different lengths, averaged over all tokens.

    What the two ranks have encoded, the last run finds in the encoder cache.
    """
    cache = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=0.5"]
    whole, _ = step("one", 1, 4, 1)
    ranks, _ = step("ranks", 2, 2, 1, *cache)
    accumulated, printed = step("accumulated", 1, 2, 2, *cache)
    assert "clips found, 0 encoded" in printed
    for other in (ranks, accumulated):
        assert (other - whole).norm() < 1e-6 * whole.norm()


def test_means_of_micro_batches_are_averaged_over_ranks_as_over_accumulated_ones(step):
    """With `run.loss_average=batch`, which is another gradient than the mean over all tokens."""
    ranks, _ = step("ranks", 2, 1, 2, "run.loss_average=batch")
    accumulated, _ = step("accumulated", 1, 1, 4, "run.loss_average=batch")
    over_tokens, _ = step("tokens", 1, 1, 4)
    assert (accumulated - ranks).norm() < 1e-6 * ranks.norm()
    assert (over_tokens - ranks).norm() > 1e-3 * ranks.norm()


TRAINED_ENCODERS = """
import sys
from pathlib import Path
import torch
from salmonn.common import distributed
from salmonn.config import load_config
from salmonn.training.runner import Runner
runner = Runner(load_config("configs/mini/stage1.yaml", sys.argv[1:]))
runner.prepare()
runner.model.beats.encoder.layerdrop = float(distributed.rank() == 0)  # drops all layers, or none
trained = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
before = {name: p.detach().clone() for name, p in trained.items()}
runner.train()
after = {name: p.detach() for name, p in trained.items()}
torch.save([before, after], Path(runner.folder, f"rank{distributed.rank()}.pt"))
runner.close()
distributed.shutdown()
"""


def test_ranks_train_encoders_of_which_each_drops_other_layers(plain_options, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{TRAINED_ENCODERS}")
    options = ["model.freeze_whisper=False", "model.freeze_beats=False", "run.iters_per_epoch=2"]
    result = run_command(str(script), *plain_options, *options, "run.batch_size_train=1", ranks=2)
    assert result.returncode == 0, result.stderr
    (before, after), (_, of_other) = (torch.load(tmp_path / f"stage1/rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(after[name], value) for name, value in of_other.items())
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    for part in ("beats.encoder.layers.", "speech_encoder.layers.", "speech_Qformer."):
        assert any(part in name for name in moved), part


COUNTED_ALL_REDUCES = """
import sys
from pathlib import Path
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from salmonn.common import distributed
from salmonn.config import load_config
from salmonn.training.runner import Runner
runner = Runner(load_config("configs/mini/stage1.yaml", sys.argv[1:]))
runner.prepare()
reduced = []

def counted(group, bucket):
    reduced.append(bucket.index())
    return allreduce_hook(group, bucket)

runner.ddp_model.register_comm_hook(dist.group.WORLD, counted)
runner.train()
runner.close()
Path(runner.folder, f"reduced{distributed.rank()}").write_text(str(reduced.count(0)))
distributed.shutdown()
"""


def test_gradients_are_exchanged_once_per_step_and_not_per_micro_batch(plain_options, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{COUNTED_ALL_REDUCES}")
    options = ["run.accum_grad_iters=4", "run.iters_per_epoch=6", "run.batch_size_train=1"]
    options += ["model.gradient_checkpointing=True", "model.llm_quantization=8bit"]
    result = run_command(str(script), *plain_options, *options, ranks=2)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"stage1/reduced{rank}").read_text() for rank in (0, 1)] == ["2", "2"]  # groups of 4 and 2


NAN_ON_RANK_1 = """
import sys
from salmonn.common import distributed
from salmonn.config import load_config
from salmonn.common.cli import run_cli
from salmonn.training.runner import Runner

def main():
    runner = Runner(load_config("configs/mini/stage1.yaml", sys.argv[1:]))
    runner.prepare()
    if distributed.rank() == 1:
        scale = float("nan")
        forward = runner.model.forward
        runner.model.forward = lambda *a, **k: {n: v * scale if n == "loss" else v for n, v in forward(*a, **k).items()}
        print("SAMPLES OF RANK 1:", end=" ")
        next_samples = runner._next_samples
        def told():
            samples = next_samples()
            print(samples["id"], flush=True)
            return samples
        runner._next_samples = told
    runner.train()

run_cli(main)
"""


@pytest.mark.parametrize("average", ["token", "batch"])
def test_a_loss_that_is_not_finite_names_its_rank_and_samples(plain_options, tmp_path, average):
    script = tmp_path / "run.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{NAN_ON_RANK_1}")
    options = [f"run.loss_average={average}", "run.iters_per_epoch=2", "run.batch_size_train=1"]
    result = run_command(str(script), *plain_options, *options, ranks=2)
    assert result.returncode == 1
    samples = result.stdout.partition("SAMPLES OF RANK 1: ")[2].splitlines()[0]
    assert f"RuntimeError: loss is nan on rank 1, epoch 0, iteration 0, samples {samples}" in result.stderr


def test_gradients_of_accumulated_batches_are_averaged(make_runner, monkeypatch):
    """Four micro-batches of the same samples give the step of one of them (the published code sums)."""
    samples, norms = None, []
    for accumulate in (1, 4):
        runner = make_runner(
            f"run.accum_grad_iters={accumulate}", f"run.iters_per_epoch={accumulate}", "run.batch_size_train=2"
        )
        samples = samples or next(runner.batches)
        monkeypatch.setattr(runner, "_next_samples", lambda samples=samples: samples)
        updates(runner)
        norms.append(log_lines(runner)[-1]["grad_norm"])
    assert norms[0] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_last_partial_group_steps_with_its_own_mean(make_runner, monkeypatch):
    runner = make_runner("run.accum_grad_iters=2", "run.iters_per_epoch=3", "run.batch_size_train=2")
    samples = next(runner.batches)
    monkeypatch.setattr(runner, "_next_samples", lambda: samples)
    monkeypatch.setattr(runner.step.optimizer, "step", lambda *_a, **_k: None)  # the same gradient again
    updates(runner)
    assert [line["step"] for line in log_lines(runner)] == [2, 3]  # each group has one line
    norms = [line["grad_norm"] for line in log_lines(runner)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_steps_are_sorted_by_length_where_the_average_does_not_depend_on_it(make_runner, monkeypatch):
    sizes = []
    monkeypatch.setattr("salmonn.training.runner.train_loader", lambda *_, steps, **__: sizes.append(steps) or [])
    for average in ("token", "batch"):
        make_runner("run.accum_grad_iters=4", "run.iters_per_epoch=6", f"run.loss_average={average}").close()
    assert list(islice(sizes[0], 3)) == [4, 2, 4]
    assert sizes[1:] == [None]


def test_clipping_limits_the_global_norm(make_runner):
    seen = []
    for limit in (0.0, 0.01):
        runner = make_runner(f"run.optims.grad_clip_norm={limit}", "run.iters_per_epoch=1", "run.batch_size_train=2")
        original = runner.step.optimizer.step

        def step(*args, runner=runner, original=original, **kwargs):
            seen.append(math.sqrt(sum(p.grad.square().sum().item() for p in runner.step.trainable)))
            return original(*args, **kwargs)

        runner.step.optimizer.step = step
        updates(runner)
        assert log_lines(runner)[-1]["grad_norm"] == pytest.approx(seen[0], rel=1e-3)  # logged before clipping
    assert seen[0] > 0.01
    assert seen[1] == pytest.approx(0.01, rel=1e-3)


def test_without_clipping_the_norm_is_the_same_and_nothing_writes_to_the_gradients():
    model = torch.nn.Sequential(*(torch.nn.Linear(7, 7) for _ in range(3)))
    run = OmegaConf.structured(RunConfig(amp=False, loss_average="batch"))
    step = TrainingStep(model, run, torch.device("cpu"))
    loss = model(torch.ones(2, 7)).square().mean()
    step.backward({"loss": loss, "total": torch.tensor(2), "cut": torch.tensor(0)}, ["clip"], 1)
    gradients = [p.grad for p in step.trainable]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in step.trainable]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient.clone()
    versions = [gradient._version for gradient in gradients]
    assert step.finish(1).grad_norm == torch.nn.utils.clip_grad_norm_(copies, math.inf).item()
    assert [gradient._version for gradient in gradients] == versions
    assert all(torch.equal(gradient, copy.grad) for gradient, copy in zip(gradients, copies, strict=True))


def test_the_schedule_reaches_the_optimizer(make_runner):
    runner = make_runner("run.iters_per_epoch=3", "run.optims.warmup_steps=3", "run.optims.warmup_start_lr=0",
                         "run.optims.init_lr=3e-3", "run.batch_size_train=1")  # fmt: skip
    seen, original = [], runner.step.optimizer.step

    def step(*args, **kwargs):
        seen.append([group["lr"] for group in runner.step.optimizer.param_groups])
        return original(*args, **kwargs)

    runner.step.optimizer.step = step
    assert updates(runner).abs().max() > 0
    assert seen == [[0.0, 0.0], [pytest.approx(1e-3)] * 2, [pytest.approx(2e-3)] * 2]
    assert [line["lr"] for line in log_lines(runner)] == [lrs[0] for lrs in seen]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(make_runner, monkeypatch):
    runner = make_runner("run.iters_per_epoch=1", "run.batch_size_train=1")
    nan = torch.tensor(math.nan, requires_grad=True)
    monkeypatch.setattr(
        runner, "ddp_model", lambda *_a, **_k: {"loss": nan, "total": torch.tensor(3), "cut": torch.tensor(0)}
    )
    with pytest.raises(RuntimeError, match=r"loss is nan on rank 0, epoch 0, iteration 0, samples \['/"):
        runner.train_epoch(0)
    saved = checkpoint.read(runner.folder / "not_finite.pth")
    assert len(saved["samples"]) == 1
    assert {"optimizer", "scaler", "epoch", "iteration"} <= saved.keys()
    assert saved["model"].keys() == {name for name, p in runner.model.named_parameters() if p.requires_grad}


def test_a_gradient_that_is_not_finite_stops_a_run_without_loss_scaler(make_runner):
    runner = make_runner("run.iters_per_epoch=1", "run.batch_size_train=2")
    before = runner.step.trainable[0].detach().clone()
    runner.step.trainable[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RuntimeError, match=r"the gradients' norm is (inf|nan), epoch 0.*samples \[\['/.*, '/"):
        runner.train_epoch(0)
    assert torch.equal(runner.step.trainable[0], before)


def test_overflowing_steps_are_left_out_and_counted_apart(make_runner):
    """fp16: the scaler skips the step and halves its scale; the mean norm is that of the other steps."""
    runner = make_runner("run.iters_per_epoch=3", "run.batch_size_train=1", "run.amp=True", "run.log_freq=3")
    scale, calls = runner.step.scaler.get_scale(), []

    def overflow_once(gradient):
        calls.append(1)
        return gradient * math.inf if len(calls) == 1 else gradient

    runner.step.trainable[0].register_hook(overflow_once)
    updates(runner)
    (line,) = log_lines(runner)
    assert (line["overflow_steps"], line["step"]) == (1, 3)
    assert 0 < line["grad_norm"] < math.inf
    assert runner.step.scaler.get_scale() == scale / 2
    assert all(torch.isfinite(p).all() for p in runner.step.trainable)


def test_overflow_without_end_stops_the_run(make_runner, monkeypatch):
    monkeypatch.setattr(training_step, "MAX_OVERFLOWS", 3)
    runner = make_runner("run.iters_per_epoch=9", "run.batch_size_train=1", "run.amp=True")
    runner.step.trainable[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RuntimeError, match=r"norm is (inf|nan) for 4 steps, epoch 0, iteration 3"):
        runner.train_epoch(0)


def test_the_published_average_gives_each_micro_batch_the_same_weight(make_runner):
    """run.loss_average=batch: the mean of the batches' means; token: of all tokens."""
    weight = torch.nn.Parameter(torch.ones(()))
    gradients = {}
    for average in ("batch", "token"):
        runner = make_runner(f"run.loss_average={average}", "run.accum_grad_iters=2", "run.batch_size_train=1")
        runner.step.trainable = [weight]
        runner.step.optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.0}])
        for loss, tokens in ((1.0, 1), (3.0, 9)):
            result = {"loss": weight * loss, "total": torch.tensor(tokens), "cut": torch.tensor(0)}
            runner.step.backward(result, ["clip"], group_size=2)
        gradients[average] = runner.step.finish(group_size=2).grad_norm
        runner.log.close()
        runner.run_folder.release()
    assert gradients == {"batch": pytest.approx((1 + 3) / 2), "token": pytest.approx((1 * 1 + 3 * 9) / 10)}
