"""A loaded model that hears clips and answers questions about them: what command line and web page share.

What was heard is a value of its own (`EncodedAudio`): a clip is encoded once for any number of questions, and
one model serves several people who each hear another clip.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from salmonn.audio.decode import SAMPLE_RATE, AudioError, load_clip, stream_audio
from salmonn.audio.silence import seconds_of_sound
from salmonn.common.cli import tell
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.data.collate import pad_wavs
from salmonn.inference.long_audio import Span, cut_windows, default_overlap, join_transcripts, list_answers
from salmonn.model import prompts
from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.salmonn import SALMONN, load_for_inference
from salmonn.preflight import require_loadable

_BEYOND = 0.1  # s, read of a clip past what the model hears, so that it is known whether there is more


@dataclass(frozen=True)
class EncodedAudio:
    """Embeddings of audio: a row for each of several clips, or for each window of a long one."""

    embeds: list[Tensor]  # each [A, H], on the CPU
    wav: np.ndarray  # [N] float32 at 16 kHz, of the first row
    cut: list[bool] = field(default_factory=list)  # per clip: it goes on after what was heard
    sound: list[float] = field(default_factory=list)  # per row: seconds from its first to its last sound
    spans: list[Span] = field(default_factory=list)  # of the windows of a long clip
    spelling: list[Tensor] = field(default_factory=list)  # each [A, H]: what spells a row, of models that spell


@dataclass(frozen=True)
class Question:
    """A complete templated prompt, and the task that it stands for, if any."""

    prompt: str
    task: str = ""


@dataclass(frozen=True)
class Answer:
    """Text without special tokens; whether it ended by itself; of a long clip also the text of each window."""

    text: str
    finished: bool
    parts: list[str] = field(default_factory=list)


class InferenceEngine:
    """A model in evaluation mode with the config that says how to run it."""

    def __init__(self, model: SALMONN, config: DictConfig) -> None:
        self.model = model
        self.config = config

    @classmethod
    def load(cls, config: DictConfig, what: str = "this command") -> "InferenceEngine":
        """Load the model that a complete config names. Raises UserError that lists all that is missing to `what`."""
        require_loadable(config, what)
        return cls(load_for_inference(config), config)

    # ---- audio

    def hear(self, clips: Sequence[str | Path | np.ndarray | Sequence[str | Path]]) -> EncodedAudio:
        """Encode clips together; of each what the model hears at once.

        A clip is a file, several files that are heard one after the other, or a waveform [N] float32 at 16 kHz.

        Raises UserError that names every file that cannot be read.
        """
        if not clips:
            raise UserError("no clip to hear: give one or more audio files")
        wavs, problems = [], []
        for clip in clips:
            try:
                wavs.append(clip if isinstance(clip, np.ndarray) else self.read_clip(clip))
            except AudioError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        heard = [wav[: self._limit] for wav in wavs]
        embeds, spelling = self._encode(heard)
        cut = [self.is_cut(wav) for wav in wavs]
        return EncodedAudio(embeds, heard[0], cut, sound_of(heard), spelling=spelling)

    def read_clip(self, paths: str | Path | Sequence[str | Path]) -> np.ndarray:
        """A clip as `hear` takes it, [N] float32 at 16 kHz: what is heard, and a bit more where it goes on.

        Needs no model. Raises AudioError for a file that cannot be read.
        """
        datasets = self.config.datasets
        return load_clip(paths, self.model.max_seconds + _BEYOND, datasets.channel, datasets.expand_cut)

    def is_cut(self, wav: np.ndarray) -> bool:
        """Whether a clip [N] goes on after what the model hears at once."""
        return len(wav) > self._limit

    @property
    def _limit(self) -> int:
        return int(self.model.max_seconds * SAMPLE_RATE)

    def hear_long(self, path: str | Path, overlap: float | None = None) -> EncodedAudio:
        """Encode a file of any length, window by window; `overlap` in seconds, by default `default_overlap`.

        Raises UserError for a file that cannot be read and an overlap that leaves no window.
        """
        return join_encoded([self.hear_windows(batch) for batch in self.read_windows(path, overlap)])

    def read_windows(self, path: str | Path, overlap: float | None = None) -> Iterator[list[tuple[Span, np.ndarray]]]:
        """Read and cut a file as `hear_long` does: as many windows [N] at a time as are encoded together."""
        seconds = self.model.max_seconds
        overlap = default_overlap(seconds) if overlap is None else overlap
        if not 0 <= overlap < seconds:
            raise UserError(f"an overlap of {overlap:g} s: 0 or more, and less than the window of {seconds:g} s")
        try:
            yield from _batches(
                cut_windows(stream_audio(path, self.config.datasets.channel), seconds, overlap),
                self.config.run.batch_size_eval,
            )
        except AudioError as error:
            raise UserError(str(error)) from error

    def hear_windows(self, windows: Sequence[tuple[Span, np.ndarray]]) -> EncodedAudio:
        """Encode some windows of a long clip; `join_encoded` puts all of it together."""
        spans, wavs = zip(*windows, strict=True)
        embeds, spelling = self._encode(wavs)
        return EncodedAudio(embeds, wavs[0], sound=sound_of(wavs), spans=list(spans), spelling=spelling)

    @torch.no_grad()
    def _encode(self, wavs: Sequence[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        """[N] each -> [A, H] each, on the CPU, as it may be kept for long; the same as of the wav alone.

        Also what spells each clip, of models that spell.
        """
        raw_wav, padding_mask = pad_wavs(wavs)
        try:
            with autocast(self.config.run, self.model.device):
                embeds, spelling = self.model.encode_and_spell(raw_wav, padding_mask)
                return [clip.cpu() for clip in embeds], [clip.cpu() for clip in spelling]
        except torch.OutOfMemoryError as error:
            raise UserError("out of GPU memory while hearing: try fewer clips at a time") from error

    # ---- questions

    def question(self, text: str) -> Question:
        """A person's own words about the clip. Raises UserError if there are none."""
        text = text.strip()
        if not text:
            raise UserError("the question is empty: write what you want to know about the clip")
        if prompts.SPEECH_MARKER not in text:
            text = f"<Speech>{prompts.SPEECH_MARKER}</Speech> {text}"
        prompts.split_prompt(text)
        return Question(self.model.config.prompt_template.replace("{}", text, 1))

    def task_question(self, task: str, question: str = "") -> Question:
        """A task's test prompt, with `question` where it has `{}`. Raises UserError where they do not fit."""
        return Question(prompts.task_prompt(self.model.test_prompts, task, question), task)

    # ---- answers

    def ask(
        self,
        heard: EncodedAudio,
        question: Question,
        settings: DictConfig | None = None,
        streamer: BaseStreamer | None = None,
        **library: Any,
    ) -> list[Answer]:
        """Answer a question about each clip; one answer about a long clip, put together from its windows.

        `settings`: a `generate` section instead of the config's. `streamer` (of transformers) is given the
        tokens as they come: for one row and one beam. `library` goes to transformers' generate, as in
        `SALMONN.generate`. Raises UserError when the memory does not suffice.
        """
        *_, answers = self.ask_windows(heard, question, settings, streamer, **library)
        return answers

    def ask_windows(
        self,
        heard: EncodedAudio,
        question: Question,
        settings: DictConfig | None = None,
        streamer: BaseStreamer | None = None,
        **library: Any,
    ) -> Iterator[list[Answer]]:
        """As `ask`; of a long clip, after some windows at a time, the answer so far."""
        settings = self.config.generate if settings is None else settings
        step = self.config.run.batch_size_eval if heard.spans else len(heard.embeds)
        details: list[dict[str, Any]] = []
        for begin in range(0, len(heard.embeds), step):
            embeds, spelling = (clips[begin : begin + step] for clips in (heard.embeds, heard.spelling))
            asked = [question] * len(embeds)
            details += self.answer_rows(embeds, asked, settings, spelling, streamer=streamer, **library)
            yield _answers(details, heard.spans, question)

    def answer_rows(
        self,
        embeds: Sequence[Tensor],
        questions: Sequence[Question],
        settings: DictConfig,
        spelling: Sequence[Tensor] = (),
        **library: Any,
    ) -> list[dict[str, Any]]:
        """Answer each clip's [A, H] a question of its own, in one batch: details as of `SALMONN.generate`.

        `spelling`: what spells each, of models that spell.
        Raises UserError when the memory does not suffice.
        """
        try:
            with autocast(self.config.run, self.model.device):
                chosen = [question.prompt for question in questions]
                return self.model.answer_embeds(embeds, chosen, settings, spelling, **library)
        except torch.OutOfMemoryError as error:
            raise UserError("out of GPU memory: try fewer beams, a shorter answer or fewer clips") from error

    def count_prompt_tokens(self, embeds: Tensor, question: Question) -> int:
        """Tokens that the language model reads before it answers, those of the audio [A, H] included."""
        inputs = build_llm_inputs(self.model.tokenizer, [len(embeds)], [question.prompt], [[]])
        return int(inputs.is_used.sum())


