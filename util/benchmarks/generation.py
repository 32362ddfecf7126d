"""Answers of a batch against answers one by one, and against the published way: speed, same tokens, where time goes."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import StoppingCriteriaList

from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import generate_config
from salmonn.model.generation import TokenClock, of_length, search_settings
from salmonn.model.salmonn import SALMONN
from util.benchmarks import plain_step
from util.benchmarks.measure import chosen_sides, in_turns, row, spent
from util.benchmarks.plain_attention import published_attention
from util.benchmarks.sizes import build, make_batch, rows_of

BEAMS = (1, 4)  # greedy and as published
# What ours is measured against: as --sides names it, and as the rows do.
SIDES = {"alone": "one by one", "plain": "published way", "sdpa": "published way with SDPA"}


class Answers(NamedTuple):
    """Token ids of some samples' answers, and the seconds that each part took."""

    ids: list[list[int]]
    encoding: float
    prefill: float  # from the embeddings to the first token
    token: float  # decoding of each further token, the mean


def bench_generate(args: argparse.Namespace) -> Iterator[dict]:
    """Rows for each number of beams and batch: seconds and tokens/s, how many ids are the same, the split.

    Against the published way the batch has one prompt: with several, padding in its prompts changes its answers. Both
    sides have one model, so with bfloat16 the encoders' weights, which are published in float32, are rounded on both.

    All answers are `args.tokens` long, so all sides do the same work. Raises UserError for answers of one token.
    """
    sides = chosen_sides("generate", args.sides, tuple(SIDES))
    if args.tokens < 2:
        raise UserError("generate: --tokens must be 2 or more: the first is of the prefill, the others are decoded")
    how = {"encoder_dtype": args.encoder_dtype or args.dtype, "llm_attention": args.attention}
    model = build(args.size, torch.device(args.device), args.dtype, args.quant, **how).eval()
    tell_clips_apart(model)
    quantised = "" if args.quant == "none" else f", {args.quant}"
    quantised += "" if args.encoder_dtype is None else f", encoders in {args.encoder_dtype}"
    quantised += "" if args.attention == "auto" else f", our LLM's attention {args.attention}"
    for beams in args.beams:
        settings = of_length(generate_config({"num_beams": beams}), args.tokens)
        for n in args.batches:
            search = "greedy" if beams == 1 else f"beam {beams}"
            what = f"generate {args.size}, {args.dtype}{quantised}, {search}, batch {n}"
            several, same = make_questions(model, n), make_batch(model, n)
            alone = [rows_of(several, slice(i, i + 1)) for i in range(n)]
            ways = {
                "alone": partial(one_by_one, model, alone, settings),
                "plain": partial(published, model, same, settings),
                "sdpa": partial(published, model, same, settings, sdpa=True),
            }
            for samples, names in ((several, ("alone",)), (same, ("plain", "sdpa"))):
                ours, others = partial(answer, model, samples, settings), [name for name in names if name in sides]
                against = {f"{what}: {SIDES[name]}": ways[name] for name in others}
                yield from rows_for(ours, against, n, settings, model.device, args.repeats)


def make_questions(model: SALMONN, n: int) -> Samples:
    """`n` clips, each with another prompt as far as there are: prompts differ in length."""
    prompts = [prompt for pool in model.train_prompts.values() for prompt in pool]
    return make_batch(model, n) | {"prompts": [prompts[i % len(prompts)] for i in range(n)]}


@torch.no_grad()
def tell_clips_apart(model: SALMONN) -> None:
    """Centre and scale the projection, for clips to differ as words do.

    Behind random weights all clips are almost one: equal answers would not show that each had its own.
    """
    samples, projection = make_batch(model, 4), model.speech_llama_proj
    embeds, _ = model.encode_speech(samples["raw_wav"], samples["padding_mask"])  # [4, A, H]
    scale = model.llama_model.get_input_embeddings().weight.float().std() / embeds.std(dim=0).mean()
    projection.bias.copy_(scale * (projection.bias - embeds.mean(dim=(0, 1))))
    projection.weight.mul_(scale)


