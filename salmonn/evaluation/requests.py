"""Requests to the model and their answers; the exchange of audio between requests. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from salmonn.common.errors import UserError
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.metrics.choices import Pick
from salmonn.model.prompts import fill_question


@dataclass(frozen=True)
class Request:
    """One answer to generate; in a list of requests no two hear the same entry."""

    position: int  # of the clip in the set
    audio_index: int  # entry of the dataset that is heard
    prompt: str  # complete, with template and question


@dataclass(frozen=True)
class Outcome:
    """What came of a request, whatever was asked; `unreadable` holds the reason where the clip could not be heard."""

    unreadable: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Prediction(Outcome):
    """A generated text."""

    text: str = ""
    n_tokens: int = 0
    finished: bool = False  # the model ended the answer by itself

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> "Prediction":
        """What the model's `generate` tells of an answer."""
        return cls(detail["text"].strip(), len(detail["token_ids"]), detail["finished"])


@dataclass
class ChoiceAnswers:
    """What the model chose by position in the set; the controls are None where they were not run."""

    heard: Mapping[int, Pick]
    shuffled: Mapping[int, Pick] | None = None  # hearing other clips
    unheard: Mapping[int, Prediction] | None = None  # answers without any audio
    of_unheard: Mapping[int, Pick] | None = None


def plan_requests(clips: Sequence[EvalExample], prompts: Mapping[str, str], prompt_path: str) -> list[Request]:
    """One request per clip with its complete prompt. Raises UserError for a task without test prompt."""
    for task in sorted({clip.task for clip in clips} - set(prompts)):
        raise UserError(f"{prompt_path} has no prompt for the task {task} (it has {', '.join(prompts)})")
    return [
        Request(position, clip.index, fill_question(prompts[clip.task], clip.asked))
        for position, clip in enumerate(clips)
    ]


def shuffle_audio(requests: Sequence[Request]) -> list[Request]:
    """Give request i the audio of request (i + n // 2) mod n: no request keeps its own.

    Of one request it is empty: there is nothing to exchange with.
    """
    n = len(requests)
    if n < 2:
        return []
    return [replace(request, audio_index=requests[(i + n // 2) % n].audio_index) for i, request in enumerate(requests)]
