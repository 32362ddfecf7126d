"""Shared by the tests of the web page: a listener of the miniature world, its turns, its page and clips for it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from conftest import ROOT, mini_options
from salmonn.config import load_config
from salmonn.session import Listener
from salmonn.turns import Turns
from salmonn.web_page import Page


@pytest.fixture(scope="session")
def listener(mini_world: Path, tmp_path_factory) -> Listener:
    """It hears 5 s at once, and answers nonsense."""
    paths = [option for option in mini_options(mini_world, tmp_path_factory.mktemp("out")) if "datasets." not in option]
    torch.manual_seed(0)
    options = [*paths, "model.ckpt=", "generate.max_new_tokens=12", "generate.num_beams=1", "run.batch_size_eval=2"]
    return Listener.load(load_config(ROOT / "configs/mini/decode.yaml", options))


@pytest.fixture
def turns(listener: Listener) -> Iterator[Turns]:
    turns = Turns(listener)
    yield turns
    turns.close()


@pytest.fixture
def page(turns: Turns) -> Page:
    return Page(turns, {})


@pytest.fixture(scope="session")
def clip(mini_world: Path) -> str:
    return str(sorted((mini_world / "audio/speech").glob("test_*.wav"))[0])


@pytest.fixture
def long_clip(tmp_path: Path) -> str:
    """12 s of noise: three windows, of which two are heard together."""
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).normal(size=12 * 16_000), 16_000)
    return str(tmp_path / "long.wav")


@pytest.fixture
def written(monkeypatch) -> list:
    """Every answer that the model has brought to its end."""
    answers: list = []
    answer = Listener.ask_windows

    def watch(*args: Any, **library: Any) -> Iterator:
        for windows in answer(*args, **library):
            answers.append(windows)
            yield windows

    monkeypatch.setattr(Listener, "ask_windows", watch)
    return answers


@pytest.fixture
def busy(turns: Turns) -> Iterator[threading.Event]:
    """Somebody else has the model until the event is set."""
    release, begun = threading.Event(), threading.Event()
    other = threading.Thread(target=turns.run, args=[lambda: begun.set() or release.wait(60)])
    other.start()
    assert begun.wait(60)
    yield release
    release.set()
    other.join()
