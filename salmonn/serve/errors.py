"""Errors as OpenAI's clients expect them: a status, and JSON that says what is wrong."""

import asyncio
import logging
from contextlib import suppress

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FAILURE = "Something went wrong; the log of the server tells more."
_SLOWEST = 20  # s, in which what is refused is sent to its end
_RETRY = 5  # s, after which a client may try again what there was no room for


class RefusedError(Exception):
    """A request that is not answered: status, words for the client, and the parameter that they are about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict:
        """In OpenAI's form."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """As a whole answer."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": str(_RETRY)}}
        headers[503] = headers[429]
        headers[500] = {"Connection": "close"}  # uvicorn ends it where an error is nobody's
        return JSONResponse(self.body, self.status, headers.get(self.status))


def refuse(message: str, status: int) -> ASGIApp:
    """An application that refuses whatever it is asked, after it has been asked: else no client reads the answer."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_SLOWEST):
                while (await receive()).get("more_body", False):
                    pass
        await RefusedError(status, message).response(scope, receive, send)

    return refusing


def failure() -> RefusedError:
    """What a client is told of an error that is not its own; to be called where that is handled, as it is logged."""
    logging.getLogger(__name__).exception("a request failed")
    return RefusedError(500, _FAILURE)


def answer_errors(app: FastAPI) -> None:
    """Let an application answer its errors in OpenAI's form."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return error.response

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return RefusedError(500, _FAILURE).response  # and uvicorn logs it

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it
