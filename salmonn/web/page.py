"""What the web page does: hear a clip and draw it, answer questions about it as they come, tell what went wrong."""

import base64
import html
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial, wraps
from itertools import zip_longest
from pathlib import Path
from typing import Any, ParamSpec

import gradio as gr
import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.audio.decode import AudioError, inspect_header
from salmonn.audio.silence import too_little
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.inference.engine import LONGEST_QUESTION, Answer, EncodedAudio, Question, join_encoded
from salmonn.inference.long_audio import clock
from salmonn.model.lineage import Training, known_tasks
from salmonn.model.prompts import asks_question
from salmonn.web.conversation import NO_CLIP, UNWRITTEN, Conversation, Encoding, Turn
from salmonn.web.pictures import picture_clip
from salmonn.web.request_queue import RequestQueue

TWO_CLIPS = "speaker_verification"  # the task that is about two clips
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

    def __init__(
        self,
        queue: RequestQueue,
        examples: Mapping[str, str],
        max_minutes: float = 60,
        lineage: Sequence[Training] = (),
    ) -> None:
        self.queue, self.engine = queue, queue.engine
        self.examples = examples
        self.max_minutes = max_minutes  # of a clip that is heard in windows
        self.lineage = lineage  # the runs that the model comes from, as far as they are known

    @property
    def tasks(self) -> tuple[list[str], list[str]]:
        """The tasks that have a prompt: those that the model was trained for (all where nobody knows), and others."""
        prompted, known = list(self.engine.model.test_prompts), known_tasks(self.lineage)
        trained = prompted if known is None else [task for task in prompted if task in known]
        return trained, [task for task in prompted if task not in trained]

    def about(self) -> str:
        """HTML that says which model it is, and what it was trained on."""
        config = self.engine.config.model
        loaded = {
            "model": "/".join(Path(config.ckpt).parts[-2:]) or "without a checkpoint, its answers mean nothing",
            "language model": Path(config.llama_path).name,
            "hears with": " and ".join(Path(path).name for path in (config.whisper_path, config.beats_path) if path),
        }
        told = html.escape("; ".join(f"{what}: {name}" for what, name in loaded.items()))
        if not config.ckpt:
            return f"<p>{told}</p>"
        runs = "".join(f"<li>{html.escape(_told_run(run))}</li>" for run in self.lineage)
        trained = f"Trained, one after the other:<ul>{runs}</ul>" if runs else "What it was trained on is not known."
        return f"<details><summary>{told}</summary>{trained}</details>"

    def choose(self, number: int) -> str | None:
        """The file of an example."""
        files = list(self.examples.values())
        return files[number] if isinstance(number, int) and 0 <= number < len(files) else None

    def clear(self, conversation: Conversation) -> tuple[list, str]:
        """Forget what was asked, and stop answering it: (chat, note)."""
        conversation.clear()
        return conversation.messages, ""

    # ---- hearing

    @changes
    def listen(
        self,
        conversation: Conversation,
        path: str | None,
        in_windows: bool,
        second: str | None = None,
        keeps_turns: bool = False,
    ) -> Iterator[Row]:
        """Hear a clip, or none: (conversation, chat, picture, note about it, note about answers, error).

        `second`: heard after it. `keeps_turns`: it is the same one, heard in another way.
        """
        before = conversation.encoding
        if path is None and before and before.is_empty:
            yield (gr.skip(),) * 6  # the page has taken away what cannot be heard; why stays to be read
            return
        encoding = conversation.begin(second is not None, keeps_turns)
        picture, note, error = "", "Listening …" if path else "", ""
        try:
            yield conversation, conversation.messages, picture, note_box(note, is_busy=True), "", error
            if path is not None:
                self.queue.require_room()
                hear = self._hear_in_windows if in_windows and not second else self._hear_at_once
                for news in hear(path, encoding, *([second] if second else [])):
                    if conversation.encoding is not encoding:  # another clip was chosen: this one is of the past
                        return
                    picture, note = news or (picture, note)
                    yield conversation, conversation.messages, picture, note_box(note, is_busy=True), "", error
        except CancelledError:
            note = "Stopped before anything was heard."
        except Exception as problem:
            picture, note, error = "", "", error_box(problem, path, second)
        finally:
            encoding.over.set()
        if conversation.encoding is encoding:
            yield conversation, conversation.messages, picture, note_box(note), "", error

    def _hear_at_once(self, path: str, encoding: Encoding, *more: str) -> Iterator[tuple[str, str] | None]:
        """Hear the beginning of a clip, or of several in a row: (picture, note), or None while nothing is new."""
        heard = yield from self.queue.take(partial(self.engine.hear, [[path, *more]]), encoding.stop)
        picture = yield from self.queue.take(partial(self._picture, path, heard), encoding.stop)
        encoding.heard = heard
        note = f"Only the first {self.engine.model.max_seconds:g} s are heard." if any(heard.cut) else ""
        yield picture, _with_too_little(note, heard)

    def drop_unheard(self, conversation: Conversation) -> Any:
        """What the player of the clip holds now: nothing where it could not be heard, which is not to look as if."""
        encoding = conversation.encoding
        return None if encoding and encoding.is_empty and not encoding.is_pair else gr.skip()

    def _hear_in_windows(self, path: str, encoding: Encoding) -> Iterator[tuple[str, str] | None]:
        """Hear a clip of any length: as above. Others have their turn in between; stopped, it keeps what it heard."""
        seconds = self._length(path)
        parts: list[EncodedAudio] = []
        picture, how = "", "heard"
        try:
            for windows in self.engine.read_windows(path):
                parts.append((yield from self.queue.take(partial(self.engine.hear_windows, windows), encoding.stop)))
                end = parts[-1].spans[-1].end
                if end > 60 * self.max_minutes:
                    raise self._too_long(path, f"more than {self.max_minutes:g}")
                picture = picture or (yield from self.queue.take(partial(self._picture, path, parts[0]), encoding.stop))
                yield picture, f"Heard {clock(end)}" + (f" of {clock(seconds)} …" if seconds else " …")
        except CancelledError:
            if not parts:
                raise
            how = "heard until it was stopped"
        heard = encoding.heard = join_encoded(parts)
        end, n_windows = heard.spans[-1].end, len(heard.spans)
        note = f"{end:.1f} s, {how} in {n_windows} windows; the picture shows the first." * (n_windows > 1)
        yield picture, _with_too_little(note, heard)

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
            "Choose a part of it, or ask whoever runs this page for more (--max-minutes)."
        )

    def _picture(self, path: str, heard: EncodedAudio) -> str:
        log_mel = self.engine.model.log_mel
        bands = log_mel(torch.from_numpy(heard.wav)[None].to(self.engine.model.device))[0].float().cpu().numpy()
        png = picture_clip(heard.wav, bands, log_mel.sampling_rate / log_mel.hop, log_mel.band_hertz.numpy())
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
        yield conversation.messages, left, note_box("Answering …", is_busy=True), error
        try:
            for note in notes:
                yield conversation.messages, left, note_box(note, is_busy=True), error
        except CancelledError:
            note = "Stopped." if turn in conversation.turns else ""
            if turn.answer == UNWRITTEN:
                turn.answer = "(stopped)"
        except Exception as problem:
            note, error = "", error_box(problem)
            conversation.drop(turn)
        finally:
            turn.is_over = True
        yield conversation.messages, left, note_box(note, conversation.is_busy), error

    def _begin(self, conversation: Conversation, text: str, task: str, *settings: Any) -> tuple[Turn, Iterator[str]]:
        """A turn of the conversation, and what writes its answer. Raises UserError for what cannot be asked."""
        *search, scaling = settings
        question, shown = self._question(text, task)
        generate = answer_settings(self.engine.config.generate, *search)
        self.queue.require_room()
        if task == TWO_CLIPS and conversation.encoding and not conversation.encoding.is_pair:
            raise UserError("This is about two clips: give a second one first, below the first.")
        turn = conversation.ask(shown)
        return turn, self._write(turn, question, generate, scaling)

    def _write(self, turn: Turn, question: Question, generate: DictConfig, scaling: float | None) -> Iterator[str]:
        """Write into a round what is answered as it comes; yields a note now and then, "" for none."""
        encoding = turn.encoding
        while not encoding.over.wait(_EVERY) and not turn.stop.is_set():
            yield "Waiting until the clip is heard."
        if turn.stop.is_set():
            raise CancelledError
        if encoding.heard is None:
            raise UserError(NO_CLIP)
        last, asked = Answer("", finished=True), time.monotonic()
        for answer in self.queue.answer(encoding.heard, question, generate, scaling, turn.stop):
            last = answer or last
            turn.answer = last.text or turn.answer
            yield "Answering …" if answer else "Waiting: the model is busy with other requests."
        turn.answer = last.text or "(no words)"
        took = f"Answered in {time.monotonic() - asked:.1f} s."
        yield took if last.finished else f"{took} It was cut off: no answer is longer here."

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


