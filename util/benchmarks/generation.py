"""Answers of a batch against answers one by one: speed, the same tokens, where the time goes."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from omegaconf import DictConfig
from transformers import StoppingCriteriaList

from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import generate_config
from salmonn.evaluation.efficiency import TokenClock, now, of_length
from salmonn.model.salmonn import SALMONN
from util.benchmarks.measure import alternate, row
from util.benchmarks.sizes import build, make_batch, rows_of

BEAMS = (1, 4)  # greedy and as published


class Answers(NamedTuple):
    """Token ids of some samples' answers, and the seconds that each part took."""

    ids: list[list[int]]
    encoding: float
    prefill: float  # from the embeddings to the first token
    token: float  # decoding of each further token, the mean


def bench_generate(args: argparse.Namespace) -> Iterator[dict]:
    """Rows for each number of beams and batch: samples/s and tokens/s, how many ids are the same, the split.

    All answers are `args.tokens` long, so both sides do the same work. Raises UserError for a GPU that is not there.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    model = build(args.size, torch.device(args.device), args.dtype, args.quant).eval()
    tell_clips_apart(model)
    quantised = "" if args.quant == "none" else f", {args.quant}"
    for beams in args.beams:
        settings = of_length(generate_config({"num_beams": beams}), args.tokens)
        for n in args.batches:
            search = "greedy" if beams == 1 else f"beam {beams}"
            what = f"generate {args.size}, {args.dtype}{quantised}, {search}, batch {n}"
            yield from rows_for(what, model, make_questions(model, n), settings, args.repeats)


def make_questions(model: SALMONN, n: int) -> dict[str, Any]:
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
    what: str, model: SALMONN, samples: Samples, settings: DictConfig, repeats: int
) -> Iterator[dict[str, Any]]:
    """The row of a batch against its samples one by one, and a row for each part."""
    n = len(samples["text"])
    batches = [samples], [rows_of(samples, slice(i, i + 1)) for i in range(n)]
    rounds: tuple[list[Answers], list[Answers]] = ([], [])

    def side(i: int) -> Callable[[], None]:
        return lambda: rounds[i].append(joined([answer(model, batch, settings) for batch in batches[i]]))

    seconds = alternate(side(0), side(1), repeats)
    ours, plain = (rounds[i][-1].ids for i in range(2))
    yield {
        "what": what,
        "ours": n / seconds[0],
        "plain": n / seconds[1],
        "ratio": seconds[1] / seconds[0],
        "unit": "samples/s",
        "tokens_per_second": n * settings.max_new_tokens / seconds[0],
        "same": sum(a == b for a, b in zip(ours, plain, strict=True)),
        "of": n,
    }
    names = {"encoding": "encoding", "prefill": "prefill", "token": "decoding, a token"}
    for part, name in names.items():
        medians = (statistics.median(getattr(taken, part) / n for taken in rounds[i][1:]) for i in range(2))
        yield row(f"   {name} of one sample", tuple(medians))


def joined(answers: Sequence[Answers]) -> Answers:
    """What several calls gave and took together."""
    ids, *seconds = zip(*answers, strict=True)
    return Answers([one for some in ids for one in some], *map(sum, seconds))


def answer(model: SALMONN, samples: Samples, settings: DictConfig) -> Answers:
    """The model's answers to a batch; on a GPU bfloat16 weights run as they do in evaluation, under autocast."""
    clock, encoded = TokenClock(model.device), []
    encode_speech, bf16 = model.encode_speech, model.speech_encoder.dtype == torch.bfloat16

    def noted(*args: Any) -> Any:
        result = encode_speech(*args)
        encoded.append(now(model.device))
        return result

    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)
    with mock.patch.object(model, "encode_speech", noted), autocast:
        began = now(model.device)
        details = model.generate(
            samples, settings, return_details=True, stopping_criteria=StoppingCriteriaList([clock])
        )  # fmt: skip
    first, last = clock.times[0], clock.times[-1]
    ids = [detail["token_ids"] for detail in details]
    return Answers(ids, encoded[0] - began, first - encoded[0], (last - first) / (len(clock.times) - 1))
