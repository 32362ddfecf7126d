"""Clips that come as bytes or as samples, not as files; decoded as any file is."""

from io import BytesIO
from tempfile import NamedTemporaryFile

import numpy as np
import soundfile

from salmonn.audio.decode import AudioError
from salmonn.common.errors import UserError
from salmonn.inference.engine import InferenceEngine


def read_bytes(engine: InferenceEngine, data: bytes, name: str) -> np.ndarray:
    """A clip [N] as `InferenceEngine.hear` takes it, of a file's bytes.

    Raises UserError that calls it by `name` where it cannot be heard.
    """
    with NamedTemporaryFile(prefix="salmonn-") as file:  # the decoders read files; it is gone at once
        file.write(data)
        file.flush()
        try:
            return engine.read_clip(file.name)
        except AudioError as error:
            raise UserError(f"{name}: {error.reason}") from error


def read_samples(engine: InferenceEngine, samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """The same of decoded samples, [N] or [channels, N], at `rate` Hz."""
    wav = BytesIO()
    soundfile.write(wav, np.asarray(samples, np.float32).T, rate, format="WAV", subtype="FLOAT")
    return read_bytes(engine, wav.getvalue(), name)
