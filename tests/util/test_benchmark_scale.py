"""The prediction for many cards: arithmetic by hand, bytes as they are stored and sent, and ranks that really train."""

import json
import multiprocessing
import re
from argparse import Namespace
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.config.schema import RunConfig
from salmonn.model.sharding import shard_blocks
from salmonn.training.step import TrainingStep
from util.benchmark import text_line
from util.benchmarks import gloo_ranks, scale
from util.benchmarks.gloo_ranks import LARGE, SMALL, Job, Times, ranks_times, take_step
from util.benchmarks.memory import batch_of
from util.benchmarks.memory_parts import Batch, Case, shared_weights, trained_weights
from util.benchmarks.scale import Link, Parts, Traffic, all_gather, all_reduce, bench_scale, step_seconds
from util.benchmarks.sizes import build, make_batch

CPU, META = torch.device("cpu"), torch.device("meta")
PARTS = Parts(before=0.1, llm_forward=0.2, llm_backward=0.3, connector_backward=0.05, fixed=0.02)
LINK, NODE_LINK = Link(1e9, 1e-4), Link(2e8, 1e-3)
WHOLE = Traffic(lora=10_000_000, connector=100_000_000)
SHARED = WHOLE._replace(gathered=4e8, blocks=40)
BFLOAT16 = Case("cuda", 2, amp=True, gradients_stay=True)
either_traffic = pytest.mark.parametrize("traffic", [WHOLE, SHARED], ids=["whole", "in shares"])


@pytest.fixture(scope="module")
def published():
    return build("13b", META, "bfloat16")


@either_traffic
@pytest.mark.parametrize("accumulate", [1, 5])
def test_one_card_takes_its_step_and_nothing_else(traffic, accumulate):
    alone = 0.65 * accumulate + 0.02
    assert step_seconds(PARTS, traffic, 1, LINK, accumulate) == pytest.approx((alone, alone))


def test_rings_take_what_they_take_by_hand():
    assert all_gather(8e8, 4, LINK, messages=10) == pytest.approx(3 * (0.2 + 0.001))
    assert all_reduce(8e8, 4, LINK) == pytest.approx(2 * 3 / 4 * 0.8 + 2 * 3 * 1e-4)
    assert scale.link_of(8, LINK, NODE_LINK) == LINK
    assert scale.link_of(9, LINK, NODE_LINK) == NODE_LINK
    assert scale.link_of(64, Link(1e8, 1e-2), NODE_LINK) == Link(1e8, 1e-2)  # the ring has both kinds


@either_traffic
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_card_more_makes_no_card_faster(traffic, accumulate):
    before = step_seconds(PARTS, traffic, 1, LINK, accumulate)
    for cards in range(2, 100):
        link = scale.link_of(cards, LINK, NODE_LINK)
        after = step_seconds(PARTS, traffic, cards, link, accumulate)
        assert after[0] > after[1] > PARTS.seconds(accumulate)
        assert all(now >= then for now, then in zip(after, before, strict=True))
        faster = step_seconds(PARTS, traffic, cards, Link(2 * link.speed, link.latency / 2), accumulate)
        assert all(fast < slow for fast, slow in zip(faster, after, strict=True))
        before = after


@pytest.mark.parametrize("accumulate", [1, 3, 16])
def test_gradients_are_sent_once_a_step_and_shares_twice_a_micro_batch(accumulate):
    agree = (accumulate + 2) * all_reduce(0, 4, LINK)
    gradients = all_reduce(10_000_000, 4, LINK) + all_reduce(100_000_000, 4, LINK, messages=4)
    shown, _ = step_seconds(PARTS, WHOLE, 4, LINK, accumulate)
    assert shown - PARTS.seconds(accumulate) == pytest.approx(agree + gradients)
    shared, _ = step_seconds(PARTS, SHARED, 4, LINK, accumulate)
    assert shared - shown == pytest.approx(2 * accumulate * all_gather(4e8, 4, LINK, messages=40))


def test_the_cards_of_a_node_share_the_llm_whatever_lies_between_nodes():
    link = scale.link_of(64, LINK, NODE_LINK)
    whole, shared = (step_seconds(PARTS, traffic, 64, link, 1, LINK)[0] for traffic in (WHOLE, SHARED))
    assert shared - whole == pytest.approx(2 * all_gather(4e8, 8, LINK, messages=40))


def test_the_connector_s_gradients_come_too_late_to_hide():
    agree, alone = 3 * all_reduce(0, 4, LINK), PARTS.seconds(1)
    _, hidden = step_seconds(PARTS, Traffic(lora=100_000_000, connector=0), 4, LINK, 1)
    assert hidden == pytest.approx(alone + agree)
    _, hidden = step_seconds(PARTS, Traffic(lora=0, connector=100_000_000), 4, LINK, 1)
    late = all_reduce(100_000_000, 4, LINK, messages=4) - PARTS.connector_backward
    assert hidden == pytest.approx(alone + agree + late)