def _with_too_little(note: str, heard: EncodedAudio) -> str:
    """A note about a clip, and that hardly anything is to be heard in it."""
    problem = too_little(sum(heard.sound))
    return f"{note} As far as it was heard, {problem}: is the microphone on?".strip() if problem else note


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


def _told_run(run: Training) -> str:
    """A run, for a person."""
    data = f" on {run.data}" if run.data else ""
    tasks = f": {', '.join(map(task_label, run.tasks))}" if run.tasks else ", of which nothing is known"
    return f"{run.run}{data}{tasks}"


def note_box(text: str, is_busy: bool = False) -> str:
    """A line that explains; "" for none. `is_busy`: something goes on that can be stopped."""
    return f'<p class="note{" busy" * is_busy}" role="status">{html.escape(text)}</p>' if text else ""


def error_box(error: Exception, *paths: str | None) -> str:
    """A message for the visitor; of `paths`, where uploads lie on this machine, the files' names are told."""
    if isinstance(error, UserError):
        text = str(error)
        for path in filter(None, paths):
            text = text.replace(path, Path(path).name)
    else:
        logging.getLogger(__name__).error("a request of the web page failed", exc_info=error)
        text = f"Something went wrong ({type(error).__name__}). The log of the server tells more."
    return f'<div role="alert">{html.escape(text)}</div>'
