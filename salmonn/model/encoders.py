"""Outputs of Whisper and BEATs for a batch of clips, before the connector."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salmonn.common.device import to_device

Row = dict[str, Tensor]  # of one clip: "speech" [T, D_whisper] and, with BEATs, "audio" [its own patches, D_beats]


class EncoderOutputs(NamedTuple):
    """Outputs of Whisper and BEATs for a batch; `audio` and `padding` are None in models without BEATs."""

    speech: Tensor  # [B, T, D_whisper]
    audio: Tensor | None = None  # [B, P, D_beats]
    padding: Tensor | None = None  # [B, P] True where padded

    def rows(self) -> list[Row]:
        """Each clip alone."""
        if self.audio is None or self.padding is None:
            return [{"speech": speech} for speech in self.speech]
        patches = (~self.padding).sum(dim=1).tolist()
        return [
            {"speech": speech, "audio": audio[:n]}
            for speech, audio, n in zip(self.speech, self.audio, patches, strict=True)
        ]

    def in_a_row(self, n_frames: Sequence[int]) -> "EncoderOutputs":
        """So many first frames of each clip, one clip behind the other as if they were one: [1, sum, D]."""

        def row(batch: Tensor, value: float) -> Tensor:
            padding = (0, 0) * (batch.ndim - 2) + (0, max(0, max(n_frames) - batch.shape[1]))
            padded = F.pad(batch, padding, value=value)
            return torch.cat([clip[:n] for clip, n in zip(padded, n_frames, strict=True)])[None]

        if self.audio is None or self.padding is None:
            return EncoderOutputs(row(self.speech, 0.0))
        return EncoderOutputs(row(self.speech, 0.0), row(self.audio, 0.0), row(self.padding, True))

    @classmethod
    def of_rows(cls, rows: Sequence[Row], device: torch.device) -> "EncoderOutputs":
        """The batch of clips that came alone, each from any device; zero where padded."""
        speech = pad_sequence([to_device(row["speech"], device) for row in rows], batch_first=True)
        if "audio" not in rows[0]:
            return cls(speech)
        audio = pad_sequence([to_device(row["audio"], device) for row in rows], batch_first=True)
        patches = to_device(torch.tensor([len(row["audio"]) for row in rows]), device)
        return cls(speech, audio, torch.arange(audio.shape[1], device=device)[None, :] >= patches[:, None])


# clips [B, N] and their lengths [B] in samples -> their outputs
RunEncoders = Callable[[Tensor, Tensor], EncoderOutputs]


class EncoderOutputCache(Protocol):
    """Where outputs of frozen encoders are found again."""

    def encode(
        self, raw_wav: Tensor, lengths: Tensor, run_encoders: RunEncoders, device: torch.device
    ) -> EncoderOutputs:
        """Outputs, on `device`, for clips [B, N], zero behind their lengths [B] in samples.

        `run_encoders` hears the new ones, there.
        """

    def report(self) -> None:
        """Tell what was found since the last report, over all ranks, each of which must ask."""
