"""Who may ask a page or a server for something, and how much: checked before gradio or FastAPI sees a request.

A web site that somebody looks at can send requests to a page of this machine, and by a name of its own that leads
here (DNS rebinding) read the answers. So the name by which the page was asked has to be one of its own.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_UPLOADS, LARGEST_SUM = 200, 10  # of a visitor within KEPT: files, and bytes as a multiple of the largest file
KEPT = 25 * 3600  # s that an upload is kept
LARGEST_FORM = 2**20  # bytes of any other request; they hold a question, settings and names
_FILE = b"filename"  # in the head of each file of an upload, as filename= or filename*=
_TOO_MUCH = "You have uploaded as much as one visitor may; what you have sent goes after a day."


def own_names(host: str) -> set[str]:
    """The names of a page that is served at `host`; "*": whatever is an address, as all addresses are its own."""
    if host in ("0.0.0.0", ""):
        return {"*", "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    return {"127.0.0.1", "localhost", host.lower()}


class Gate:
    """ASGI middleware that answers what is refused itself; `names` may grow while it serves.

    `largest_file`: bytes of an upload; `largest_form`: of any other request. `refusal` makes an answer of words and a
    status.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: set[str],
        largest_file: int,
        largest_form: int = LARGEST_FORM,
        refusal: Callable[[str, int], ASGIApp] = PlainTextResponse,
    ) -> None:
        self.app, self.names, self.refusal = app, names, refusal
        self.largest_file, self.largest_form = largest_file, largest_form
        self._uploads: dict[str, list[tuple[float, int]]] = {}  # (time, bytes) of each, by visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        status, problem = 403, self._foreign(headers)
        if not problem:
            status, problem = self._too_much(scope, headers)
        if not problem:
            await self.app(scope, self._counting(scope, receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "reason": problem})
        else:
            await self.refusal(problem, status)(scope, receive, send)

    def _foreign(self, headers: Headers) -> str:
        """Why a request is not one of this page's own; "" where it is."""
        asked, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host := _place(f"//{asked}")):
            return f"This is not served as {asked!r}. Ask for it by its address, or start it with --host NAME."
        if origin is not None and not (self._is_own(other := _place(origin)) and other[1] == host[1]):
            return f"{origin!r} may not use this."
        return ""

    def _is_own(self, place: tuple[str, int | None]) -> bool:
        return place[0] in self.names or ("*" in self.names and _is_address(place[0]))

    def _too_much(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Status and words for what is too large or too often; "" for what is not. Counts an upload that may begin."""
        if scope.get("method") in ("GET", "HEAD", "OPTIONS") or scope["type"] == "websocket":
            return 0, ""
        if not (length := headers.get("content-length", "")).isdecimal():
            return 411, "The request does not say how long it is."
        n_bytes = int(length)
        if not _is_upload(scope):
            return 413, "The request is too long." if n_bytes > self.largest_form else ""
        now, visitor = time.monotonic(), _visitor(scope)
        kept = {other: [u for u in uploads if now - u[0] < KEPT] for other, uploads in self._uploads.items()}
        self._uploads = {other: uploads for other, uploads in kept.items() if uploads}
        uploads = self._uploads.setdefault(visitor, [])
        if len(uploads) >= MOST_UPLOADS or sum(size for _, size in uploads) + n_bytes > LARGEST_SUM * self.largest_file:
            return 429, _TOO_MUCH
        uploads.append((now, n_bytes))
        return 0, ""

    def _counting(self, scope: Scope, receive: Receive) -> Receive:
        """Count an upload's files, beyond the first, while they come; too many end it."""
        if not _is_upload(scope):
            return receive
        visitor, end, n_files = _visitor(scope), b"", 0

        async def counted() -> Message:
            nonlocal end, n_files
            message = await receive()
            body = end + message.get("body", b"").lower()
            end = body[1 - len(_FILE) :]
            uploads = self._uploads.setdefault(visitor, [])
            for _ in range(body.count(_FILE)):
                n_files += 1
                if n_files > 1 and len(uploads) >= MOST_UPLOADS:
                    raise HTTPException(429, _TOO_MUCH)
                if n_files > 1:
                    uploads.append((time.monotonic(), 0))
            return message

        return counted


def _is_upload(scope: Scope) -> bool:
    return scope.get("method") == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _visitor(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def _place(url: str) -> tuple[str, int | None]:
    """Host and port of an address; ("", None) for what is none, or names a user, which no browser sends."""
    try:
        parts = urlsplit(url)
        return ("", None) if "@" in parts.netloc else (parts.hostname or "", parts.port)
    except ValueError:
        return "", None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