def rows_for(
    ours: Callable[[], Answers],
    against: Mapping[str, Callable[[], Answers]],
    n: int,
    settings: DictConfig,
    device: torch.device,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """For each other way to answer `n` samples its row, and a row for each part; all are taken in turns."""
    if not against:
        return
    ways = [ours, *against.values()]
    rounds: list[list[Answers]] = [[] for _ in ways]

    def side(i: int) -> Callable[[], None]:
        return lambda: rounds[i].append(ways[i]())

    our_seconds, *seconds = in_turns([side(i) for i in range(len(ways))], repeats, lambda: spent(device))
    for what, their_seconds, theirs in zip(against, seconds, rounds[1:], strict=True):
        yield row(what, (our_seconds, their_seconds)) | {
            "unit": "CPU s" if device.type == "cpu" else "s",
            "tokens_per_second": n * settings.max_new_tokens / our_seconds,
            "same": sum(a == b for a, b in zip(rounds[0][-1].ids, theirs[-1].ids, strict=True)),
            "of": n,
        }
        names = {"encoding": "encoding", "prefill": "prefill", "token": "decoding, a token"}
        for part, name in names.items():
            both = [statistics.median(getattr(taken, part) / n for taken in way[1:]) for way in (rounds[0], theirs)]
            yield row(f"   {name} of one sample", (both[0], both[1]))


def one_by_one(model: SALMONN, alone: Sequence[Samples], settings: DictConfig) -> Answers:
    """What several batches gave and took together."""
    ids, *seconds = zip(*(answer(model, samples, settings) for samples in alone), strict=True)
    return Answers([one for some in ids for one in some], *map(sum, seconds))


def answer(model: SALMONN, samples: Samples, settings: DictConfig) -> Answers:
    """The model's answers to a batch; on a GPU bfloat16 weights run as they do in evaluation, under autocast."""
    clock, encoded = Clock(model.device), []
    encode = model.encode_and_spell

    def noted(*args: Any) -> Any:
        result = encode(*args)
        encoded.append(spent(model.device))
        return result

    with mock.patch.object(model, "encode_and_spell", noted), autocast_of(model):
        began = spent(model.device)
        details = model.generate(
            samples, settings, return_details=True, stopping_criteria=StoppingCriteriaList([clock])
        )  # fmt: skip
    return _answers([detail["token_ids"] for detail in details], began, encoded[0], clock)


@torch.no_grad()
def published(model: SALMONN, samples: Samples, settings: DictConfig, sdpa: bool = False) -> Answers:
    """Answers as the published code gives them: its features and attention, each prompt read once for each beam.

    `sdpa`: its SDPA form (`plain_attention.py`).
    """
    clock = Clock(model.device)
    with published_attention(model, sdpa), plain_step.everything_kept(model), autocast_of(model):
        began = spent(model.device)
        embeds = plain_step.heard(model, plain_step.extractor_of(model), samples)
        encoded = spent(model.device)
        inputs, mask = plain_step.prompt_inputs(model, embeds, samples["prompts"])
        output = model.llama_model.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            stopping_criteria=StoppingCriteriaList([clock]),
            logits_to_keep=0,  # of all positions of the prompt
            **search_settings(settings, model.tokenizer.bos_token_id, model.end_id),
        )
    return _answers(output.tolist(), began, encoded, clock)


class Clock(TokenClock):
    """Notes what had been spent when each token was there; never stops anything."""

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        self.times.append(spent(self.device))  # input_ids [B, L]; returns [B]
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def autocast_of(model: SALMONN) -> torch.autocast:
    """Autocast in bfloat16 for a model whose LLM has such weights, but for those that are quantised."""
    dtype = model.llama_model.get_input_embeddings().weight.dtype
    return torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _answers(ids: list[list[int]], began: float, encoded: float, clock: TokenClock) -> Answers:
    first, last = clock.times[0], clock.times[-1]
    return Answers(ids, encoded - began, first - encoded, (last - first) / (len(clock.times) - 1))
