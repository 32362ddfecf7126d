"""What the web page does: hear a clip and draw it, answer questions about it as they come, tell what went wrong."""

import base64
import html
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from functools import partial, wraps
from itertools import zip_longest
from pathlib import Path
from typing import Any, ParamSpec

import gradio as gr
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.audio.decode import AudioError, inspect_header
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.inference.engine import LONGEST_QUESTION, Answer, EncodedAudio, Question, join_encoded
from salmonn.inference.long_audio import clock
from salmonn.model.prompts import asks_question
from salmonn.web.conversation import NO_CLIP, UNWRITTEN, Conversation, Hearing, Turn
from salmonn.web.pictures import picture_clip
from salmonn.web.request_queue import RequestQueue

_EVERY = 0.5  # s, between two looks at whether a clip is heard

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


Row = tuple[Any, ...]  # what the parts of the page show now; gr.skip() leaves one as it is
Arguments = ParamSpec("Arguments")


def changes(rows: Callable[Arguments, Iterator[Row]]) -> Callable[Arguments, Iterator[Row]]:
    """Send of each row what differs from the row before, so that nothing reaches the browser twice."""

    @wraps(rows)
    def changed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Row]:
        before: Row = ()
        for row in rows(*args, **kwargs):
            yield tuple(gr.skip() if old == new else new for old, new in zip_longest(before, row))
            before = row

    return changed


