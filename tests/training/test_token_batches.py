"""Micro-batches by tokens: none over the budget, the same step, and runs that go on bit for bit."""

import json
import random
from argparse import Namespace
from dataclasses import asdict
from functools import partial

import pytest
import torch

from salmonn.common import distributed
from salmonn.common.device import seed_step
from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.config.loading import load_config
from salmonn.data.collate import collate
from salmonn.model import checkpoint
from salmonn.model.salmonn import SALMONN
from salmonn.training import runner as runners
from salmonn.training import token_batches
from salmonn.training import token_budget as budgets
from salmonn.training.progress import Progress
from salmonn.training.run_state import RunState
from salmonn.training.token_batches import Budget, cut, input_lengths, micro_batches
from salmonn.training.token_budget import input_tokens, probe_clips, token_budget
from tests.fixtures.commands import run_command
from tests.fixtures.paths import ROOT
from util.benchmarks.token_batches import bench_batches

STEP = ["run.batch_size_train=4", "run.accum_grad_iters=2", "run.iters_per_epoch=4"]


@pytest.fixture
def seen_widths(monkeypatch):
    """[rows, tokens] of each micro-batch that a model has taken since."""
    seen, embed = [], SALMONN._embed

    def seeing(self, llm_inputs, embeds):
        seen.append(tuple(llm_inputs.token_ids.shape))
        return embed(self, llm_inputs, embeds)

    monkeypatch.setattr(SALMONN, "_embed", seeing)
    return seen


def lengths_of(model, samples) -> list[int]:
    n_samples = (~samples["padding_mask"]).sum(dim=1).tolist()
    return input_lengths(model, n_samples, samples["prompts"], samples["text"])


@pytest.mark.parametrize("seed", range(20))
def test_each_clip_is_in_one_stretch_and_none_has_more_than_the_budget(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([rng.randrange(1, 40), rng.randrange(1, 400)]) for _ in range(rng.randrange(1, 60))]
    budget, at_least = Budget(rng.randrange(20, 900), rng.choice([1, 5, 99])), rng.randrange(len(lengths)) + 1
    stretches = cut(lengths, budget, at_least)
    assert sorted(place for stretch in stretches for place in stretch) == list(range(len(lengths)))
    for stretch in stretches:
        assert len(stretch) == 1 or len(stretch) * max(lengths[place] for place in stretch) <= budget.tokens
        assert len(stretch) <= budget.clips
    fewest = len(cut(lengths, budget))
    assert len(stretches) == max(fewest, at_least)
    longest_first = [lengths[place] for stretch in stretches for place in stretch]
    assert longest_first == sorted(lengths, reverse=True)


