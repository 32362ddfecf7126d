"""Samples/s and memory on many cards: predicted from a step on one, the bytes it shares, and the links between cards.

A step on n cards is a step on one plus what is sent. Trained gradients are averaged once a step, by DDP, with the last
micro-batch; an LLM in shares is gathered block by block twice a micro-batch, for the forward and the backward pass. How
much of that hides behind the arithmetic depends on the card, so there are two bounds: nothing of it, and all that can.
All cannot: a gradient must exist before it is sent, and the connector's, most of the bytes, come last of all.
"""

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.config.loading import load_config
from salmonn.config.schema import RunConfig
from salmonn.model.parameter_counts import trainable_parameters
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import sample_flops
from util.benchmarks.gloo_ranks import LARGE, SMALL, Job, Times, in_processes, ranks_times
from util.benchmarks.memory import batch_of, longest, predicted, subject
from util.benchmarks.memory_parts import FLOAT, Batch, Case, patches_of, shared_weights
from util.benchmarks.sizes import SIZES, make_batch
from util.benchmarks.step_split import split_step
from util.benchmarks.training import BATCH, Setup, parts_of

CARDS = [1, 4, 8, 64]
NODE = 8  # cards of a node
LINK, NODE_LINK = [20.0, 20.0], [10.0, 50.0]  # GB/s, µs: PCIe 4.0 and a network of 100 Gbit/s or so, not measured
BUCKET = 25 << 20  # bytes of gradients that DDP sends at a time
AGREEMENTS = 2  # small all-reduces of a step besides one a micro-batch: the tokens of all ranks, whether to save
WHOLE_BLOCKS = 2  # of an LLM in shares: the one that computes and the one that is fetched
CHECKED = (2, 4)  # gloo ranks


@dataclass(frozen=True)
class Parts:
    """Seconds on one card, of a micro-batch but for `fixed`."""

    before: float  # features, encoders, connector
    llm_forward: float
    llm_backward: float
    connector_backward: float
    fixed: float  # once a step: the optimiser

    def seconds(self, accumulate: int) -> float:
        """Of a step of so many micro-batches."""
        return accumulate * (self.before + self.llm_forward + self.llm_backward + self.connector_backward) + self.fixed

    def slower(self, factor: float) -> "Parts":
        """The same where everything takes that many times as long."""
        return Parts(*(factor * seconds for seconds in vars(self).values()))


class Traffic(NamedTuple):
    """Bytes that the cards have to share."""

    lora: int  # gradients that are ready in the LLM's backward pass
    connector: int  # those that are ready after it
    gathered: float = 0  # frozen weights of the blocks, of an LLM in shares
    blocks: int = 0  # into which they are divided


class Link(NamedTuple):
    """From a card to the next."""

    speed: float  # bytes/s
    latency: float  # s