def test_shares_hide_behind_the_llm_alone():
    gathered = Traffic(lora=0, connector=0, gathered=2e8, blocks=10)
    gather = all_gather(2e8, 4, LINK, messages=10)
    assert PARTS.llm_forward > gather
    agree = 3 * all_reduce(0, 4, LINK)
    assert step_seconds(PARTS, gathered, 4, LINK, 1)[1] == pytest.approx(PARTS.seconds(1) + agree)
    slow = Link(1e8, 1e-4)  # now it takes longer than either pass
    gather = all_gather(2e8, 4, slow, messages=10)
    others = PARTS.before + PARTS.connector_backward + PARTS.fixed
    assert step_seconds(PARTS, gathered, 4, slow, 1)[1] == pytest.approx(others + 2 * gather + agree)


@pytest.mark.parametrize("more", [{}, {"lora": False}, {"lora_rank": 3}], ids=str)
def test_what_is_averaged_is_what_is_trained_in_float32(more):
    model = build("mini", META, "bfloat16", **more)
    traffic = scale.traffic_of(model, Case("cuda", 2), shard_llm=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert traffic.lora + traffic.connector == sum(p.nbytes for p in trained)
    assert (traffic.lora == 0) == (more.get("lora") is False)
    assert traffic.gathered == traffic.blocks == 0


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_what_is_in_shares_is_what_the_blocks_hold(quantization):
    model = build("mini", CPU, quantization=quantization)
    blocks = model.llama_model.get_base_model().get_decoder().layers
    frozen = sum(p.nbytes for p in blocks.parameters() if not p.requires_grad)
    assert shared_weights(build("mini", META), Case("cpu", 4, quantization)) == frozen


def test_each_card_holds_less_of_an_llm_in_shares():
    model, case, batch = build("mini", META), Case("cuda", 4, gradients_stay=True), Batch(2, 80_000, 100, 60)
    blocks = shared_weights(model, case)
    whole, *shares = (scale.card_bytes(model, case, batch, cards, True) for cards in (1, 4, 8, 64))
    assert whole == scale.card_bytes(model, case, batch, 64, False)
    at_once = 2 * blocks / 3  # of three blocks two are whole for a moment
    for cards, held in zip((4, 8, 64), shares, strict=True):
        assert whole - held == pytest.approx(blocks - blocks / min(cards, 8) - at_once)


def test_a_given_step_is_divided_as_its_operations_are(published):
    model, case, batch = published, Case("cuda", 2, amp=True), Batch(4, 480_000, 188, 240)
    parts = scale.counted_parts(model, case, batch, 0.6, fixed=0.1)
    assert sum(astuple(parts)) == pytest.approx(0.6)
    assert parts.fixed == 0.1
    assert parts.llm_backward == pytest.approx(parts.llm_forward, rel=0.05)  # its weights are frozen
    assert parts.connector_backward < 0.02 * parts.llm_backward
    again = scale.counted_parts(model, Case("cuda", 2, amp=True, checkpointing=True), batch, 0.6, fixed=0.1)
    assert again.llm_backward / again.llm_forward == pytest.approx(1 + parts.llm_backward / parts.llm_forward)


def arguments(**more: Any) -> Namespace:
    settings = {
        "cfg_path": None, "options": [], "size": "mini", "device": "cpu", "dtype": "float32", "quant": "none",
        "batch": None, "gpu_gb": 32.0, "answer_tokens": 60, "recompute": False, "repeats": 1, "fresh_memory": False,
        "cards": scale.CARDS, "step_seconds": None, "fixed_seconds": 0.0, "accumulate": None, "shard_llm": False,
        "link": scale.LINK, "node_link": scale.NODE_LINK,
    }  # fmt: skip
    return Namespace(**settings | more)


def table(rows: list[dict]) -> dict[str, dict[str, float]]:
    return {row["what"].split(",")[0].strip(): row["numbers"] for row in rows if "numbers" in row}


def test_a_configuration_s_batch_and_accumulation_are_taken():
    args = arguments(cfg_path=Path("configs/stage1.yaml"), step_seconds=0.5, cards=[1, 4], gpu_gb=20.0)
    rows = list(bench_scale(args))
    assert "4 clips a card, 16 micro-batches a step" in rows[0]["what"]
    assert table(rows)["1 card"]["samples/s"] == pytest.approx(8)
    assert any("too big for 20 GB" in row["what"] for row in rows)
    assert not any("MEASURED" in row["what"] for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    assert all(text_line(row).startswith(row["what"]) for row in rows)


def test_a_model_of_one_encoder_without_lora_sends_its_connector_s_gradients_alone():
    options = ["model.beats_path=", "model.lora=False"]
    llama = Path("configs/lightweight/llama3.2-3b.yaml")
    rows = list(bench_scale(arguments(cfg_path=llama, options=options, step_seconds=0.5, cards=[8])))
    sizes = {row["what"].strip(): row["value"] for row in rows if row.get("unit") == "MB"}
    assert sizes["gradients of LoRA, by count"] == 0
    sent = 2 * 7 / 8 * sizes["gradients of the connector, by count"]
    assert table(rows)["8 cards"]["MB sent"] == pytest.approx(sent)


def test_shares_cost_samples_and_save_memory(monkeypatch, published):
    monkeypatch.setattr(scale, "subject", lambda _: (published, BFLOAT16, "13b"))
    of_all = {"step_seconds": 0.574, "batch": 16, "cards": [1, 8]}
    whole, shared = (table(list(bench_scale(arguments(**of_all, shard_llm=shard)))) for shard in (False, True))
    assert whole["1 card"] == shared["1 card"]
    assert shared["8 cards"]["GB"] < whole["8 cards"]["GB"] - 20
    assert shared["8 cards"]["samples/s"] < whole["8 cards"]["samples/s"]


def test_a_step_that_is_measured_here_is_held_against_two_and_four_ranks(monkeypatch):
    asked = []

    def times(ranks, job, _):
        asked.append((ranks, job.clips, job.accumulate, job.shard_llm))
        return Times(apart=0.5, together=0.6, small=1e-4, large=0.02, gradients=0.01)

    counted, divided = scale.counted_parts, []
    monkeypatch.setattr(scale, "counted_parts", lambda *of: divided.append(of[2]) or counted(*of))
    monkeypatch.setattr(scale, "ranks_times", times)
    monkeypatch.setattr(scale, "in_processes", lambda function, each, _: [function(*values) for values in each])
    rows = list(bench_scale(arguments(batch=1, accumulate=2, shard_llm=True)))
    assert asked == [(2, 1, 2, True), (4, 1, 2, True)]
    model = build("mini", META)
    assert divided == [batch_of(model, make_batch(model, 1))]  # as what was measured, not as the longest
    by_name = {row["what"].strip(): row["value"] for row in rows if "value" in row}
    step = next(value for name, value in by_name.items() if "MEASURED" in name)
    parts = [by_name[label] for label in scale.LABELS.values()]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(step)
    assert table(rows)["1 card"]["samples/s"] == pytest.approx(2000 / (2 * step - parts[-1]))
    assert len([row for row in rows if "ratio" in row]) == 2 * 5
    assert json.loads(json.dumps(rows)) == rows
    assert all(text_line(row).startswith(row["what"]) for row in rows)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"size": "13b"}, "give --step-seconds"),
        ({"cfg_path": Path("configs/stage1.yaml")}, "give --step-seconds"),
        ({"step_seconds": 0.5, "fixed_seconds": 0.5}, "a part of --step-seconds"),
        ({"fixed_seconds": 0.1}, "--fixed-seconds is measured here"),
        ({"step_seconds": 0.5, "shard_llm": True, "quant": "8bit"}, "8bit cannot be in shares"),
        ({"step_seconds": 0.5, "shard_llm": True, "cfg_path": Path("configs/stage1.yaml")}, "8bit cannot be in shares"),
    ],
)
def test_what_cannot_be_known_is_told(more, told):
    with pytest.raises(UserError, match=told):
        list(bench_scale(arguments(**more)))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_take_what_is_predicted_are_found_to(ranks):
    job = Job("mini", "float32", "none", 4, 3, False, False, 1)
    of_size = [all_reduce(size, ranks, LINK) for size in (SMALL, LARGE, 110_000_000)]
    slowed = PARTS.slower(1.5)
    together, _ = step_seconds(slowed, WHOLE, ranks, LINK, 3)
    rows = list(scale.check_rows(ranks, 2, Times(slowed.seconds(3), together, *of_size), job, PARTS, WHOLE))
    compared = {row["what"].strip(): row for row in rows if "ratio" in row}
    assert compared["a step"]["ratio"] == pytest.approx(1, rel=0.01)
    assert compared["all-reduce of the gradients"]["ratio"] == pytest.approx(1, rel=0.05)
    assert compared["a step, at best"]["ratio"] < compared["a step"]["ratio"]
    by_count = compared["a step, slower by the number of cores"]
    assert (by_count["predicted"] > compared["a step"]["predicted"]) == (ranks == 4)
    assert all(text_line(row).startswith(row["what"]) for row in rows)


