"""What recipes change that no key of the configuration does: connector, loss, order of the data."""

import numpy as np
import pytest
import torch

from experiments.samples_to_learn.changes import (
    SPAN,
    distilled_loss,
    drop_frames,
    dropped_frames,
    easier,
    normalise_audio_tokens,
)
from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.dataset import SALMONNDataset
from salmonn.model.encoders import EncoderOutputs
from salmonn.model.llm_input import tokenize
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT

TEXTS = ["the dog runs", "a siren wails"]


@pytest.fixture
def model(mini_world, tmp_path, monkeypatch) -> SALMONN:
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    return SALMONN.from_config(load_config("configs/mini/stage1.yaml", train_options(mini_world, tmp_path)).model)


def encoded(model: SALMONN) -> EncoderOutputs:
    torch.manual_seed(1)
    frames = model.connector.frames
    audio = torch.randn(2, frames // 2, model.beats.width)
    return EncoderOutputs(
        torch.randn(2, frames, model.speech_encoder.config.d_model), audio, torch.zeros(2, frames // 2, dtype=bool)
    )


def test_audio_tokens_are_as_large_as_the_embeddings(model):
    normalise_audio_tokens(model)
    with torch.no_grad():
        tokens = model.eval().connector(encoded(model))
        sizes = tokens.square().mean(-1).sqrt()
    size = model.llama_model.get_input_embeddings().weight.square().mean().sqrt()
    torch.testing.assert_close(sizes, size.expand_as(sizes), rtol=1e-3, atol=0)


def test_frames_are_dropped_in_training_alone(model):
    outputs = encoded(model)
    with torch.no_grad():
        whole = model.connector.fuse(outputs)
        drop_frames(model, 0.3)
        assert torch.equal(model.eval().connector.fuse(outputs), whole)
        some = model.train().connector.fuse(outputs)
    dropped = (some == 0).all(-1)
    assert dropped.any()
    assert torch.equal(some[~dropped], whole[~dropped])


def test_frames_are_dropped_in_spans_and_by_their_share():
    torch.manual_seed(0)
    dropped = dropped_frames(50, 2000, 0.15)
    assert dropped.float().mean() == pytest.approx(0.15, abs=0.01)
    edges = np.flatnonzero(np.diff(dropped[0].numpy().astype(int)))
    begins, ends = edges[:-1], edges[1:]
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True) if dropped[0, begin + 1]]
    assert min(lengths) >= SPAN


def test_what_the_text_itself_says_has_nothing_to_distil(model):
    table = model.llama_model.get_input_embeddings()
    as_text = [table(torch.tensor(ids)) for ids in tokenize(model.tokenizer, TEXTS)]
    samples = {"text": TEXTS, "task": ["asr", "asr"], "prompts": ["USER: <SpeechHere> What?\nASSISTANT:"] * 2}
    model.eval()  # LoRA is new and adds nothing
    published = model.loss_of_batch(as_text, samples)
    found = distilled_loss(model, 1.0, as_text, samples)
    torch.testing.assert_close(found["loss"], published["loss"])
    assert (found["total"], found["cut"]) == (published["total"], published["cut"])


def test_audio_is_drawn_to_what_the_llm_without_lora_says_of_the_text(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    scaling = model.lora_scaling
    clips = [torch.randn(4, model.llama_model.config.hidden_size, requires_grad=True) for _ in TEXTS]
    samples = {"text": TEXTS, "task": ["asr", "asr"], "prompts": ["USER: <SpeechHere> What?\nASSISTANT:"] * 2}
    plain, half, whole = (distilled_loss(model.eval(), weight, clips, samples)["loss"] for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(plain, model.loss_of_batch(clips, samples)["loss"])
    assert whole > plain
    torch.testing.assert_close(half - plain, whole - half)
    assert torch.autograd.grad(whole, clips)[0].abs().sum() > 0
    assert model.lora_scaling == scaling


def test_a_curriculum_begins_with_a_task_or_with_the_shorter_texts_of_each():
    texts = {"asr": ["a", "bb", "cc", "dddd"], "audiocaption": ["eeeee", "ffffff"]}
    entries = [{"path": "x", "task": task, "text": text} for task, of in texts.items() for text in of]
    dataset = SALMONNDataset(entries, ClipPaths("", {}), 30.0)

    def chosen(what: str) -> list[str]:
        part = easier(dataset, what)
        return [entries[number]["text"] for number in part.usable]

    assert chosen("short") == ["a", "bb", "cc", "eeeee"]
    assert chosen("audiocaption") == ["eeeee", "ffffff"]
    assert len(dataset) == 6
    with pytest.raises(UserError, match="long is none of short, asr, audiocaption"):
        easier(dataset, "long")
