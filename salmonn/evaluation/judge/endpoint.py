"""A judge behind an OpenAI-compatible endpoint, by plain HTTP.

The key comes from the environment and goes into one header: whatever a server sends back is cleared
of it before it can reach a message or a file.
"""

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from salmonn.common.errors import UserError
from salmonn.config.schema import JudgeConfig

FIRST_WAIT = 1.0  # s before the second try; each further wait is twice as long
LONGEST_WAIT = 60.0  # s, whatever the server asks for
_QUOTED = 300  # characters of a server's own words in a message
_MAY_PASS = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.IncompleteRead)


class _TryAgainError(Exception):
    """A failure that may pass."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait  # s that the server asks for


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: urllib would take the key along to any other host, and lose the question."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def ask_endpoint(prompts: Sequence[str], config: JudgeConfig) -> Iterator[tuple[int, str]]:
    """Yield (index, reply) as the replies come, `config.concurrency` requests at a time.

    Raises UserError when a request fails for good; replies that are still under way are yielded before.
    """
    key = _read_key(config)
    stop = threading.Event()
    failure: UserError | None = None
    pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")
    try:
        futures = {pool.submit(_ask, prompt, config, key, stop): index for index, prompt in enumerate(prompts)}
        for future in as_completed(futures):
            try:
                reply = future.result()
            except UserError as error:
                failure = failure or error
                continue
            if reply is not None:
                yield futures[future], reply
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


def _read_key(config: JudgeConfig) -> str:
    """The key, or "" where none is set: endpoints of one's own often need none."""
    key = os.environ.get(config.key_variable, "").strip() if config.key_variable else ""
    if not (key.isascii() and key.isprintable()) or " " in key:  # http.client would show it in its own error
        raise UserError(f"the environment variable {config.key_variable} holds characters that no key has")
    return key


def _ask(prompt: str, config: JudgeConfig, key: str, stop: threading.Event) -> str | None:
    """The reply to one prompt, after as many tries as it takes; None if another one has failed for good."""
    problem = ""
    for attempt in range(config.max_tries):
        if stop.is_set():
            return None
        try:
            return _reply(_post(prompt, config, key))
        except UserError:
            stop.set()
            raise
        except _TryAgainError as error:
            problem = str(error)
            if attempt + 1 < config.max_tries:
                stop.wait(min(max(error.wait, FIRST_WAIT * 2**attempt), LONGEST_WAIT))
    stop.set()
    raise UserError(
        f"the judge at {_url(config)} {problem}, {config.max_tries} times ({_key_state(config, key)}). Try again "
        "later, lower evaluate.judge.concurrency, raise evaluate.judge.timeout_s or correct evaluate.judge.base_url"
    )


def _url(config: JudgeConfig) -> str:
    return f"{config.base_url.rstrip('/')}/chat/completions"


def _key_state(config: JudgeConfig, key: str) -> str:
    """What a message says about the key."""
    if not config.key_variable:
        return "no key: evaluate.judge.key_variable is empty"
    return f"key: environment variable {config.key_variable}, {'set' if key else 'NOT set'}"


def _post(prompt: str, config: JudgeConfig, key: str) -> str:
    """Send one prompt; the body that comes back, without the key. Raises _TryAgainError or UserError."""
    message = {"role": "user", "content": prompt}
    body = {"model": config.model, "messages": [message], "temperature": 0, "max_tokens": config.max_tokens}
    # some endpoints refuse urllib's own name
    headers = {"Content-Type": "application/json", "User-Agent": "salmonn-evaluation"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(_url(config), json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=config.timeout_s) as response:
            return _clean(response.read(), key)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, config, key) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise _TryAgainError(f"gave no answer within {config.timeout_s:g} s") from error
        if isinstance(cause, _MAY_PASS):
            raise _TryAgainError(f"broke the connection ({type(cause).__name__})") from error
        raise UserError(
            f"the judge at {_url(config)} cannot be reached: {cause} ({_key_state(config, key)}). "
            "Start its server, or correct evaluate.judge.base_url"
        ) from error


def _refusal(error: urllib.error.HTTPError, config: JudgeConfig, key: str) -> Exception:
    """The exception for a status other than success."""
    status = error.code
    says = f"HTTP {status}"
    if status != 401:  # a 401 may quote parts of the key
        says = f"{says}: {_words(error, key)}".rstrip(": ")
    if status in (408, 425, 429) or status >= 500:
        asked = error.headers.get("Retry-After", "")
        return _TryAgainError(f"answers {says}", float(asked) if asked.isdecimal() else 0.0)
    if status in (401, 403):
        remedy = f"Type export {config.key_variable or 'A_VARIABLE'}=... with a key that is valid there"
        remedy += "" if config.key_variable else " and name it in evaluate.judge.key_variable"
    elif status == 404:
        remedy = f"Correct evaluate.judge.base_url (often it ends in /v1) or evaluate.judge.model = {config.model}"
    elif 300 <= status < 400:
        remedy = "It points elsewhere: give the final address as evaluate.judge.base_url"
    else:
        remedy = f"Is evaluate.judge.model = {config.model} a chat model that takes a temperature and max_tokens?"
    return UserError(f"the judge at {_url(config)} refuses ({says}; {_key_state(config, key)}). {remedy}")


def _words(error: urllib.error.HTTPError, key: str) -> str:
    """The server's own words on one short line; "" where they cannot be read."""
    try:
        text = _clean(error.read(), key)
    except (OSError, http.client.HTTPException):
        return ""
    return " ".join(text.split())[:_QUOTED]


def _clean(body: bytes, key: str) -> str:
    text = body.decode("utf-8", errors="replace")
    return text.replace(key, "***") if key else text


def _reply(body: str) -> str:
    """The text of a chat completion; "" where the model gave none. Raises _TryAgainError for anything else."""
    try:
        message = json.loads(body)["choices"][0]["message"]
        reply = message.get("content") or message.get("refusal") or ""
        return reply.encode("utf-8", errors="replace").decode()  # JSON may hold halves of characters
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        beginning = " ".join(body.split())[:_QUOTED]
        raise _TryAgainError(f"answers with what is no chat completion ({beginning!r})") from error