class Sent(TorchDispatchMode):
    """Counts the bytes of collectives, by kind and type of number; not of DDP's, which has a hook for that."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and isinstance(args[0], torch.Tensor | list):
            for tensor in args[0] if isinstance(args[0], list) else [args[0]]:
                kind = f"{func.overloadpacket.__name__} {tensor.dtype}"
                self.bytes[kind] += tensor.nbytes
                self.calls[kind] += 1
        return func(*args, **(kwargs or {}))


def count_what_is_sent(accumulate: int, recompute: bool, shard_llm: bool) -> tuple[list[int], Counter, Counter]:
    """Bytes of DDP's buckets, bytes and calls of the rest, in a step of one of four ranks that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    model = build("mini", CPU, gradient_checkpointing=recompute).train()
    if shard_llm:
        shard_blocks(model._causal_lm(), CPU)
    wrapped = distributed.wrap(model, CPU, is_sharded=shard_llm)
    buckets = []

    def average(_, bucket):
        buckets.append(bucket.buffer().nbytes)
        (averaged := torch.futures.Future()).set_result(bucket.buffer())
        return averaged

    wrapped.register_comm_hook(None, average)
    run = OmegaConf.structured(RunConfig(amp=False, batch_size_train=1, accum_grad_iters=accumulate))
    step, samples = TrainingStep(model, run, CPU), make_batch(model, 1)
    with Sent() as sent:
        take_step(step, wrapped, run, samples)
    return buckets, sent.bytes, sent.calls


