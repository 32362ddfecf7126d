"""What the web page does: hear a clip and draw it, answer questions about it as they come, tell what went wrong."""

import base64
import html
import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.audio import AudioError, load_clip
from salmonn.errors import UserError
from salmonn.pictures import picture_clip
from salmonn.session import Heard, Question
from salmonn.turns import Turns

# What a task is called on its button; others by their name
TASK_LABELS = {
    "asr": "Transcribe",
    "audiocaption": "Describe the sound",
    "audiocaption_v2": "Describe in detail",
    "translation_ec": "Translate into Chinese",
    "translation_en2de": "Translate into German",
    "translation_en2ja": "Translate into Japanese",
    "phone_recognition": "Phonemes",
    "emotion_recognition": "Emotion",
    "music_description": "Describe the music",
    "QA": "Ask about it",
    "speech_separation": "Two speakers",
    "speaker_verification": "Same speaker?",
    "gender_recognition": "Man or woman?",
    "gender_QA": "Ask about the speaker",
    "audio_story_telling": "Tell a story",
    "keywords": "Keywords",
    "slot_filling": "Ask about the request",
    "speech_query": "Answer the spoken question",
    "speech_audio_coreasoning": "Speech and sounds together",
}


@dataclass(frozen=True)
class Talk:
    """What one visitor hears and has asked about it; kept by the server."""

    heard: Heard | None = None
    rounds: tuple[tuple[str, str], ...] = ()  # (question, answer)
    stop: threading.Event = field(default_factory=threading.Event, compare=False)  # ends the answer under way

    def messages(self) -> list[dict[str, str]]:
        """As the chat shows it."""
        return [
            {"role": role, "content": text}
            for round_ in self.rounds
            for role, text in zip(("user", "assistant"), round_, strict=True)
        ]


class Page:
    """What the page does; every method that it calls ends with a message for the error box, "" for none."""

    def __init__(self, turns: Turns, examples: Mapping[str, str]) -> None:
        self.turns, self.listener = turns, turns.listener
        self.examples = examples

    def listen(self, path: str | None, in_windows: bool) -> tuple[Talk, list, str, str, str]:
        """Hear another clip, or none: (talk, chat, picture, note, error)."""
        if path is None:
            return Talk(), [], "", "", ""
        try:
            heard, picture, note = self.turns.run(partial(self._hear, path, in_windows))
        except Exception as error:
            return Talk(), [], "", "", error_box(error, path)
        return Talk(heard), [], picture, note, ""

    def _hear(self, path: str, in_windows: bool) -> tuple[Heard, str, str]:
        seconds = self.listener.model.max_seconds
        heard = self.listener.hear_long(path) if in_windows else self.listener.hear([path])
        note = ""
        if len(heard.spans) > 1:
            note = f"{heard.spans[-1].end:.1f} s, heard in {len(heard.spans)} windows; the picture shows the first."
        elif any(heard.cut):
            note = f"Only the first {seconds:g} s are heard."
        return heard, self._picture(path), note_box(note)

    def _picture(self, path: str) -> str:
        log_mel = self.listener.model.log_mel
        try:
            wav = load_clip(path, log_mel.max_seconds, self.listener.config.datasets.channel)
        except AudioError as error:
            raise UserError(str(error)) from error
        bands = log_mel(torch.from_numpy(wav)[None].to(self.listener.model.device))[0].float().cpu().numpy()
        png = picture_clip(wav, bands, log_mel.sampling_rate / log_mel.hop)
        what = html.escape(f"Waveform and log-mel spectrogram of {Path(path).name}", quote=True)
        return f'<img alt="{what}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'

    def choose(self, name: str | None) -> str | None:
        """The file of an example."""
        return self.examples.get(name or "")

    def clear(self, talk: Talk | None) -> Talk:
        """Forget what was asked; the clip stays."""
        return replace(talk, rounds=()) if talk else Talk()

    def stop(self, talk: Talk | None) -> None:
        """End the answer under way."""
        if talk:
            talk.stop.set()

    def ask(
        self, talk: Talk | None, text: str, *settings: Any, task: str = ""
    ) -> Iterator[tuple[Talk, list, Any, str, str]]:
        """Answer a question, piece by piece: (talk, chat, what the question's field holds now, note, error).

        `settings`: those of `answer_settings`, then the LoRA scaling.
        """
        *search, scaling = settings
        talk = talk or Talk()
        talk.stop.clear()
        left = "" if self._takes_text(task) else gr.skip()
        try:
            if talk.heard is None:
                raise UserError("No clip yet: upload or record one first.")
            question, shown = self._question(text, task)
            generate = answer_settings(self.listener.config.generate, *search)
            now = talk
            with closing(self.turns.answer(talk.heard, question, generate, scaling, talk.stop)) as answers:
                for answer in answers:
                    now = replace(talk, rounds=(*talk.rounds, (shown, answer.text or "…")))
                    yield now, now.messages(), left, "", ""
                    left = gr.skip()  # the next question may be in it already
            if not answer.finished:
                note = f"The answer was cut off after {generate.max_new_tokens} tokens (generate.max_new_tokens)."
                yield now, now.messages(), left, note_box(note), ""
        except CancelledError:
            yield now, now.messages(), left, note_box("Stopped."), ""
        except Exception as error:
            yield talk, talk.messages(), gr.skip(), "", error_box(error)

    def _takes_text(self, task: str) -> bool:
        return not task or "{}" in self.listener.model.test_prompts[task]

    def _question(self, text: str, task: str) -> tuple[Question, str]:
        """What the model is asked, and how the chat shows it."""
        if not task:
            return self.listener.question(text), text.strip()
        if self._takes_text(task):
            if not text.strip():
                raise UserError("Write a question first, then press this button.")
            return self.listener.task_question(task, text), text.strip()
        return self.listener.task_question(task), task_label(task)


def answer_settings(generate: DictConfig, beams: int, sample: bool, temperature: float, top_p: float) -> DictConfig:
    """A `generate` section with what the visitor chose."""
    chosen = {"num_beams": int(beams), "do_sample": sample, "temperature": temperature, "top_p": top_p}
    return OmegaConf.merge(generate, chosen)


def task_label(task: str) -> str:
    """How a task's button is called."""
    return TASK_LABELS.get(task, task.replace("_", " "))


def note_box(text: str) -> str:
    """A line that explains; "" for none."""
    return f'<p class="note" role="status">{html.escape(text)}</p>' if text else ""


def error_box(error: Exception, path: str = "") -> str:
    """A message for the visitor; `path`, where an upload lies on this machine, is told as the file's name."""
    if isinstance(error, UserError):
        text = str(error).replace(path, Path(path).name) if path else str(error)
    else:
        logging.getLogger(__name__).error("a request of the web page failed", exc_info=error)
        text = f"Something went wrong ({type(error).__name__}). The log of the server tells more."
    return f'<div role="alert">{html.escape(text)}</div>'
