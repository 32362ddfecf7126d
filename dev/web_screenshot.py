"""A picture of the web page in use, on the miniature world's final model.

  python dev/web_screenshot.py --out docs/web_page.png
  python dev/web_screenshot.py --out phone.png --width 400 --dark

After `make quickstart`; needs Chromium with its driver.
"""

import io
import os
import shutil
import socket
import sys
from argparse import Namespace
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli
from salmonn.common.errors import UserError
from salmonn.common.files import replacing

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ["speech/test_00011.ogg", "sound/test_00199.wav"]
QUESTIONS = ["Transcribe", "How many are there?", "Man or woman?"]  # tasks by their button
WAITING = ("", "…", "Loading content")  # what the page shows while nothing of an answer is written yet

_PATIENCE = 30  # s


class Visitor:
    """A person in front of the page."""

    def __init__(self, browser: "Chrome", address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until(lambda: self.find("#clip input[type=file]") and self.find("textarea"))

    def find(self, selector: str) -> list:
        """The elements of a CSS selector."""
        return self.browser.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """What stands in them; in one go: while it is read, the page may put other elements there."""
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText.trim())"
        return self.browser.execute_script(script, selector)

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something; selenium's TimeoutException tells that it never came."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, _PATIENCE, 0.1).until(lambda _: condition())

    def upload(self, path: str | Path) -> None:
        """Give the page a clip, in the place of the one it has."""
        if not self.find("#clip input[type=file]"):
            script = "document.querySelector('#clip button[aria-label=Clear]').click()"  # at once: it may be redrawn
            self.browser.execute_script(script)
            self.until(lambda: self.find("#clip input[type=file]"))
        self.find("#clip input[type=file]")[0].send_keys(str(path))

    def choose(self, example: str) -> None:
        """Choose a clip of those that the page offers."""
        self.until(lambda: example in self.texts("#examples button"))
        next(card for card in self.find("#examples button") if card.text == example).click()

    def press(self, label: str) -> None:
        """Press a button."""
        script = """[...document.querySelectorAll("button")]
            .find(part => part.innerText.trim().split("\\n")[0] == arguments[0]).click()"""
        self.browser.execute_script(script, label)

    def set(self, label: str, value: float) -> None:
        """Type the number of a slider."""
        field = self.find(f'input[type=number][aria-label$="{label}"]')[0]
        field.clear()
        field.send_keys(str(value), "\ue007")  # Enter

    def ask(self, text: str) -> None:
        """Write a question and send it."""
        self.find("textarea")[0].send_keys(text)
        self.press("Ask")

    def resize(self, width: int, height: int = 900) -> None:
        """Pixels of the window's inside."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        script = "return [innerWidth, document.querySelector('.gradio-container').scrollHeight]"
        width, height = self.browser.execute_script(script)
        area = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = {"clip": area, "captureBeyondViewport": True}
        return b64decode(self.browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])


@contextmanager
def open_browser(*arguments: str) -> Iterator["Chrome"]:
    """Headless Chromium, which writes down every address it asks for. Raises UserError where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        raise UserError("no Chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def served(page: Any, **settings: Any) -> Iterator[str]:
    """The address of a page that is served for a while."""
    from salmonn.web.layout import build, close, serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blocks = build(page)
    try:
        yield serve(blocks, "127.0.0.1", port, share=False, files=list(page.examples.values()), **settings)
    finally:
        close(blocks)


def main() -> None:
    """Serve the page, hold a short conversation and take the picture."""
    args = parse_arguments()
    os.chdir(ROOT)
    from salmonn.config.loading import load_config
    from salmonn.inference.engine import InferenceEngine
    from salmonn.model.lineage import read_lineage
    from salmonn.web.page import Page
    from salmonn.web.request_queue import RequestQueue

    queue = RequestQueue(InferenceEngine.load(load_config("configs/mini/decode.yaml", [])))
    examples = {name: str(ROOT / "output/mini/world/audio" / name) for name in EXAMPLES}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if args.dark else "light"}]}
    try:
        page = Page(queue, examples, lineage=read_lineage(queue.engine.config.model.ckpt))
        with served(page, max_upload_mb=100) as address, open_browser() as browser:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
            visitor = Visitor(browser, address)
            visitor.resize(args.width)
            converse(visitor)
            picture = visitor.picture()
    finally:
        queue.close()
    with replacing(args.out) as path:
        path.write_bytes(smaller(picture))
    print(f"wrote {args.out}")


def converse(visitor: Visitor) -> None:
    """Choose a clip, ask about it, and wait for the answers."""
    visitor.choose(EXAMPLES[0])
    visitor.until(lambda: visitor.find("#picture img"))
    for n_asked, question in enumerate(QUESTIONS, 1):
        is_task = question in visitor.texts("#tasks button")
        (visitor.press if is_task else visitor.ask)(question)
        visitor.until(partial(is_answered, visitor, n_asked))


def is_answered(visitor: Visitor, n: int) -> bool:
    """Whether there are so many answers, all of them whole."""
    return [text not in WAITING for text in visitor.texts(".message.bot")] == [True] * n


def smaller(picture: bytes) -> bytes:
    """The same PNG with a palette of 256 colours: a third of the bytes."""
    from PIL import Image

    png = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(png, "PNG", optimize=True)
    return png.getvalue()


def parse_arguments() -> Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    parser.add_argument("--width", type=int, default=1280, metavar="PIXELS", help="of the window (default: 1280)")
    parser.add_argument("--dark", action="store_true", help="as in a dark colour scheme")
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    run_cli(main)