@pytest.mark.parametrize(
    ("accumulate", "recompute", "shard_llm"), [(1, False, False), (3, False, True), (2, True, True)]
)
def test_a_step_sends_what_is_counted(accumulate, recompute, shard_llm):
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        buckets, sent, calls = process.submit(count_what_is_sent, accumulate, recompute, shard_llm).result()
    model = build("mini", META)
    gathered = shared_weights(model, Case("cpu", 4)) if shard_llm else 0
    assert sum(buckets) == trained_weights(model)
    assert sent.pop("_allgather_base_ torch.float32", 0) == pytest.approx(2 * accumulate * gathered, rel=0.01)
    assert sum(calls[kind] for kind in sent) == accumulate + scale.AGREEMENTS
    assert sum(sent.values()) < 100


def test_two_ranks_train_and_tell_what_they_took():
    times = ranks_times(2, Job("mini", "float32", "none", 1, 2, False, True, 1))
    assert all(seconds > 0 for seconds in times)


def test_what_a_rank_took_is_told_in_its_place(monkeypatch, tmp_path):
    """Not by the times themselves: on a machine that has other things to do, little may take longer than much."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # for what the rank sets to be gone afterwards
    for name in ("init", "shutdown"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    monkeypatch.setattr(distributed, "wrap", lambda model, *_, **__: [model])
    monkeypatch.setattr(gloo_ranks, "_step_seconds", lambda _, wrapped, *__: 2.0 if isinstance(wrapped, list) else 1.0)
    monkeypatch.setattr(gloo_ranks, "_all_reduce_seconds", float)
    times = gloo_ranks._rank_times(0, 1, str(tmp_path), Job("mini", "float32", "none", 1, 1, False, False, 1))
    assert times == Times(1.0, 2.0, SMALL, LARGE, trained_weights(build("mini", META)))


def test_figures_in_performance_md_are_what_is_predicted(monkeypatch, published):
    monkeypatch.setattr(scale, "subject", lambda _: (published, BFLOAT16, "13b"))
    text = Path("docs/performance.md").read_text(encoding="utf-8")
    section = text[text.index("## Many cards, predicted") :].partition("\n## ")[0]
    row = r"^\| (NVLink|PCIe) \| (whole|in shares) \| (\d+) \| (\S+) to (\S+) \| (\S+) to (\S+) % \| (\S+) \|$"
    rows = re.findall(row, section, re.M)
    assert len(rows) == 8
    links = {"NVLink": ([300, 10], [25, 30]), "PCIe": (scale.LINK, scale.NODE_LINK)}
    for link, llm, cards, *shown in rows:
        of_row = {"cards": [int(cards)], "link": links[link][0], "node_link": links[link][1]}
        args = arguments(step_seconds=0.574, batch=16, shard_llm=llm == "in shares", **of_row)
        (values,) = table(list(bench_scale(args))).values()
        digits = {"samples/s": 0, "samples/s at best": 0, "% of n": 1, "% of n at best": 1, "GB": 1}
        assert shown == [f"{values[name]:.{n}f}" for name, n in digits.items()], (link, llm, cards)
