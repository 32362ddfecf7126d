"""The price of stage 0 on paper: its products as PyTorch counts them, its rows as they follow from each other."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from util.benchmark import text_line
from util.benchmarks.stage0 import CLIPS, bench_stage0, ctc_flops


def test_spelling_takes_the_products_that_pytorch_counts():
    audio_tokens, candidates, width = 37, 500, 64
    embeds, table = torch.randn(audio_tokens, width, requires_grad=True), torch.randn(candidates + 1, width)
    model = SimpleNamespace(llama_model=SimpleNamespace(config=SimpleNamespace(hidden_size=width)))
    expected = ctc_flops(model, audio_tokens, candidates)
    with FlopCounterMode(display=False) as counter:
        logits = embeds @ table.t()
    assert counter.get_total_flops() == expected.forward
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == expected.backward


@pytest.fixture(scope="module")
def values() -> list[float]:
    paper = {"cfg_path": Path("configs/fast/stage0.yaml"), "options": [], "answer_tokens": None, "batch": None}
    found = list(bench_stage0(Namespace(**paper, tflops=100.0)))
    assert "a clip of 12.3 s, 45 tokens" in text_line(found[0])  # 960.9 h in 281,241 clips
    return [row["value"] for row in found[1:]]


def test_stage_0_is_stage_1_without_the_llm_and_from_the_cache_without_the_encoders(values):
    stage1, stage0, share, cached = values[:4]
    assert share == pytest.approx(100 * stage0 / stage1)
    encoders = stage0 - cached / 100 * stage1
    assert 0.9 * stage0 < encoders < stage0
    assert 5 < share < 25


def test_minutes_are_operations_by_speed(values):
    assert values[4] == pytest.approx(CLIPS * values[0] / 100 / 60)
