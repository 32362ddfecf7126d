"""What stage 0 costs beside stage 1, on paper: the operations of a sample, by formula, and the hours of LibriSpeech.

Stage 0 runs no LLM: behind the connector come only products with the input embeddings of some candidates, and of the
audio tokens only those that the clip fills. With `run.encoder_cache` its encoders hear each clip once.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.config.loading import load_config
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import Flops, sample_flops, windows_of
from util.benchmarks.memory import longest, subject
from util.benchmarks.memory_parts import patches_of

HOURS, CLIPS = 960.9, 281_241  # of LibriSpeech's three training sets
ANSWER_TOKENS = 45  # of its mean transcript of 33 words, about
TERA = 1e12


def bench_stage0(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: TFLOP of a clip of LibriSpeech's mean length in both stages, and with --tflops the hours of an epoch."""
    args.cfg_path = args.cfg_path or Path("configs/fast/stage0.yaml")
    run = load_config(args.cfg_path, args.options).run
    model, _, name = subject(args)
    answer = args.answer_tokens or ANSWER_TOKENS
    batch = longest(model, 1, answer)._replace(samples=round(3600 * HOURS / CLIPS * SAMPLE_RATE))
    parts = sample_flops(model, patches_of(model, batch), batch.tokens, batch.targets)
    encoders = parts["Whisper"].forward + parts["BEATs"].forward
    connector, llm = sum(parts["Q-Former"]), sum(parts["LLM"])
    windows = windows_of(model, patches_of(model, batch))[0]
    filled = min(windows, math.ceil(batch.samples / SAMPLE_RATE / model.config.second_stride))
    candidates = run.ctc_negatives + (args.batch or run.batch_size_train) * answer
    of_ctc = sum(ctc_flops(model, filled * model.config.num_speech_query_token, candidates))
    stage1, heard = encoders + connector + llm, filled / windows * connector + of_ctc

    yield {"what": f"stage0 {name}: a clip of {batch.samples / SAMPLE_RATE:.1f} s, {answer} tokens of transcript"}
    yield _row("stage 1", stage1, encoders=encoders, connector=connector, LLM=llm)
    yield _row("stage 0", encoders + heard, encoders=encoders, connector=heard - of_ctc, spelling=of_ctc)
    for what, total in (("stage 0", encoders + heard), ("stage 0, encoders' outputs from the cache", heard)):
        yield {"what": f"   {what}: of a sample of stage 1", "value": 100 * total / stage1, "unit": "%"}
    if args.tflops:
        for what, total in (("stage 1", stage1), ("stage 0", encoders + heard), ("stage 0 from the cache", heard)):
            epoch = f"{HOURS:.0f} h of LibriSpeech once, at {args.tflops:g} TFLOP/s"
            yield {"what": f"   {what}: {epoch}", "value": CLIPS * total / (args.tflops * TERA) / 60, "unit": "min"}


def ctc_flops(model: SALMONN, audio_tokens: int, candidates: int) -> Flops:
    """Of audio tokens against candidates and the blank; the embeddings are frozen, so backward counts once."""
    products = 2.0 * audio_tokens * (candidates + 1) * model.llama_model.config.hidden_size
    return Flops(products, products)


def _row(what: str, total: float, **parts: float) -> dict:
    named = ", ".join(f"{name} {flops / TERA:.2f}" for name, flops in parts.items())
    return {"what": f"   {what}: {named}", "value": total / TERA, "unit": "TFLOP"}