def join_encoded(parts: Sequence[EncodedAudio]) -> EncodedAudio:
    """A long clip of which some windows at a time were heard."""
    embeds = [clip for part in parts for clip in part.embeds]
    sound = [seconds for part in parts for seconds in part.sound]
    spans = [span for part in parts for span in part.spans]
    spelling = [clip for part in parts for clip in part.spelling]
    return EncodedAudio(embeds, parts[0].wav, sound=sound, spans=spans, spelling=spelling)


def sound_of(wavs: Iterable[np.ndarray]) -> list[float]:
    """Seconds from the first to the last sound of each wav [N] at 16 kHz."""
    return [seconds_of_sound(wav, SAMPLE_RATE) for wav in wavs]


def _answers(details: Sequence[dict[str, Any]], spans: Sequence[Span], question: Question) -> list[Answer]:
    """An answer per clip, or the one about the windows of a long clip that are answered."""
    if len(spans) < 2:
        return [Answer(detail["text"], detail["finished"]) for detail in details]
    parts = [detail["text"] for detail in details]
    join = join_transcripts if question.task == prompts.TRANSCRIPT else list_answers
    text = join(parts, spans[: len(parts)])
    return [Answer(text, all(detail["finished"] for detail in details), parts)]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    """The items in lists of `size`, the last one perhaps shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


MOST_BEAMS = 64  # each takes the memory of an answer of its own
LONGEST_QUESTION = 2000  # characters of a stranger's; each takes time and memory of the model


def tell_if_untrained(config: DictConfig) -> None:
    """Without a checkpoint nothing answers that has learned to."""
    if not config.model.ckpt:
        tell("note: no checkpoint is given (--ckpt FILE): the connector is untrained, its answers mean nothing")