class Page:
    """What the page does; every request ends with a message for the error box, "" for none."""

    def __init__(self, queue: RequestQueue, examples: Mapping[str, str], max_minutes: float = 60) -> None:
        self.queue, self.engine = queue, queue.engine
        self.examples = examples
        self.max_minutes = max_minutes  # of a clip that is heard in windows

    def choose(self, name: str | None) -> str | None:
        """The file of an example."""
        return self.examples.get(name or "")

    def clear(self, conversation: Conversation) -> tuple[list, str]:
        """Forget what was asked, and stop answering it: (chat, note)."""
        conversation.clear()
        return conversation.messages, ""

    # ---- hearing

    @changes
    def listen(self, conversation: Conversation, path: str | None, in_windows: bool) -> Iterator[Row]:
        """Hear another clip, or none: (conversation, chat, picture, note about it, note about answers, error)."""
        hearing = conversation.begin()
        picture, note, error = "", "Listening …" if path else "", ""
        try:
            yield conversation, conversation.messages, picture, note_box(note), "", error
            if path is not None:
                self.queue.require_room()
                hear = self._hear_in_windows if in_windows else self._hear_at_once
                for news in hear(path, hearing):
                    if conversation.hearing is not hearing:  # another clip was chosen: this one is of the past
                        return
                    picture, note = news or (picture, note)
                    yield conversation, conversation.messages, picture, note_box(note), "", error
        except CancelledError:
            note = "Stopped before anything was heard."
        except Exception as problem:
            picture, note, error = "", "", error_box(problem, path or "")
        finally:
            hearing.over.set()
        if conversation.hearing is hearing:
            yield conversation, conversation.messages, picture, note_box(note), "", error

    def _hear_at_once(self, path: str, hearing: Hearing) -> Iterator[tuple[str, str] | None]:
        """Hear the beginning of a clip: (picture, note), or None while nothing is new."""
        heard = yield from self.queue.take(partial(self.engine.hear, [path]), hearing.stop)
        picture = yield from self.queue.take(partial(self._picture, path, heard), hearing.stop)
        hearing.heard = heard
        yield picture, f"Only the first {self.engine.model.max_seconds:g} s are heard." if any(heard.cut) else ""

    def _hear_in_windows(self, path: str, hearing: Hearing) -> Iterator[tuple[str, str] | None]:
        """Hear a clip of any length: as above. Others have their turn in between; stopped, it keeps what it heard."""
        seconds = self._length(path)
        parts: list[EncodedAudio] = []
        picture, how = "", "heard"
        try:
            for windows in self.engine.read_windows(path):
                parts.append((yield from self.queue.take(partial(self.engine.hear_windows, windows), hearing.stop)))
                end = parts[-1].spans[-1].end
                if end > 60 * self.max_minutes:
                    raise self._too_long(path, f"more than {self.max_minutes:g}")
                picture = picture or (yield from self.queue.take(partial(self._picture, path, parts[0]), hearing.stop))
                yield picture, f"Heard {clock(end)}" + (f" of {clock(seconds)} …" if seconds else " …")
        except CancelledError:
            if not parts:
                raise
            how = "heard until it was stopped"
        heard = hearing.heard = join_encoded(parts)
        end, n_windows = heard.spans[-1].end, len(heard.spans)
        yield picture, f"{end:.1f} s, {how} in {n_windows} windows; the picture shows the first." * (n_windows > 1)

    def _length(self, path: str) -> float:
        """Seconds of a clip, 0 if its header does not tell. Raises UserError for one that is not heard in windows."""
        try:
            seconds = inspect_header(path).seconds
        except AudioError as error:
            raise UserError(str(error)) from error
        if seconds > 60 * self.max_minutes:
            raise self._too_long(path, f"{seconds / 60:.1f}")
        return seconds

    def _too_long(self, path: str, minutes: str) -> UserError:
        return UserError(
            f"{path}: {minutes} minutes long; in windows, up to {self.max_minutes:g} minutes are heard here. "
            "Choose a part of it, or start the page with a larger --max-minutes."
        )

    def _picture(self, path: str, heard: EncodedAudio) -> str:
        log_mel = self.engine.model.log_mel
        bands = log_mel(torch.from_numpy(heard.wav)[None].to(self.engine.model.device))[0].float().cpu().numpy()
        png = picture_clip(heard.wav, bands, log_mel.sampling_rate / log_mel.hop)
        what = html.escape(f"Waveform and log-mel spectrogram of {Path(path).name}", quote=True)
        return f'<img alt="{what}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'

    # ---- answering

    @changes
    def ask(self, conversation: Conversation, text: str, *settings: Any, task: str = "") -> Iterator[Row]:
        """Answer a question, piece by piece: (chat, what the question's field holds now, note, error).

        `settings`: those of `answer_settings`, then the LoRA scaling.
        """
        try:
            turn, notes = self._begin(conversation, text, task, *settings)
        except Exception as problem:
            yield conversation.messages, gr.skip(), "", error_box(problem)
            return
        left, note, error = "" if self._takes_text(task) else gr.skip(), "", ""
        yield conversation.messages, left, note, error
        try:
            for note in notes:
                yield conversation.messages, left, note_box(note), error
        except CancelledError:
            note = "Stopped." if turn in conversation.turns else ""
            if turn.answer == UNWRITTEN:
                turn.answer = "(stopped)"
        except Exception as problem:
            note, error = "", error_box(problem)
            conversation.drop(turn)
        yield conversation.messages, left, note_box(note), error

    def _begin(self, conversation: Conversation, text: str, task: str, *settings: Any) -> tuple[Turn, Iterator[str]]:
        """A turn of the conversation, and what writes its answer. Raises UserError for what cannot be asked."""
        *search, scaling = settings
        question, shown = self._question(text, task)
        generate = answer_settings(self.engine.config.generate, *search)
        self.queue.require_room()
        turn = conversation.ask(shown)
        return turn, self._write(turn, question, generate, scaling)

    def _write(self, turn: Turn, question: Question, generate: DictConfig, scaling: float | None) -> Iterator[str]:
        """Write into a round what is answered as it comes; yields a note now and then, "" for none."""
        hearing = turn.hearing
        while not hearing.over.wait(_EVERY) and not turn.stop.is_set():
            yield "Waiting until the clip is heard."
        if turn.stop.is_set():
            raise CancelledError
        if hearing.heard is None:
            raise UserError(NO_CLIP)
        last = Answer("", finished=True)
        for answer in self.queue.answer(hearing.heard, question, generate, scaling, turn.stop):
            last = answer or last
            turn.answer = last.text or turn.answer
            yield "" if answer else "Waiting: the model is busy with other requests."
        turn.answer = last.text or "(no words)"
        n_tokens = self.engine.config.generate.max_new_tokens
        yield "" if last.finished else f"The answer was cut off after {n_tokens} tokens (generate.max_new_tokens)."

    def _takes_text(self, task: str) -> bool:
        return not task or asks_question(self.engine.model.test_prompts[task])

    def _question(self, text: str, task: str) -> tuple[Question, str]:
        """What the model is asked, and how the chat shows it. Raises UserError for what it is not asked."""
        if len(text) > LONGEST_QUESTION:
            raise UserError(f"The question has {len(text)} characters: up to {LONGEST_QUESTION} are taken.")
        if not task:
            return self.engine.question(text), text.strip()
        if self._takes_text(task):
            if not text.strip():
                raise UserError("Write a question first, then press this button.")
            return self.engine.task_question(task, text), text.strip()
        return self.engine.task_question(task), task_label(task)


def answer_settings(generate: DictConfig, beams: int, sample: bool, temperature: float, top_p: float) -> DictConfig:
    """A `generate` section with what the visitor chose. Raises UserError for what no slider offers."""
    chosen = {
        "num_beams": int(beams),
        "do_sample": bool(sample),  # plain values: text would be read as an order to look something up here
        "temperature": float(temperature),
        "top_p": float(top_p),
    }
    return generate_config(OmegaConf.merge(generate, chosen))


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
