"""A micro-batch is queued without our code waiting for the device: it asks for no value before the step's end.

No GPU is needed: tensors of the meta device have no values, so asking for them fails there.
"""

from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from salmonn.config.schema import RunConfig
from salmonn.model import encoder_cache
from salmonn.model.encoder_cache import EncoderCache
from salmonn.model.llm_input import build_llm_inputs
from salmonn.training.step import TrainingStep
from util.benchmarks.sizes import build, make_batch

META, CPU = torch.device("meta"), torch.device("cpu")


class Copies(TorchDispatchMode):
    """Copies to or from the device that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.waited_for, self.all = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.all += 1
            if not kwargs.get("non_blocking"):
                self.waited_for.append(result.shape)
        return result


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])
def test_our_code_asks_the_device_for_nothing_in_a_micro_batch(checkpointing, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none of this device
    model = build("mini", META, gradient_checkpointing=checkpointing).train()
    samples = make_batch(model, 3)
    step = TrainingStep(model, OmegaConf.structured(RunConfig(amp=False, batch_size_train=3)), META)
    model.encode_speech(samples["raw_wav"])  # the first time makes the filter banks
    with Copies() as copies:
        step.backward(model(samples, verbose=True), samples["id"], 1)
    assert copies.all > 0
    assert copies.waited_for == []
    assert all(p.grad is not None for p in step.trainable)
    with pytest.raises((RuntimeError, NotImplementedError)):
        step.finish(1)  # which reads the counts and the gradients' norm


def test_audio_that_was_heard_goes_from_the_host_to_the_device_for_an_answer():
    model = build("mini", META)
    llm_inputs = build_llm_inputs(model.tokenizer, [4, 4], ["<SpeechHere> What?"] * 2, [[]] * 2)
    n_copies = []
    for device in (META, CPU):
        with Copies() as copies:
            model._embed(llm_inputs, torch.zeros(2, 4, model.speech_llama_proj.out_features, device=device))
        assert copies.waited_for == []
        n_copies.append(copies.all)
    assert n_copies[1] == n_copies[0] + 1


def test_of_clips_that_the_cache_holds_the_device_is_given_the_entries_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_cache, "_precision", lambda _: "of either device")
    on_host, model = build("mini", CPU), build("mini", META)
    on_host.encoder_cache = model.encoder_cache = EncoderCache(tmp_path, "of both", 1e9)
    samples = make_batch(on_host, 3)
    with torch.no_grad():
        on_host.encode_clips(samples["raw_wav"], samples["padding_mask"])
        with Copies() as copies:
            clips = model.encode_clips(samples["raw_wav"], samples["padding_mask"])
    assert {clip.device for clip in clips} == {META}
    assert copies.waited_for == []
    assert copies.all == 3 * 2 + 1  # Whisper's and BEATs', and how long the latter are: no audio