def bench_scale(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: what is known and assumed, samples/s and memory by cards, and where it was measured the check by gloo.

    Raises UserError for a step that can neither be measured here nor is given, and an LLM that cannot be in shares.
    """
    model, case, name = subject(args)
    case = replace(case, checkpointing=case.checkpointing or args.recompute)
    run = load_config(args.cfg_path, args.options).run if args.cfg_path else RunConfig(batch_size_train=BATCH)
    clips, accumulate = args.batch or run.batch_size_train, args.accumulate or run.accum_grad_iters
    shard_llm = args.shard_llm or run.shard_llm
    if shard_llm and case.quantization not in ("none", "int8"):
        raise UserError(f"scale: an LLM in {case.quantization} cannot be in shares: choose none or int8 for it")
    batch = longest(model, clips, args.answer_tokens or model.config.max_txt_len)
    parts, source = _parts(args, model, case, batch)
    traffic = traffic_of(model, case, shard_llm)

    together = f", {accumulate} micro-batches a step" if accumulate > 1 else ""
    shared = ", LLM in shares" if shard_llm else ""
    yield {"what": f"scale {name}, {clips} clips a card{together}{shared}"}
    yield {"what": f"   a step on one card, {source}", "value": 1e3 * parts.seconds(1), "unit": "ms"}
    for part, seconds in vars(parts).items():
        yield {"what": f"      {LABELS[part]}", "value": 1e3 * seconds, "unit": "ms"}
    yield {"what": "   gradients of LoRA, by count", "value": traffic.lora / 1e6, "unit": "MB"}
    yield {"what": "   gradients of the connector, by count", "value": traffic.connector / 1e6, "unit": "MB"}
    if shard_llm:
        yield {"what": "   gathered twice a micro-batch, by count", "value": traffic.gathered / 1e6, "unit": "MB"}
    within, between = (Link(1e9 * speed, 1e-6 * latency) for speed, latency in (args.link, args.node_link))
    yield from _assumptions(args, batch)
    yield {"what": "   PREDICTED", "columns": COLUMNS}
    for cards in args.cards:
        link = link_of(cards, within, between)
        size = card_bytes(model, case, batch, cards, shard_llm)
        too_big = f", too big for {args.gpu_gb:g} GB" if size > args.gpu_gb * GB else ""
        values = _values(parts, traffic, cards, link, accumulate, clips, within)
        yield {"what": f"      {cards} card{'s' * (cards > 1)}{too_big}", "numbers": values | {"GB": size / GB}}
    if args.step_seconds is None and args.device == "cpu":
        job = Job(args.size, args.dtype, args.quant, clips, accumulate, args.recompute, shard_llm, args.repeats)
        yield from _check(job, parts, traffic, not args.fresh_memory)


LABELS = {
    "before": "features, encoders, connector",
    "llm_forward": "LLM forward",
    "llm_backward": "LLM backward",
    "connector_backward": "connector backward",
    "fixed": "optimiser, once a step",
}
COLUMNS = ["samples/s", "at best", "% of n", "at best", "MB sent", "GB"]


def _assumptions(args: argparse.Namespace, batch: Batch) -> Iterator[dict]:
    (speed, latency), (node_speed, node_latency) = args.link, args.node_link
    for line in (
        f"a link of {speed:g} GB/s and {latency:g} µs in a node of {NODE} cards, {node_speed:g} and {node_latency:g} "
        "between nodes; one ring of all cards, as slow as its slowest link, and one of each node for an LLM in shares",
        "nothing that is sent hides behind the arithmetic; at best, all that can: what is gathered behind the LLM,",
        "   LoRA's gradients behind the whole backward pass, the connector's behind its own, which comes last",
        "each card has as much to do as the others and waits neither for them nor for its data",
        "what the CPUs agree on, the tokens of a step and whether all go on, has the links' latency",
        f"memory is for clips of full length in rows of {batch.tokens} tokens",
    ):
        yield {"what": f"   assumed: {line}"}


# ---- what is known of one card


def _parts(args: argparse.Namespace, model: SALMONN, case: Case, batch: Batch) -> tuple[Parts, str]:
    """A step's parts, and how they are known."""
    if args.step_seconds is not None:
        if args.fixed_seconds >= args.step_seconds:
            raise UserError("scale: --fixed-seconds is a part of --step-seconds: give less")
        return counted_parts(model, case, batch, args.step_seconds, args.fixed_seconds), "GIVEN, its parts by count"
    if args.fixed_seconds:
        raise UserError("scale: --fixed-seconds is measured here, unless --step-seconds is given, too")
    on_cpu = args.device == "cpu"
    if args.cfg_path or (on_cpu and SIZES[args.size].needs_gpu) or not (on_cpu or torch.cuda.is_available()):
        raise UserError(
            "scale: this step cannot be measured here: give --step-seconds S of one card, from python "
            "util/gpu_check.py or a run's log there, or --size mini or small"
        )
    setup = Setup(args.size, args.device, args.dtype, args.quant, batch.clips, args.recompute)
    arguments = (setup, args.repeats)
    split = in_processes(step_split, [arguments], not args.fresh_memory)[0] if on_cpu else step_split(*arguments)
    last = {part: split.pop(part) for part in ("LLM forward", "backward", "optimiser")}
    counted = counted_parts(model, case, batch_of(model, make_batch(model, batch.clips)), 1.0)  # what was measured
    llm = counted.llm_backward / (counted.llm_backward + counted.connector_backward)
    backward = last["backward"]
    parts = Parts(sum(split.values()), last["LLM forward"], llm * backward, (1 - llm) * backward, last["optimiser"])
    how = "one thread, CPU seconds" if on_cpu else torch.cuda.get_device_name()
    return parts, f"MEASURED ({how})"


def step_split(setup: Setup, repeats: int) -> dict[str, float]:
    """Seconds of our step by part."""
    model = setup.model("ours")
    return split_step(setup.step("ours", model), parts_of("ours", model), repeats, model.device)


def counted_parts(model: SALMONN, case: Case, batch: Batch, seconds: float, fixed: float = 0.0) -> Parts:
    """A step of so many seconds, all but `fixed` divided as its operations are."""
    flops = sample_flops(model, patches_of(model, batch), batch.tokens, batch.targets / batch.clips)
    llm, connector = flops["LLM"], flops["Q-Former"]
    before = sum(part.forward for part in flops.values()) - llm.forward
    again = llm.forward if case.checkpointing else 0
    operations = (before, llm.forward, llm.backward + again, connector.backward)
    return Parts(*[*((seconds - fixed) * part / sum(operations) for part in operations), fixed])


def traffic_of(model: SALMONN, case: Case, shard_llm: bool) -> Traffic:
    """What its cards have to share in a step: gradients in float32, as what is trained; weights as they are stored."""
    trained = trainable_parameters(model)
    lora = FLOAT * trained.pop("LoRA", 0)
    connector = FLOAT * sum(trained.values())
    if not shard_llm:
        return Traffic(lora, connector)
    return Traffic(lora, connector, shared_weights(model, case), model.llama_model.config.num_hidden_layers)


# ---- what follows for many


def link_of(cards: int, within: Link, between: Link) -> Link:
    """The slowest link of a ring of so many cards."""
    if cards <= NODE:
        return within
    return Link(min(within.speed, between.speed), max(within.latency, between.latency))


def all_gather(size: float, cards: int, link: Link, messages: int = 1) -> float:
    """Seconds of a ring in which each card passes on every share but its own."""
    return (cards - 1) * (size / cards / link.speed + messages * link.latency)


def all_reduce(size: float, cards: int, link: Link, messages: int = 1) -> float:
    """Seconds until each card has the sum: a ring in which shares are summed, and one in which they are gathered."""
    return 2 * all_gather(size, cards, link, messages)


def step_seconds(
    parts: Parts, traffic: Traffic, cards: int, link: Link, accumulate: int, within: Link | None = None
) -> tuple[float, float]:
    """Seconds of a step where nothing that is sent hides behind the arithmetic, and where all hides that can.

    `within`: the link inside a node, whose cards share the LLM, where it is another one.
    """
    gather = all_gather(traffic.gathered, min(cards, NODE), within or link, traffic.blocks)  # for one pass
    sizes = (traffic.lora, traffic.connector)
    lora, connector = (all_reduce(size, cards, link, math.ceil(size / BUCKET)) for size in sizes)
    agree = (accumulate + AGREEMENTS) * all_reduce(0, cards, link)
    shown = parts.seconds(accumulate) + agree + accumulate * 2 * gather + lora + connector

    forward = parts.before + max(parts.llm_forward, gather)
    backward = max(parts.llm_backward, gather) + parts.connector_backward
    last_backward = max(backward, max(parts.llm_backward, gather + lora) + connector)
    hidden = accumulate * forward + (accumulate - 1) * backward + last_backward + parts.fixed + agree
    return shown, hidden


def _values(
    parts: Parts, traffic: Traffic, cards: int, link: Link, accumulate: int, clips: int, within: Link
) -> dict[str, float]:
    """Samples/s, share of as many times what one card does, and bytes that each card sends in a step."""
    samples, alone = cards * clips * accumulate, parts.seconds(accumulate)
    shown, hidden = step_seconds(parts, traffic, cards, link, accumulate, within)
    sharing = min(cards, NODE)
    sent = (cards - 1) / cards * 2 * (traffic.lora + traffic.connector)
    sent += (sharing - 1) / sharing * 2 * accumulate * traffic.gathered
    return {
        "samples/s": samples / shown,
        "samples/s at best": samples / hidden,
        "% of n": 100 * alone / shown,
        "% of n at best": 100 * alone / hidden,
        "MB sent": sent / 1e6,
    }


def card_bytes(model: SALMONN, case: Case, batch: Batch, cards: int, shard_llm: bool) -> float:
    """Memory of each card; one alone holds the whole LLM, else the cards of a node do."""
    whole = sum(predicted(model, case, batch).values())
    if not shard_llm or cards == 1:
        return whole
    blocks = shared_weights(model, case)
    here = blocks / min(cards, NODE) + WHOLE_BLOCKS * blocks / model.llama_model.config.num_hidden_layers
    return whole - blocks + here


# ---- whether that has the right form


def _check(job: Job, parts: Parts, traffic: Traffic, keep_memory: bool) -> Iterator[dict]:
    """The same arithmetic for ranks of this CPU, against what they take by the clock."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    yield {"what": f"   the form, MEASURED: gloo ranks, a thread each, on {cores} cores with a load of {load:.1f}"}
    for ranks in CHECKED:
        yield from check_rows(ranks, cores, ranks_times(ranks, job, keep_memory), job, parts, traffic)


def check_rows(ranks: int, cores: int, times: Times, job: Job, parts: Parts, traffic: Traffic) -> Iterator[dict]:
    """Rows of some ranks: their link, and predicted against measured seconds.

    Ranks share cores and caches, as cards do not: how much slower that makes them is measured without averaging.
    """
    slower, by_count = times.apart / parts.seconds(job.accumulate), max(1.0, ranks / cores)
    link = fitted_link(ranks, times)
    yield {"what": f"   {ranks} ranks: gloo's speed, from {LARGE >> 20} MiB", "value": link.speed / GB, "unit": "GB/s"}
    yield {"what": f"      gloo's latency, from {SMALL >> 10} KiB", "value": 1e6 * link.latency, "unit": "µs"}
    yield {"what": f"      each for itself, times a step of one (cores: {by_count:g})", "value": slower, "unit": "x"}
    yield _compared("all-reduce of the gradients", all_reduce(sum(traffic[:2]), ranks, link), times.gradients)
    for factor, of in ((slower, ""), (by_count, ", slower by the number of cores")):
        shown, hidden = step_seconds(parts.slower(factor), traffic, ranks, link, job.accumulate)
        yield _compared(f"a step{of}", shown, times.together)
        yield _compared(f"a step{of}, at best", hidden, times.together)


def fitted_link(ranks: int, times: Times) -> Link:
    """What link all-reduces of two sizes tell of."""
    latency = times.small / (2 * (ranks - 1))
    return Link(2 * (ranks - 1) / ranks * LARGE / max(times.large - times.small, 1e-9), latency)


def _compared(what: str, expected: float, measured: float) -> dict:
    return {
        "what": f"      {what}",
        "predicted": 1e3 * expected,
        "measured": 1e3 * measured,
        "ratio": expected / measured,
        "unit": "ms",
    }
