"""How many parameters are trained, by the parts that people know."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from salmonn import SALMONN
from salmonn.model.parameter_counts import count_by_part, show_counts, trainable_parameters
from tests.fixtures.golden import golden_config


def test_every_trained_parameter_is_counted_once_and_under_its_part(golden):
    model = golden("base").model
    counts = trainable_parameters(model)
    assert counts.keys() == {"Q-Former", "query tokens", "projection", "norms", "LoRA"}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts["projection"] == sum(p.numel() for p in model.speech_llama_proj.parameters())
    assert counts["query tokens"] == model.speech_query_tokens.numel()
    assert counts["norms"] == sum(p.numel() for norm in (model.ln_speech, model.ln_audio) for p in norm.parameters())


@pytest.mark.parametrize(
    ("change", "gone", "come"),
    [
        ({"lora": False}, {"LoRA"}, set()),
        ({"freeze_speech_QFormer": True}, {"Q-Former", "query tokens"}, set()),
        ({"freeze_whisper": False, "freeze_beats": False}, set(), {"Whisper", "BEATs"}),
    ],
)
def test_parts_come_and_go_with_what_is_frozen(golden, change, gone, come):
    before = trainable_parameters(golden("base").model)
    after = trainable_parameters(
        SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "ckpt": "", **change})
    )
    assert before.keys() - after.keys() == gone
    assert after.keys() - before.keys() == come
    assert all(after[part] == before[part] for part in before.keys() & after.keys())


def test_the_largest_part_comes_first():
    sizes = {"ln_audio.bias": 5, "speech_query_tokens": 7, "ln_speech.bias": 5, "speech_llama_proj.weight": 1}
    assert list(count_by_part(sizes).items()) == [("norms", 10), ("query tokens", 7), ("projection", 1)]


def test_a_parameter_of_no_known_part_is_an_error():
    """Else a new part would be trained and not be told."""
    model = nn.Module()
    model.another = nn.Parameter(torch.ones(2))
    with pytest.raises(StopIteration):
        trainable_parameters(model)


def test_counts_are_shown_in_millions_from_ten_thousand_on():
    counts = {"LoRA": 6_553_600, "norms": 10_000, "query tokens": 9_999}
    assert show_counts(counts) == "6.57 M trainable parameters (LoRA 6.55 M, norms 0.01 M, query tokens 9999)"
