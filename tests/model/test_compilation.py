"""torch.compile of the repeated blocks: the same numbers, few versions, and a run that goes on where it fails.

Most tests use torch.compile's backend "eager", which traces and guards but leaves the arithmetic as it is.
"""

import functools
import logging

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from salmonn.config.loading import load_config
from salmonn.model import checkpoint
from salmonn.model import compilation as compiled
from salmonn.model.compilation import compile_blocks, compiler_problem, repeated_blocks
from salmonn.training import runner
from salmonn.training.dry_run import tiny_step
from salmonn.training.resume import changes_of_the_result
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT
from util.benchmarks.sizes import build, make_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled before; afterwards torch's settings as they were."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    torch._dynamo.reset()
    counters.clear()
    with dynamo.patch(recompile_limit=dynamo.recompile_limit), functorch.patch(force_non_lazy_backward_lowering=False):
        yield
    torch._dynamo.reset()


def step(model: nn.Module, samples: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a training step, with the same dropout each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss = model(samples)["loss"]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(ours: tuple[float, dict], theirs: tuple[float, dict]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=0, atol=1e-5)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our warnings; torch says a lot more to itself."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("salmonn") and r.levelno >= logging.WARNING]


def is_compiled(block: nn.Module) -> bool:
    return block._compiled_call_impl is not None


def test_training_and_validation_give_the_same_in_a_few_versions():
    model = build("mini", CPU, gradient_checkpointing=True).train()
    batches = [make_batch(model, n) for n in (3, 2, 1)]  # of different lengths, too
    names = list(model.state_dict())
    plain = [step(model, samples) for samples in batches]
    with torch.no_grad():
        plain_valid = [model.eval()(samples)["loss"].item() for samples in batches]

    assert compile_blocks(model, CPU, "eager")
    assert all(is_compiled(block) for stack in repeated_blocks(model) for block in stack.blocks)
    assert list(model.state_dict()) == names
    versions = []
    for _ in range(2):
        model.train()
        for samples, expected in zip(batches, plain, strict=True):
            check_equal(step(model, samples), expected)
        model.eval()
        with torch.no_grad():
            valid = [model(samples)["loss"].item() for samples in batches]
        assert valid == pytest.approx(plain_valid, abs=1e-5)
        versions.append(counters["stats"]["unique_graphs"])
    assert versions[0] <= 13
    assert versions[1] == versions[0]
    assert not counters["graph_break"]


def test_nothing_is_compiled_where_no_compiler_works(caplog):
    def broken(*_):
        raise OSError("no compiler here")

    model = build("mini", CPU).train()
    samples = make_batch(model, 2)
    plain = step(model, samples)
    assert not compile_blocks(model, CPU, broken)
    check_equal(step(model, samples), plain)
    assert not any(map(is_compiled, model.modules()))
    (warning,) = told(caplog)
    assert "no compiler here" in warning


def test_blocks_that_the_compiler_cannot_do_run_as_they_are(caplog):
    width = 96  # of Whisper alone

    def picky(graph, inputs):
        if any(width in value.shape for value in inputs if isinstance(value, torch.Tensor)):
            raise NotImplementedError(f"width {width}")
        return graph.forward

    model = build("mini", CPU).train()
    samples = make_batch(model, 2)
    plain = step(model, samples)
    assert compile_blocks(model, CPU, picky)
    for _ in range(2):
        check_equal(step(model, samples), plain)
    whisper, *others = repeated_blocks(model)
    assert not any(map(is_compiled, whisper.blocks))
    assert all(is_compiled(block) for stack in others for block in stack.blocks)
    (warning,) = told(caplog)
    assert "Whisper" in warning
    assert "width 96" in warning


def test_a_backward_pass_that_cannot_be_compiled_does_not_end_the_training(caplog, monkeypatch):
    def breaks(graph, inputs):
        if len(inputs) > 12:  # more than the small function that is tried first has
            raise NotImplementedError("no backward pass")
        return make_boxed_func(graph.forward)

    model = build("mini", CPU).train()
    connector = repeated_blocks(model)[2]
    monkeypatch.setattr(compiled, "repeated_blocks", lambda _: [connector])
    samples = make_batch(model, 2)
    plain = step(model, samples)
    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=breaks)
    assert compile_blocks(model, CPU, backend)
    check_equal(step(model, samples), plain)
    (warning,) = told(caplog)
    assert "the Q-Former" in warning
    assert "no backward pass" in warning


def test_a_quantised_llm_is_left_as_it_is():
    model = build("mini", CPU)
    model.config.llm_quantization = "8bit"
    *encoders, llm = repeated_blocks(model)
    assert all(stack.blocks for stack in encoders)
    assert not llm.blocks


def test_a_compiler_that_does_not_run_is_named(tmp_path):
    script = tmp_path / "try.py"
    script.write_text(
        "import torch._inductor.config\n"
        "from salmonn.model.compilation import compiler_problem\n"
        "torch._inductor.config.cpp.cxx = ('/bin/false',)\n"
        "print(compiler_problem(torch.device('cpu')))\n"
    )
    result = run_command(str(script), TORCHINDUCTOR_CACHE_DIR=f"{tmp_path}/cache", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert "No working C++ compiler found" in result.stdout
    assert "/bin/false" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.fixture
def options(mini_world, tmp_path, monkeypatch):
    """Of a run of two steps."""
    monkeypatch.chdir(ROOT)
    return [
        *train_options(mini_world, tmp_path),
        "run.iters_per_epoch=2", "run.batch_size_train=2", "run.accum_grad_iters=1", "run.optims.max_epoch=1",
        "run.optims.warmup_steps=0", "run.log_freq=1", "run.overwrite=True",
    ]  # fmt: skip


def test_a_run_with_compiled_blocks_trains_validates_and_saves_the_same(options, monkeypatch):
    monkeypatch.setattr(runner, "compile_blocks", functools.partial(compile_blocks, backend="eager"))
    logs, states = [], []
    for option in ("run.compile=False", "run.compile=True"):
        run = runner.Runner(load_config("configs/mini/stage1.yaml", [*options, option]))
        assert run.run()
        logs.append(json_lines(run.folder / "log.jsonl"))
        states.append(checkpoint.read(run.folder / "checkpoint_best.pth")["model"])
    assert counters["stats"]["unique_graphs"] > 4
    for plain, ours in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert states[0].keys() == states[1].keys()
    # not to the bit: a norm that is compiled adds its gradient's parts in another order, and AdamW's first steps are
    # as large for small gradients as for large ones
    rate = load_config("configs/mini/stage1.yaml").run.optims.init_lr
    for name, values in states[0].items():
        torch.testing.assert_close(states[1][name], values, rtol=0, atol=0.05 * rate)


def test_a_dry_run_compiles_nothing(options, monkeypatch):
    monkeypatch.setattr(runner, "compile_blocks", lambda *_: pytest.fail("compiled"))
    assert "loss" in tiny_step(load_config("configs/mini/stage1.yaml", [*options, "run.compile=True"]))


def test_compiling_makes_no_other_run():
    assert changes_of_the_result(["run.compile: False -> True"]) == []


def test_a_compiler_that_works_has_no_problem():
    assert compiler_problem(CPU, "eager") == ""
