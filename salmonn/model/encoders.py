"""Outputs of Whisper and BEATs for a batch of clips, before the connector."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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

    def first_frames(self, n: int) -> "EncoderOutputs":
        """The beginning of each clip, n frames of both encoders."""
        if self.audio is None or self.padding is None:
            return EncoderOutputs(self.speech[:, :n])
        return EncoderOutputs(self.speech[:, :n], self.audio[:, :n], self.padding[:, :n])

    @classmethod
    def of_rows(cls, rows: Sequence[Row], device: torch.device) -> "EncoderOutputs":
        """The batch of clips that came alone, each from any device; zero where padded."""
        speech = pad_sequence([row["speech"].to(device) for row in rows], batch_first=True)
        if "audio" not in rows[0]:
            return cls(speech)
        audio = pad_sequence([row["audio"].to(device) for row in rows], batch_first=True)
        patches = torch.tensor([len(row["audio"]) for row in rows], device=device)
        return cls(speech, audio, torch.arange(audio.shape[1], device=device)[None, :] >= patches[:, None])


# clips [B, N] and their lengths [B] in samples -> their outputs
RunEncoders = Callable[[Tensor, Tensor], EncoderOutputs]


class EncoderOutputCache(Protocol):
    """Where outputs of frozen encoders are found again."""

    def encode(self, raw_wav: Tensor, lengths: Tensor, run_encoders: RunEncoders) -> EncoderOutputs:
        """Outputs for clips [B, N], zero behind their lengths [B] in samples; `run_encoders` hears the new ones."""
