"""Answers at full size: time to the first token and per token, beside the published way by transformers' `generate`."""

import statistics
from collections.abc import Callable, Iterator

import torch
from omegaconf import DictConfig

from salmonn.config.loading import generate_config
from salmonn.model.generation import of_length
from salmonn.model.salmonn import SALMONN
from util.benchmarks.generation import Answers, answer, published, tell_clips_apart
from util.benchmarks.sizes import build, make_batch
from util.gpu.rows import MODELS, Row, Setup, named, quantisation_for, release, row, unless_too_big

TOKENS = {"full": 24, "mini": 4}
REPEATS = {"cuda": 2, "cpu": 1}
BEAMS, CLIPS = (1, 4), {"full": (1, 8), "mini": (1, 2)}


def rows(setup: Setup) -> Iterator[Row]:
    """For 1 and 8 clips, greedy and with 4 beams: milliseconds of ours and of the published way, same tokens."""
    quantization = quantisation_for(torch.device(setup.device))
    yield from unless_too_big(named(setup.size, quantization), _rows(setup, quantization))


def _rows(setup: Setup, quantization: str) -> Iterator[Row]:
    where, tokens = torch.device(setup.device), TOKENS[setup.size]
    model = build(MODELS[setup.size], where, "bfloat16", quantization).eval()
    tell_clips_apart(model)
    for beams in BEAMS:
        settings = of_length(generate_config({"num_beams": beams}), tokens)
        for clips in CLIPS[setup.size]:
            search = "greedy" if beams == 1 else f"{beams} beams"
            what = f"{named(setup.size, quantization)}, {search}, batch {clips}, {tokens} tokens"
            release(where)
            yield from unless_too_big(what, _compared(what, model, clips, settings))


def _compared(what: str, model: SALMONN, clips: int, settings: DictConfig) -> Iterator[Row]:
    samples = make_batch(model, clips)  # of one prompt: with several, padding in the published prompts changes answers
    log_mel = model.log_mel(samples["raw_wav"].to(model.device))  # published: made by the loader's processes
    ours, plain = [], []
    for _ in range(REPEATS[model.device.type] + 1):  # in turns; the first round warms up
        ours.append(answer(model, samples, settings))
        plain.append(published(model, samples | {"spectrogram": log_mel}, settings))
    for name, side in (("ours", ours), ("published way, its log-mel from the loader", plain)):
        yield row(f"{what}, {name}: to the first token", 1000 * _median(side, lambda one: _total(one, 1)), "ms")
        yield row("   each further token", 1000 * _median(side, lambda one: one.token), "ms")
    total, plainly = (_median(side, lambda one: _total(one, settings.max_new_tokens)) for side in (ours, plain))
    yield row("   ours", clips / total, "answers/s")
    yield row("   ours against the published way", plainly / total, "x")
    same = sum(a == b for a, b in zip(ours[-1].ids, plain[-1].ids, strict=True))
    yield row("   the same tokens, as far as rounding to bfloat16 lets them be", f"{same} of {clips}")


def _total(one: Answers, tokens: int) -> float:
    return one.encoding + one.prefill + one.token * (tokens - 1)


def _median(rounds: list[Answers], of: Callable[[Answers], float]) -> float:
    return statistics.median(of(one) for one in rounds[1:])
