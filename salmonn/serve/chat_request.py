"""What a client sends to /v1/chat/completions: read strictly; nothing that changes an answer is left unheeded."""

import base64
import binascii
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.inference.engine import LONGEST_QUESTION, InferenceEngine
from salmonn.serve.batches import Asked
from salmonn.serve.clips import read_bytes
from salmonn.serve.errors import RefusedError

MOST_CHOICES = 8  # answers to one request; each takes a row of a batch
MOST_TOKENS = 2048  # of an answer
_REPEATED = 80  # characters of what a client sent, in what it is told: that may be megabytes

# Parameters of OpenAI's that are taken where they ask for nothing, as many clients send them.
_NEUTRAL: dict[str, tuple] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "stop": ([], ""), "tools": ([],), "tool_choice": ("none", "auto"), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "store": (False,), "seed": (), "audio": (), "reasoning_effort": ("none",),
}  # fmt: skip
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "parallel_tool_calls")

_WORDS = {
    "extra_forbidden": "no such field here",
    "list_type": "give a list of parts, one of them input_audio",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Words of the question."""

    type: Literal["text"]
    text: str


class InputAudio(_Strict):
    """A file in base64; what kind of file it is, its bytes say."""

    data: str
    format: str = ""


class AudioPart(_Strict):
    """The clip."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class Message(_Strict):
    """A message of a conversation; SALMONN answers a single one."""

    role: str
    content: list[Part]
    name: str | None = None


class StreamOptions(_Strict):
    """Whether a stream ends with the counts of tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str
    messages: list[Message]
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def read_request(body: bytes, name: str) -> ChatRequest:
    """A request to the model called `name`. Raises RefusedError for anything that it asks for and would not get."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    for key, value in (request.model_extra or {}).items():
        if key not in (*_NEUTRAL, *_LABELS):
            raise RefusedError(400, f"{key[:_REPEATED]}: no such parameter here", key[:_REPEATED])
        if key in _NEUTRAL and value is not None and value not in _NEUTRAL[key]:
            raise RefusedError(400, f"{key}: not supported here, leave it out", key)
    if request.model != name:
        raise RefusedError(
            404, f"model: {request.model[:_REPEATED]!r} is not served here, {name!r} is", "model", "model_not_found"
        )
    if request.stream_options and not request.stream:
        raise RefusedError(400, "stream_options: only for stream=true", "stream_options")
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        raise RefusedError(400, "max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
    return request


def _refusal(error: ValidationError) -> RefusedError:
    """The first of what is wrong, by its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))[:_REPEATED]  # a key, and the kind of a part, are the client's words
    what = _WORDS.get(first["type"], first["msg"])[: 2 * _REPEATED]
    return RefusedError(400, f"{place or 'the body'}: {what}", place or None)


def asked_of(request: ChatRequest, engine: InferenceEngine, largest_clip: int, cut_long: bool) -> Asked:
    """The question, its clip (of at most so many bytes) and how to search. Raises RefusedError for what cannot be."""
    if [message.role for message in request.messages] != ["user"]:
        told = "give one message, of the role user: SALMONN answers a question about a clip, without what was before"
        raise RefusedError(400, f"messages: {told}", "messages")
    parts = request.messages[0].content
    clips = [part.input_audio for part in parts if isinstance(part, AudioPart)]
    if len(clips) != 1:
        raise RefusedError(400, f"messages.0.content: {len(clips)} parts are input_audio, give one clip", "messages")
    text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    if len(text) > LONGEST_QUESTION:
        raise RefusedError(
            400, f"messages.0.content: {len(text)} characters, up to {LONGEST_QUESTION} are taken", "messages"
        )
    settings = _search(request, engine.config.generate)
    try:
        question = engine.question(text)
        wav = read_bytes(engine, _decode(clips[0].data, largest_clip), "messages.0.content: input_audio")
    except UserError as error:
        raise RefusedError(400, str(error), "messages") from error
    if engine.is_cut(wav) and not cut_long:
        seconds = engine.model.max_seconds
        raise RefusedError(
            400, f"messages.0.content: the clip is longer than {seconds:g} s: send parts of it", "messages"
        )
    is_told = bool(request.stream) and settings.num_beams == 1
    return Asked(wav, question, settings, request.n or 1, is_told)


def _decode(data: str, most: int) -> bytes:
    """The bytes of a file, also out of a data URL. Raises RefusedError for what is too large, and for no base64."""
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        clip = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "messages.0.content: input_audio.data is no base64", "messages") from error
    if len(clip) > most:
        told = f"the clip has {len(clip) / 2**20:.1f} MB, up to {most / 2**20:.3g} MB are taken"
        raise RefusedError(413, f"messages.0.content: {told}", "messages")
    return clip


def _search(request: ChatRequest, generate: DictConfig) -> DictConfig:
    """The server's `generate` section with what the client chose. Raises RefusedError for what would have no effect."""
    chosen: dict[str, Any] = {}
    if most := request.max_tokens or request.max_completion_tokens:
        chosen["max_new_tokens"] = most
    if request.temperature is not None:
        chosen["do_sample"] = request.temperature > 0
        if request.temperature > 0:
            chosen |= {"temperature": request.temperature, "num_beams": 1}
    if request.top_p is not None:
        chosen["top_p"] = request.top_p
    settings = generate_config(OmegaConf.merge(generate, chosen))
    if not settings.do_sample:
        if request.top_p not in (None, 1):
            raise RefusedError(400, "top_p: is of sampling, which needs a temperature above 0", "top_p")
        if (request.n or 1) > 1:
            raise RefusedError(400, "n: the answers would be the same; several need a temperature above 0", "n")
    return settings
