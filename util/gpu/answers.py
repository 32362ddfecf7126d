"""Answers at full size: time to the first token and per token, beside transformers' plain `generate`."""

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from unittest import mock

import torch

from salmonn.config.loading import generate_config
from salmonn.model import salmonn as whole_model
from salmonn.model.generation import of_length
from util.benchmarks.generation import Answers, answer, make_questions, tell_clips_apart
from util.benchmarks.sizes import build
from util.gpu.rows import MODELS, Row, Setup, row

TOKENS = {"full": 24, "mini": 8}
REPEATS = 2


def rows(setup: Setup) -> Iterator[Row]:
    """For 1 and 8 clips, greedy and with 4 beams: milliseconds of ours and of the plain way, same tokens."""
    device, size = setup
    model = build(MODELS[size], torch.device(device), "bfloat16").eval()
    tell_clips_apart(model)
    for beams in (1, 4):
        settings = of_length(generate_config({"num_beams": beams}), TOKENS[size])
        for clips in (1, 8):
            samples = make_questions(model, clips)
            ours, plain = [], []
            for _ in range(REPEATS + 1):  # in turns; the first round warms up
                ours.append(answer(model, samples, settings))
                with plain_prefill() if beams > 1 else nullcontext():
                    plain.append(answer(model, samples, settings))
            what = f"{MODELS[size]}, bfloat16, {'greedy' if beams == 1 else f'{beams} beams'}, {clips} clips"
            yield row(f"{what}: to the first token", 1000 * _median(ours, _first), "ms")
            yield row("   each further token", 1000 * _median(ours, lambda one: one.token), "ms")
            total, plainly = (_median(side, _total) for side in (ours, plain))
            yield row(f"   {TOKENS[size]} tokens", clips / total, "answers/s")
            if beams > 1:
                yield row("   to the first token, plain generate", 1000 * _median(plain, _first), "ms")
                yield row("   ours against plain generate", plainly / total, "x")
                same = sum(a == b for a, b in zip(ours[-1].ids, plain[-1].ids, strict=True))
                yield row("   the same tokens as plain generate", f"{same} of {clips}")


def plain_prefill() -> mock._patch:
    """The library reads the prompt itself, once for each beam."""
    return mock.patch.object(whole_model, "prefill", return_value=None)


def _first(one: Answers) -> float:
    return one.encoding + one.prefill


def _total(one: Answers) -> float:
    return one.encoding + one.prefill + one.token * (len(one.ids[0]) - 1)


def _median(rounds: list[Answers], of) -> float:
    return statistics.median(of(one) for one in rounds[1:])
