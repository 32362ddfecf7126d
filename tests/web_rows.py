"""What the web page shows: the rows that its requests yield, one on top of the other."""

from collections.abc import Iterable, Iterator

import gradio as gr
from omegaconf import OmegaConf

from salmonn.session import Listener
from salmonn.talk import Talk
from salmonn.web_page import Page

VERY_LONG = {"max_new_tokens": 2000, "min_length": 2000}  # half a minute
SEARCH = (1, False, 1.0, 0.9)  # beams, sample, temperature, top-p


def shown(rows: Iterable[tuple], before: tuple = ()) -> list:
    """What the page shows after these rows."""
    now = list(before)
    for row in rows:
        now = [old if new == gr.skip() else new for old, new in zip(now or row, row, strict=True)]
    return now


def heard(page: Page, path: str | None, in_windows: bool = False) -> tuple[Talk, list]:
    """A talk about a clip, and what the page shows then: chat, picture, note, error."""
    talk, chat, picture, note, _, error = shown(page.listen(Talk(), path, in_windows))
    return talk, [chat, picture, note, error]


def asked(page: Page, talk: Talk, text: str, scaling: float | None = None, task: str = "") -> list:
    """What the page shows in the end: chat, question, note, error."""
    return shown(page.ask(talk, text, *SEARCH, scaling, task=task))


def ask_very_long(page: Page, talk: Talk) -> Iterator[tuple]:
    """The rows of an answer that goes on for half a minute, from its first words on."""
    page.listener = Listener(page.listener.model, OmegaConf.merge(page.listener.config, {"generate": VERY_LONG}))
    rows = page.ask(talk, "What is said?", *SEARCH, None)
    next(rows)
    while len(talk.rounds[-1].answer) < 2:
        next(rows)
    return rows
