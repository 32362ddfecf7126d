"""The server: OpenAI's /v1/chat/completions about one clip, and /v1/models."""

import asyncio
import json
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.audio.silence import seconds_of_sound, too_little
from salmonn.common.errors import UserError
from salmonn.serve.batches import Answered, Asked, Batches
from salmonn.serve.chat_request import ChatRequest, asked_of, read_request
from salmonn.serve.errors import RefusedError, answer_errors, failure, refuse
from salmonn.web.gate import Gate

_EVERY = 0.05  # s, between two looks at whether something new is written
_SLOWEST_BODY = 60.0  # s, in which a request is sent
_NOT_SURE = re.compile(r"[^\x00-\x7f]+$")  # letters of several bytes: bytes that follow may make others of them
_FORM = 2**16  # bytes of a request besides its clip


@dataclass(frozen=True)
class Service:
    """What is served, to whom, and how much at a time."""

    name: str = "salmonn"  # of the model
    key: str = ""  # that clients show; "": none is asked for
    largest_clip: int = 25 * 2**20  # bytes
    most_waiting: int = 32  # requests, those under way included
    seconds: float = 600  # until an answer is there
    cut_long: bool = False  # hear the beginning of a clip that is too long, instead of refusing it


class Door:
    """ASGI middleware that asks for the key, and lets in as many as may wait; none after `close`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.ends = math.inf  # by time.monotonic
        self._inside = 0

    def close(self, seconds: float) -> None:
        """Let nobody else in; those inside have so many seconds."""
        self.ends = time.monotonic() + seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, problem = self._problem(scope)
        if problem:
            await refuse(problem, status)(scope, receive, send)
            return
        self._inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside -= 1

    def _problem(self, scope: Scope) -> tuple[int, str]:
        """Status and words for whom is not let in; "" for others."""
        if self.service.key and not compare_digest(_shown_key(scope), self.service.key.encode()):
            return 401, "Wrong or missing API key: send it as Authorization: Bearer KEY."
        if self.ends < math.inf:
            return 503, "The server is ending."
        if self._inside >= self.service.most_waiting:
            return 429, f"{self._inside} requests are waiting already: try again later."
        return 0, ""


def _shown_key(scope: Scope) -> bytes:
    """What a request has behind Bearer, b"" for nothing."""
    shown = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, key = shown.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


class Api:
    """The server's answers."""

    def __init__(self, batches: Batches, service: Service) -> None:
        self.batches, self.service = batches, service
        self.begun = int(time.time())
        self.app = FastAPI(openapi_url=None)
        self.app.get("/v1/models")(self.models)
        self.app.get("/v1/models/{name:path}")(self.model)
        self.app.post("/v1/chat/completions")(self.complete)
        answer_errors(self.app)
        self.door = Door(self.app, service)

    def guarded(self, names: set[str]) -> ASGIApp:
        """The whole application, for whoever asks by one of these names."""
        largest = self.service.largest_clip * 4 // 3 + _FORM
        return Gate(self.door, names, largest, largest, refuse)

    def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [self.model(self.service.name)]}

    def model(self, name: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        if name != self.service.name:
            raise RefusedError(
                404, f"{name!r} is not served here, {self.service.name!r} is", "model", "model_not_found"
            )
        return {"id": name, "object": "model", "created": self.begun, "owned_by": "salmonn"}

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            async with asyncio.timeout(_SLOWEST_BODY):
                body = await request.body()
        except TimeoutError as error:
            raise RefusedError(408, f"The request was not sent within {_SLOWEST_BODY:g} s.") from error
        chat, asked = await run_in_threadpool(self._read, body)
        self.batches.ask(asked)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.service.name}
        if problem := too_little(seconds_of_sound(asked.wav, SAMPLE_RATE)):
            head["warning"] = f"the clip: {problem}"
        if chat.stream:
            events = self._events(chat, asked, request, {**head, "object": "chat.completion.chunk"})
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            async for _ in self._looks(asked, request):
                pass
            answered = _answered(asked)
        finally:
            asked.left.set()
        return JSONResponse({**head, "object": "chat.completion", **_completion(answered)})

    def _read(self, body: bytes) -> tuple[ChatRequest, Asked]:
        chat = read_request(body, self.service.name)
        return chat, asked_of(chat, self.batches.engine, self.service.largest_clip, self.service.cut_long)

    async def _events(self, chat: ChatRequest, asked: Asked, request: Request, head: dict) -> AsyncIterator[str]:
        """Server-sent events: what is new of each answer, why it ended, [DONE]; what goes wrong is an event, too."""
        sent = [""] * asked.n
        try:
            yield _event(
                {**head, "choices": [_choice(i, {"role": "assistant", "content": ""}) for i in range(asked.n)]}
            )
            async for _ in self._looks(asked, request):
                if new := _news(sent, [_NOT_SURE.sub("", text) for text in asked.written]):
                    yield _event({**head, "choices": new})
            answered = _answered(asked)
            if new := _news(sent, [detail["text"] for detail in answered.details]):
                yield _event({**head, "choices": new})
            if sent != [detail["text"] for detail in answered.details]:
                raise RuntimeError("the text that was sent is not how the answer begins")
            ends = [_choice(i, {}, _why_ended(detail)) for i, detail in enumerate(answered.details)]
            yield _event({**head, "choices": ends})
            if chat.stream_options and chat.stream_options.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(answered)})
            yield "data: [DONE]\n\n"
        except ClientDisconnect:
            return
        except RefusedError as refusal:
            yield _event(refusal.body)
        except Exception:
            yield _event(failure().body)
        finally:
            asked.left.set()

    async def _looks(self, asked: Asked, request: Request) -> AsyncIterator[None]:
        """Several times a second until it is answered. Raises ClientDisconnect, or RefusedError when time is up."""
        latest = time.monotonic() + self.service.seconds
        while not asked.answers.done():
            yield
            await asyncio.sleep(_EVERY)
            if await request.is_disconnected():
                raise ClientDisconnect
            if time.monotonic() > latest:
                raise RefusedError(503, f"There was no answer within {self.service.seconds:g} s.")
            if time.monotonic() > self.door.ends:
                raise RefusedError(503, "The server is ending.")


def _answered(asked: Asked) -> Answered:
    """What came of a request that is done. Raises RefusedError."""
    try:
        return asked.answers.result()
    except CancelledError as error:
        raise RefusedError(503, "The server is ending.") from error
    except UserError as error:  # out of memory
        raise RefusedError(503, str(error)) from error
    except Exception as error:
        raise failure() from error


def _completion(answered: Answered) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": detail["text"], "refusal": None},
            "finish_reason": _why_ended(detail),
            "logprobs": None,
        }
        for i, detail in enumerate(answered.details)
    ]
    return {"choices": choices, "usage": _usage(answered)}


def _usage(answered: Answered) -> dict[str, int]:
    written = sum(len(detail["token_ids"]) for detail in answered.details)
    read = answered.prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _why_ended(detail: dict[str, Any]) -> str:
    return "stop" if detail["finished"] else "length"


def _news(sent: list[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Choices with what was not sent yet of each text, which is noted in `sent`."""
    new = []
    for i, text in enumerate(texts):
        if text != sent[i] and text.startswith(sent[i]):
            new.append(_choice(i, {"content": text.removeprefix(sent[i])}))
            sent[i] = text
    return new


def _choice(index: int, delta: dict[str, str], why_ended: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": why_ended, "logprobs": None}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
