"""Micro-batches by tokens (`run.batch_tokens`) against those by clips, on the data of a run."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import load_config
from salmonn.training.runner import Runner
from salmonn.training.token_batches import Budget, input_lengths, micro_batches
from util.benchmarks.measure import in_turns, row, spent

_STEPS = 4  # of the run, on which all budgets are tried


def bench_batches(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: seconds of the same steps of a run cut by each budget, against its `run.batch_size_train`; padding.

    Forward and backward of what `--cfg-path` trains first, without the optimiser. Raises UserError without such a run.
    """
    if not args.cfg_path:
        raise UserError("batches: --cfg-path FILE names the run whose steps are to be cut")
    with tempfile.TemporaryDirectory(prefix="salmonn-batches-") as folder:
        alone = [f"run.output_dir={folder}", "run.resume=none", "run.batch_tokens=", "run.use_distributed=False"]
        runner = Runner(load_config(str(args.cfg_path), [*args.options, *alone]))
        try:
            runner.prepare()
            yield from _rows(runner, args.budgets, args.repeats)
        finally:
            runner.close()
            distributed.shutdown()


def _rows(runner: Runner, budgets: Sequence[int], repeats: int) -> Iterator[dict]:
    runner.model.train()
    groups = list(islice(runner.plan.steps(0), _STEPS))
    steps = [[next(runner.batches) for _ in group] for group in groups]
    ways = [partial(_compute, runner, steps, budget) for budget in (0, *budgets)]
    plain, *ours = in_turns(ways, repeats, lambda: spent(runner.device))
    unit = "CPU s" if runner.device.type == "cpu" else "s"
    n = sum(len(samples["id"]) for step in steps for samples in step)
    yield {"what": f"{len(steps)} steps of {n / len(steps):g} clips, micro-batches of {runner.plan.batch_size}"}
    yield {"what": "   padding", "value": 100 * _padding(runner, steps, 0), "unit": "%"}
    for budget, seconds in zip(budgets, ours, strict=True):
        yield row(f"by tokens, at most {budget}", (seconds, plain)) | {"unit": unit}
        yield {"what": "   padding", "value": 100 * _padding(runner, steps, budget), "unit": "%"}
        n_batches = sum(map(len, _cut(runner, steps, budget))) / len(steps)
        yield {"what": "   micro-batches of a step", "value": n_batches, "unit": f"instead of {len(groups[0])}"}


def _cut(runner: Runner, steps: Sequence[Sequence[Samples]], budget: int) -> list[Sequence[Samples]]:
    return [micro_batches(runner.model, step, Budget(budget)) if budget else step for step in steps]


def _compute(runner: Runner, steps: Sequence[Sequence[Samples]], budget: int) -> None:
    """Forward and backward of all steps, each cut as the runner does."""
    for step in _cut(runner, steps, budget):
        for samples in step:
            with runner.autocast():
                result = runner.ddp_model(samples, verbose=True)
            runner.step.backward(result, samples["id"], len(step))
        runner.step.abandon()


def _padding(runner: Runner, steps: Sequence[Sequence[Samples]], budget: int) -> float:
    """Share of the LLM's positions that hold none of a clip's tokens."""
    used = positions = 0
    for step in _cut(runner, steps, budget):
        for samples in step:
            prompts = samples.get("prompts") or runner.model.choose_prompts(samples)
            n_samples = (~samples["padding_mask"]).sum(dim=1).tolist()
            lengths = input_lengths(runner.model, n_samples, prompts, samples["text"])
            used, positions = used + sum(lengths), positions + len(lengths) * max(lengths)
    return 1 - used / positions
