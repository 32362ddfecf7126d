"""Where a process computes, and what its random numbers depend on."""

import random

import numpy as np
import pytest
import torch

from salmonn.common import device
from salmonn.common.device import autocast, device_of, seed_step, to_device
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config


@pytest.fixture(autouse=True)
def _random_state_as_it_was():
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@pytest.fixture
def config(monkeypatch):
    """A config with these options, of a process that torchrun did not start."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return lambda *options: load_config("configs/mini/stage1.yaml", options)


def drawn() -> tuple:
    """What a step draws: a dropout mask, a prompt, a number of numpy's."""
    mask = torch.nn.functional.dropout(torch.ones(64), 0.5)
    return (*mask.tolist(), random.random(), np.random.rand())


def test_a_steps_randomness_depends_on_seed_step_and_rank_alone():
    places = [(seed, step, rank) for seed in (0, 42) for step in (0, 1, 7) for rank in (0, 1)]
    first = {}
    for place in places:
        seed_step(*place)
        first[place] = drawn()
    assert len(set(first.values())) == len(places)  # all three count
    for place in reversed(places):  # and nothing that was drawn before
        seed_step(*place)
        assert drawn() == first[place]


def test_the_seed_of_a_step_stays_what_it_is():
    """A run that goes on with newer code has the dropout that it would have had."""
    seed_step(42, 3, 1)
    assert torch.initial_seed() == 2958905532


def test_the_device_is_the_one_that_is_asked_for(config, monkeypatch):
    assert device_of(config("run.device=cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of(config("run.device=cuda")) == torch.device("cuda", 0)
    assert device_of(config("run.device=cuda:2")) == torch.device("cuda", 2)
    quantised = ("run.device=cuda", "model.device_8bit=3")
    assert device_of(config(*quantised)) == torch.device("cuda", 0)
    assert device_of(config(*quantised, "model.llm_quantization=nf4")) == torch.device("cuda", 3)
    assert device_of(config(*quantised, "model.low_resource=True")) == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of(config(*quantised, "model.llm_quantization=nf4")) == torch.device("cuda", 1)


def test_a_gpu_that_is_not_there_is_told_with_what_goes_without(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run\.device = cuda, but .* no usable GPU; run\.device=cpu goes without"):
        device_of(config("run.device=cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="cuda:2 is asked for, but this machine has 2 GPUs"):
        device_of(config("run.device=cuda:2"))
    monkeypatch.setenv("LOCAL_RANK", "5")
    with pytest.raises(UserError, match="cuda:5 is asked for"):
        device_of(config("run.device=cuda"))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_mixed_precision_is_what_the_config_says(config, name, dtype):
    cpu = torch.device("cpu")
    with autocast(config("run.amp=True", f"run.amp_dtype={name}").run, cpu):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == dtype
    with autocast(config("run.amp=False", f"run.amp_dtype={name}").run, cpu):
        assert not torch.is_autocast_enabled("cpu")


def test_what_is_there_already_is_not_copied():
    x = torch.ones(3)
    assert to_device(x, torch.device("cpu")) is x


@pytest.mark.parametrize(
    ("has", "slow"),
    [({"amx_bf16": True}, False), ({"avx512_bf16": True}, False), ({"bf16": True}, False), ({"avx512_f": True}, True)],
)
def test_a_processor_without_units_for_bfloat16_is_told_where_it_is_asked_for(config, has, slow, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    asked = [["run.amp=True", "run.amp_dtype=bf16"]]
    asked += [["run.amp=False", f"model.{key}=bfloat16"] for key in ("llm_dtype", "encoder_dtype")]
    for options in asked:
        caplog.clear()
        device._tell_slow_bfloat16.cache_clear()  # it is told once
        device_of(config("run.device=cpu", *options))
        assert ("slower in bfloat16 than with run.amp=False model.llm_dtype=float32" in caplog.text) == slow
    caplog.clear()
    device._tell_slow_bfloat16.cache_clear()
    device_of(config("run.device=cpu", "run.amp=False"))
    assert not caplog.text
