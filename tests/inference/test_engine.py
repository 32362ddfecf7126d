"""What was heard is kept for as long as somebody may ask about it."""

from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import OmegaConf

from salmonn.config.schema import RunConfig
from salmonn.inference.engine import InferenceEngine


def test_what_was_heard_does_not_stay_on_the_device():
    on_host = torch.zeros(4, 8)
    on_device = SimpleNamespace(cpu=lambda: on_host)
    model = SimpleNamespace(device=torch.device("cpu"), max_seconds=5.0, encode_and_spell=lambda *_: ([on_device], []))
    engine = InferenceEngine(model, OmegaConf.create({"run": OmegaConf.structured(RunConfig(amp=False))}))
    [embeds] = engine.hear([np.zeros(1600, dtype=np.float32)]).embeds
    assert embeds is on_host