def test_no_more_micro_batches_than_the_budget_asks_for():
    assert cut([10] * 8, Budget(40)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut([10] * 8, Budget(40, clips=3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert cut([100, 10, 10, 10], Budget(40)) == [[0], [1, 2, 3]]


@pytest.mark.parametrize("options", [[], ["model.only_filled_windows=True"], ["model.window_level_Qformer=False"]])
def test_tokens_are_counted_before_a_clip_is_heard(make_runner, seen_widths, options):
    runner = make_runner(*STEP, *options)
    samples = next(runner.batches)
    samples["prompts"] = runner.model.choose_prompts(samples)
    lengths = lengths_of(runner.model, samples)
    with torch.no_grad():
        for i in range(len(lengths)):
            alone = {key: samples[key][i : i + 1] for key in ("raw_wav", "padding_mask", "text", "task", "prompts")}
            runner.model(alone)
    assert seen_widths == [(1, length) for length in lengths]
    runner.close()


@pytest.mark.parametrize("options", [[], ["model.only_filled_windows=True"]])
def test_no_micro_batch_is_over_its_budget_and_the_steps_are_the_same(make_runner, seen_widths, options):
    gradients, cuts = {}, {}
    for budget in ("", "150", "400"):
        runner = make_runner(*STEP, "run.iters_per_epoch=2", *options, f"run.batch_tokens={budget}")
        seen_widths.clear()
        runner.train_epoch(0)  # one step
        state = runner.step.optimizer.state.values()
        gradients[budget] = torch.cat([values["exp_avg"].flatten() for values in state]).double()
        cuts[budget] = list(seen_widths)
        runner.close()
    assert [rows for rows, _ in cuts[""]] == [4, 4]
    for budget in (150, 400):
        assert sum(rows for rows, _ in cuts[str(budget)]) == 8
        assert all(rows * width <= budget for rows, width in cuts[str(budget)])
        difference = (gradients[str(budget)] - gradients[""]).norm() / gradients[""].norm()
        assert difference < 1e-5
    assert len(cuts["400"]) < len(cuts["150"])


def test_seconds_of_audio_limit_the_clips(make_runner, seen_widths):
    runner = make_runner(*STEP)
    heard = runner.model.max_seconds
    runner.close()
    runner = make_runner(*STEP, "run.batch_tokens=100000", f"run.batch_seconds={3.5 * heard}")
    seen_widths.clear()
    runner.train_epoch(0)
    assert [rows for rows, _ in seen_widths] == [3, 3, 2] * 2
    runner.close()


def test_a_clip_longer_than_the_budget_comes_alone(make_runner, seen_widths):
    runner = make_runner(*STEP, "run.batch_tokens=1")
    seen_widths.clear()
    runner.train_epoch(0)
    assert [rows for rows, _ in seen_widths] == [1] * 16
    runner.close()


@pytest.mark.parametrize("budget", ["", "1"])
def test_no_two_micro_batches_draw_the_same_random_numbers(make_runner, monkeypatch, budget):
    """Each of those loaded has the seed of its number; those of which a step of two has eight have others."""
    runner, seeds, embed = make_runner(*STEP, f"run.batch_tokens={budget}"), [], SALMONN._embed

    def seeing(self, *inputs):
        seeds.append(torch.initial_seed())
        return embed(self, *inputs)

    monkeypatch.setattr(SALMONN, "_embed", seeing)
    runner.train_epoch(0)
    runner.close()
    assert len(set(seeds)) == len(seeds) == (16 if budget else 4)
    for number, seed in enumerate(seeds[::8] if budget else seeds):
        seed_step(42, 2 * number if budget else number, 0)
        assert torch.initial_seed() == seed


def test_ranks_take_equally_many_where_one_has_fewer_clips_than_another_needs(make_runner, monkeypatch):
    runner, told = make_runner(*STEP), []
    whole = [next(runner.batches) for _ in range(2)]
    part = [collate(token_batches._items(samples)[:n]) for n, samples in enumerate(whole, 1)]
    monkeypatch.setattr(distributed, "gather_objects", lambda value: told.append(value) or [value])
    for clips in (whole, part):
        micro_batches(runner.model, clips, Budget(1))
    monkeypatch.setattr(distributed, "gather_objects", lambda _: told)
    batches = [micro_batches(runner.model, clips, Budget(1)) for clips in (whole, part)]
    runner.close()
    assert [len(rank) for rank in batches] == [8, 8]
    assert [len(samples["id"]) for samples in batches[1]] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert all(len(samples["text"]) == 1 for samples in batches[1])


def test_what_a_rank_without_clips_computes_along_counts_for_nothing(make_runner, monkeypatch, seen_widths):
    gradients, results = [], []
    for others in (0, 12):
        runner = make_runner(*STEP, "run.iters_per_epoch=2", "run.batch_tokens=1")
        step, finish = runner.step, runner.step.finish
        monkeypatch.setattr(step, "finish", lambda size, finish=finish: results.append(finish(size)) or results[-1])
        seen_widths.clear()
        ranks = Namespace(gather_objects=lambda value, others=others: [value, others])
        monkeypatch.setattr(token_batches, "distributed", ranks)
        runner.train_epoch(0)
        assert len(seen_widths) == max(8, others)
        gradients.append([values["exp_avg"] for values in step.optimizer.state.values()])
        runner.close()
    assert results[0] == results[1]
    assert results[0].samples == 8
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_clips_are_dealt_one_by_one_by_length_also_where_a_step_is_loaded_at_once(make_runner, monkeypatch):
    asked, load = {}, runners.train_loader
    monkeypatch.setattr(runners, "train_loader", lambda *what, **how: asked.update(how) or load(*what, **how))
    make_runner("run.accum_grad_iters=1", "run.batch_tokens=150").close()
    assert asked["dealt"] == next(asked["steps"]) == 1
    make_runner("run.accum_grad_iters=1").close()
    assert asked["dealt"] is asked["steps"] is None


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from salmonn.common import distributed
from salmonn.config.loading import load_config
from salmonn.training.runner import Runner
from salmonn.data.collate import collate
from salmonn.training import runner, token_batches
from salmonn.training.token_batches import cut, micro_batches
import json, pathlib
needed, taken = [], []
def counted(lengths, budget, at_least=1):
    stretches = cut(lengths, budget._replace(tokens=budget.tokens // (1 + distributed.rank())), at_least)
    needed.append(len(stretches))
    return stretches
token_batches.cut = counted
def told(*step):
    batches = micro_batches(*step)
    taken.append(len(batches))
    return batches
runner.micro_batches = told
next_samples = Runner._next_samples
def with_unreadable_ones(runner):
    samples = next_samples(runner)
    is_short = runner.progress.iteration > 0 and distributed.rank() == 1
    return collate(token_batches._items(samples)[:1]) if samples and is_short else samples
Runner._next_samples = with_unreadable_ones
finish_step = Runner._finish_step
def finish_and_stop(runner, *step):
    result = finish_step(runner, *step)
    runner.stop_request.name = sys.argv[1]
    return result
Runner._finish_step = finish_and_stop
Runner(load_config("configs/mini/stage1.yaml", sys.argv[2:])).run()
pathlib.Path({folder!r}, f"rank{{distributed.rank()}}.json").write_text(json.dumps([needed[::2], taken]))
distributed.shutdown()
"""


def test_two_ranks_take_equally_many_and_go_on_bit_for_bit(plain_options, tmp_path):
    """Ranks whose clips need a different number of micro-batches stay in step, also where one has not as many clips.

    A stopped run ends as one in one go.
    """
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), folder=str(tmp_path)))
    options = [*plain_options, *STEP, "run.batch_tokens=80"]
    for name, stop in (("parts", "a signal"), ("parts", ""), ("one_go", "")):
        result = run_command(str(script), stop, *options, f"run.exp_name={name}", ranks=2)
        assert result.returncode == 0, result.stderr
        steps = 1 if stop else 2
        assert checkpoint.read(tmp_path / name / "checkpoint_last.pth")["progress"]["samples"] == 16 * steps
    needed, taken = zip(*(json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)), strict=True)
    assert taken[0] == taken[1]
    assert needed[0][0] < needed[1][0] == taken[0][0]
    assert needed[0][1] == taken[0][1] > 2 >= needed[1][1]
    parts, one_go = (checkpoint.read(tmp_path / name / "checkpoint_last.pth")["model"] for name in ("parts", "one_go"))
    assert all(torch.equal(parts[key], one_go[key]) for key in one_go)


# ---- auto


@pytest.fixture
def on_gpu(monkeypatch):
    """Says what is there, and what clips of these tokens need; returns what `token_budget` measures there."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 12 * GB)

    def measured(runner, there=32 * GB, peak=None, progress=None, changes=(), name="made up"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (there - 12 * GB, 80 * GB))
        runner.run_config.batch_tokens = "auto"
        if peak is not None:
            lengths = partial(lengths_of, runner.model)
            monkeypatch.setattr(budgets, "_peak", lambda _m, _r, _d, clips: peak(len(clips["text"]), lengths(clips)[0]))
        progress = Progress() if progress is None else progress
        return token_budget(runner.model, runner.run_config, runner.device, progress, changes)

    return measured


@pytest.mark.parametrize(
    "a_clip",
    [lambda n: 10**7 * n, lambda n: 10**9 + 10**7 * n, lambda n: 10**5 * n**2],
    ids=["of tokens", "of audio, too", "of eager attention"],
)
def test_auto_fills_what_the_fullest_gpu_has_left_and_nothing_within_it_needs_more(make_runner, on_gpu, a_clip):
    runner = make_runner(*STEP)
    later = 12 * sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    budget = on_gpu(runner, peak=lambda n, tokens: 10 * GB + n * a_clip(tokens))
    long = input_tokens(runner.model)
    free = 0.9 * 32 * GB - later - 10 * GB
    filled = [min(budget.clips, budget.tokens // n) * a_clip(n) / free for n in range(1, long + 1)]
    assert 0.85 < max(filled) <= 1
    assert on_gpu(runner, there=11.2 * GB, peak=lambda n, _: (10 + n) * GB) == (long, 1)
    with pytest.raises(UserError, match="not even the longest clip fits"):
        on_gpu(runner, there=10.9 * GB, peak=lambda n, _: (10 + n) * GB)
    runner.close()


@pytest.mark.parametrize(("fit", "clips"), [(0, None), (1, 1), (2, 1), (3, 17)])
def test_a_gpu_that_holds_a_clip_or_two_takes_one_at_a_time(make_runner, on_gpu, monkeypatch, fit, clips):
    runner, seen = make_runner(*STEP), []
    trained = runner.model.speech_query_tokens

    def forward(_, samples):
        seen.append(len(samples["text"]))
        if seen[-1] > fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"loss": trained.sum()}

    monkeypatch.setattr(SALMONN, "forward", forward)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (10 + seen[-1]) * GB)
    if clips:
        assert on_gpu(runner, there=31 * GB).clips == clips
    else:
        with pytest.raises(UserError, match="not even the longest clip fits"):
            on_gpu(runner)
    assert trained.grad is None
    runner.close()


def test_the_clips_that_are_measured_are_encoded_and_not_kept(make_runner, on_gpu, monkeypatch, tmp_path):
    runner = make_runner(*STEP, f"run.encoder_cache={tmp_path}/cache")
    cache, encoded, encode = runner.model.encoder_cache, [], SALMONN.run_encoders
    monkeypatch.setattr(
        SALMONN, "run_encoders", lambda self, wav, *more: encoded.append(len(wav)) or encode(self, wav, *more)
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (10 + encoded[-1]) * GB)
    on_gpu(runner)
    assert encoded == [1, 1, 3, 3]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert runner.model.encoder_cache is cache is not None
    runner.close()


def test_what_was_measured_is_taken_again_on_the_same_kind_of_gpu(make_runner, on_gpu):
    runner, progress = make_runner(*STEP), Progress()
    first = on_gpu(runner, peak=lambda n, _: (10 + n) * GB, progress=progress)
    again = partial(on_gpu, runner, peak=lambda n, _: (10 + 2 * n) * GB)
    kept = [Progress.from_saved(asdict(progress)) for _ in range(3)]
    assert again(progress=kept[0], changes=["run.num_workers: 2 -> 1"]) == first
    other = again(progress=kept[1], name="another")
    assert other.clips < first.clips
    assert again(progress=kept[2], changes=["model.gradient_checkpointing: True -> False"]) == other
    assert kept[2].measured == {**progress.measured, **other._asdict()}
    runner.close()


def test_a_run_that_goes_on_is_measured_before_its_moments_take_memory(make_runner, monkeypatch):
    told = []

    def budget(_model, _run, _device, progress, changes):
        told.append((dict(progress.measured), [*changes]))
        progress.measured = {"tokens": 5, "clips": 6}

    restore = RunState.restore
    monkeypatch.setattr(runners, "token_budget", budget)
    monkeypatch.setattr(RunState, "restore", lambda *what: told.append("restored") or restore(*what))
    runner = make_runner(*STEP)
    runner.train_epoch(0)
    runner.state.save(0)
    runner.close()
    make_runner(*STEP, "run.overwrite=False", "run.log_freq=2").close()
    changes = ["run.log_freq: 1 -> 2", "run.overwrite: True -> False"]
    assert told == [({}, []), ({"tokens": 5, "clips": 6}, changes), "restored"]


def test_the_clips_that_are_measured_are_the_longest_and_the_shortest(make_runner):
    runner = make_runner(*STEP)
    clips, short = probe_clips(runner.model, 2), probe_clips(runner.model, 1, of=min)
    samples = next(runner.batches)
    samples["prompts"] = runner.model.choose_prompts(samples)
    longest = lengths_of(runner.model, clips)
    assert longest[0] == longest[1] >= max(lengths_of(runner.model, samples))
    assert lengths_of(runner.model, short)[0] <= min(lengths_of(runner.model, samples))
    assert torch.isfinite(runner.model(clips)["loss"])
    runner.close()


# ---- what does not go together


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["run.batch_tokens=many"], "choose a number of tokens, auto, or nothing"),
        (["run.batch_tokens=0"], "choose a number"),
        (["run.batch_tokens=-5"], "choose a number"),
        (["run.batch_tokens=500", "run.loss_average=batch"], "depends on how a step is cut"),
        (["run.batch_tokens=500", "run.objective=ctc"], "the LLM is not run"),
        (["run.batch_tokens=500", "run.ctc_weight=0.3"], "CTC's mean and negatives depend on how a step is cut"),
        (["run.batch_tokens=auto", "run.device=cpu"], "name a number"),
        (["run.batch_tokens=auto", "run.shard_llm=True"], "leaves the others waiting; name a number"),
        (["run.batch_tokens=500", "run.batch_seconds=-1"], "run.batch_seconds"),
    ],
)
def test_budgets_that_cannot_be_are_refused(monkeypatch, options, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=said):
        load_config("configs/stage1.yaml", options)


# ---- the benchmark


def test_the_benchmark_takes_the_same_steps_cut_in_both_ways(plain_options, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = [*plain_options, *STEP, "run.num_workers=0"]
    args = Namespace(cfg_path="configs/mini/stage1.yaml", options=options, budgets=[10, 400], repeats=1)
    first, plain_padding, *rows = bench_batches(args)
    assert first["what"] == "2 steps of 8 clips, micro-batches of 4"
    (alone, alone_padding, n_alone), (timed, padding, n) = rows[:3], rows[3:]
    assert alone_padding["value"] == 0
    assert n_alone["value"] == 8
    assert 0 < padding["value"] < 50
    assert 0 < plain_padding["value"] < 50
    assert n["value"] < 8
    assert all(row["ours"] > 0 and row["plain"] == alone["plain"] for row in (alone, timed))
    with pytest.raises(UserError, match="--cfg-path FILE"):
        next(bench_batches(Namespace(cfg_path=None)))
