"""What harnesses give and ask for, in this project's words: settings of the search, clips, where an answer ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from salmonn.audio.decode import AudioError
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.inference.engine import InferenceEngine
from salmonn.serve.clips import read_bytes, read_samples

_SEARCH = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p")  # called as in a `generate` section


def search_settings(wanted: Mapping[str, Any], generate: DictConfig) -> tuple[DictConfig, list[str]]:
    """A task's generation_kwargs over the config's `generate`, and the texts at which an answer ends.

    A temperature of 0 is a search without chance, as harnesses mean it. Raises UserError for what has no effect here.
    """
    wanted = {key: value for key, value in wanted.items() if value is not None}
    until = wanted.pop("until", [])
    if unknown := sorted(wanted.keys() - set(_SEARCH)):
        raise UserError(f"generation_kwargs: {', '.join(unknown)}: unknown here; there are {', '.join(_SEARCH)}, until")
    if "temperature" in wanted:
        wanted.setdefault("do_sample", wanted["temperature"] > 0)
    return generate_config(OmegaConf.merge(generate, wanted)), [until] if isinstance(until, str) else list(until)


def cut_off(text: str, until: Sequence[str]) -> str:
    """A text up to the first of some others."""
    return text[: min((text.index(end) for end in until if end and end in text), default=len(text))]


def read_media(engine: InferenceEngine, media: Any, name: str) -> np.ndarray:
    """A clip [N] in any form in which tasks give one. Raises UserError that calls it by `name`."""
    if hasattr(media, "get_all_samples"):  # torchcodec's, of `datasets` 4 and later
        samples = media.get_all_samples()
        return read_samples(engine, samples.data.numpy(), samples.sample_rate, name)
    if isinstance(media, Mapping):
        if media.get("array") is not None:
            return read_samples(engine, media["array"], media["sampling_rate"], name)
        if media.get("bytes"):
            return read_bytes(engine, media["bytes"], name)
        media = media.get("path")
    if isinstance(media, str | Path):
        try:
            return engine.read_clip(media)
        except AudioError as error:
            raise UserError(f"{name}: {error}") from error
    raise UserError(f"{name}: {type(media).__name__} is no clip that SALMONN can hear")
