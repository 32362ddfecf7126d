"""The web page: one model for several people, answers as they are written, errors in a box, and a real browser."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from conftest import ROOT, mini_options
from salmonn import turns as turns_module
from salmonn import web
from salmonn.config import load_config
from salmonn.errors import UserError
from salmonn.session import Answer, Heard, Listener, Question
from salmonn.turns import Turns
from salmonn.web_look import build, serve
from salmonn.web_page import Page, Talk

VERY_LONG = {"max_new_tokens": 2000, "min_length": 2000}  # half a minute
WAITING = ("", "…", "Loading content")  # what gradio shows while nothing is written yet
SEARCH = (1, False, 1.0, 0.9)  # beams, sample, temperature, top-p


@pytest.fixture(scope="module")
def listener(mini_world: Path, tmp_path_factory) -> Listener:
    paths = [option for option in mini_options(mini_world, tmp_path_factory.mktemp("out")) if "datasets." not in option]
    torch.manual_seed(0)
    options = [*paths, "model.ckpt=", "generate.max_new_tokens=12", "generate.num_beams=1"]
    return Listener.load(load_config(ROOT / "configs/mini/decode.yaml", options))


@pytest.fixture
def turns(listener: Listener) -> Iterator[Turns]:
    turns = Turns(listener)
    yield turns
    turns.close()


@pytest.fixture
def page(turns: Turns) -> Page:
    return Page(turns, {})


@pytest.fixture(scope="module")
def clip(mini_world: Path) -> str:
    return str(sorted((mini_world / "audio/speech").glob("test_*.wav"))[0])


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken <b>.wav"
    path.write_text("this is not audio")
    return str(path)


@pytest.fixture
def written(monkeypatch) -> list[Answer]:
    """Every answer that the model has brought to its end."""
    answers: list[Answer] = []
    ask = Listener.ask
    monkeypatch.setattr(Listener, "ask", lambda *args, **library: answers.append(ask(*args, **library)) or answers[-1])
    return answers


def asked(page: Page, talk: Talk, text: str, scaling: float | None = None, task: str = "") -> tuple:
    """What the page shows in the end."""
    return list(page.ask(talk, text, *SEARCH, scaling, task=task))[-1]


# ---- turns


def test_text_is_seen_while_it_is_written(monkeypatch):
    monkeypatch.setattr(turns_module, "_EVERY", 0.001)
    seen = threading.Event()

    def ask(_heard, _question, _settings, streamer, **_) -> list[Answer]:
        streamer.on_finalized_text("a red ")
        assert seen.wait(60)
        return [Answer("a red dog", finished=True)]

    model = SimpleNamespace(lora_scaling=4.0, tokenizer=None)
    turns = Turns(SimpleNamespace(model=model, ask=ask))
    texts = []
    for answer in turns.answer(Heard(torch.zeros(1, 1, 1)), Question("?"), SimpleNamespace(num_beams=1)):
        texts.append(answer.text)
        if answer.text:
            seen.set()
    assert [text for text in dict.fromkeys(texts) if text] == ["a red", "a red dog"]
    turns.close()


@pytest.mark.parametrize("beams", [1, 2])
def test_the_last_answer_is_that_of_the_listener(turns: Turns, listener: Listener, clip, beams):
    heard, question = listener.hear([clip]), listener.question("What is said?")
    settings = OmegaConf.merge(listener.config.generate, {"num_beams": beams})
    expected = listener.ask(heard, question, settings)
    *_, last = turns.answer(heard, question, settings)
    assert [last] == expected
    assert last.text


@pytest.mark.parametrize("beams", [1, 2])
def test_the_model_stops_for_whoever_leaves(turns: Turns, listener: Listener, clip, beams, written):
    settings = OmegaConf.merge(listener.config.generate, VERY_LONG, {"num_beams": beams})
    answers = turns.answer(listener.hear([clip]), listener.question("What is said?"), settings)
    next(answers)
    answers.close()
    turns.run(int)  # the thread is free again
    assert written == []


def test_the_model_stops_when_nobody_looks_any_more(turns: Turns, listener: Listener, clip, monkeypatch, written):
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.2)
    settings = OmegaConf.merge(listener.config.generate, VERY_LONG)
    answers = turns.answer(listener.hear([clip]), listener.question("What is said?"), settings)
    next(answers)  # and the reader is gone, without a word
    turns.run(int)
    assert written == []


def test_nobody_has_the_scaling_of_another(turns: Turns, listener: Listener, clip, monkeypatch):
    seen = []
    answer = listener.model.answer_embeds

    def watch(*args, **library):
        seen.append(listener.model.lora_scaling)
        if len(seen) == 2:
            raise UserError("no")
        return answer(*args, **library)

    monkeypatch.setattr(listener.model, "answer_embeds", watch)
    ask = listener.hear([clip]), listener.question("What is said?"), listener.config.generate
    first, second, third = turns.answer(*ask, scaling=1.5), turns.answer(*ask, scaling=0.0), turns.answer(*ask)
    list(first)
    with pytest.raises(UserError):
        list(second)
    list(third)
    assert seen == [1.5, 0.0, 4.0]


# ---- what the page does


def test_a_clip_is_encoded_once_for_several_questions(page: Page, clip, monkeypatch):
    encoded = []
    encode = page.listener.model.encode_speech
    monkeypatch.setattr(
        page.listener.model, "encode_speech", lambda wav, *rest: encoded.append(len(wav)) or encode(wav, *rest)
    )
    talk, chat, picture, note, error = page.listen(clip, False)
    assert (chat, note, error) == ([], "", "")
    assert picture.startswith('<img alt="Waveform and log-mel spectrogram of test_')
    for text, task in (("배는 무슨 색입니까?", ""), ("", "asr"), ("Which one?", "QA")):
        talk, chat, *_, error = asked(page, talk, text, task=task)
        assert error == ""
    assert encoded == [1]
    assert [message["content"] for message in chat[::2]] == ["배는 무슨 색입니까?", "Transcribe", "Which one?"]
    assert [message["role"] for message in chat] == ["user", "assistant"] * 3
    assert page.clear(talk) == Talk(talk.heard)


def test_a_file_that_cannot_be_heard_is_told_by_its_name(page: Page, broken):
    talk, chat, picture, _, error = page.listen(broken, False)
    assert (talk.heard, chat, picture) == (None, [], "")
    assert 'role="alert">broken &lt;b&gt;.wav: undecodable' in error
    assert str(Path(broken).parent) not in error
    assert page.listen(broken, True)[-1] == error
    assert page.listen(None, False) == (Talk(), [], "", "", "")


def test_of_a_long_clip_it_is_told_what_was_heard(page: Page, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=12 * 16_000), 16_000)
    assert "Only the first 5 s are heard." in page.listen(str(path), False)[3]
    talk, *_, note, error = page.listen(str(path), True)
    assert "12.0 s, heard in 3 windows" in note
    assert error == ""
    assert len(talk.heard.embeds) == 3


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [(" ", "", "the question is empty"), ("", "QA", "Write a question first"), ("?", "asr", "")],
)
def test_a_question_that_cannot_be_asked_leaves_the_talk(page: Page, clip, text, task, message):
    talk = dataclasses.replace(page.listen(clip, False)[0], rounds=(("Who?", "anna"),))
    after, chat, _, _, error = asked(page, talk, text, task=task)
    assert message in error
    assert bool(error) == bool(message)
    assert (after == talk) == bool(message)
    assert [message["content"] for message in chat][:2] == ["Who?", "anna"]


def test_what_nobody_expected_is_told_without_a_traceback(page: Page, clip, monkeypatch, caplog):
    talk = page.listen(clip, False)[0]
    monkeypatch.setattr(page.listener.model, "answer_embeds", lambda *_, **__: 1 / 0)
    error = asked(page, talk, "What?")[-1]
    assert "ZeroDivisionError" in error
    assert "Traceback" not in error
    assert "Traceback" in caplog.text  # the server's log has it
    assert "No clip yet" in asked(page, Talk(), "What?")[-1]


def test_every_task_has_a_button(page: Page):
    parts = build(page).config["components"]
    buttons = [part["props"]["value"] for part in parts if part["type"] == "button"]
    assert len(buttons) == len(set(buttons)) == len(page.listener.model.test_prompts) + 2
    assert {"Ask", "Stop", "Transcribe", "Describe the music"} <= set(buttons)


# ---- the command


def test_what_cannot_be_served_is_told_before_the_model_is_loaded(monkeypatch, tmp_path):
    for arguments, message in ((["--port", "0"], "--port 0"), (["--max-upload-mb", "-1"], "--max-upload-mb -1")):
        monkeypatch.setattr(sys, "argv", ["web", *arguments])
        with pytest.raises(UserError, match=message):
            web.parse_arguments()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be served .*choose another --port"):
            web.require_port("127.0.0.1", port)
    with pytest.raises(UserError, match="no clips in it"):
        web.find_examples([str(tmp_path)])
    with pytest.raises(UserError, match="does not exist"):
        web.find_examples(["/nowhere"])


def test_nobody_else_can_reach_the_page_unless_asked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["web"])
    args = web.parse_arguments()
    assert (args.host, args.share) == ("127.0.0.1", False)


def test_examples_are_files_and_all_of_a_folder(tmp_path):
    for name in ("a/x.wav", "a/deep/y.FLAC", "a/notes.txt", "b/z.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = web.find_examples([str(tmp_path / "a"), str(tmp_path / "b/z.mp3")])
    assert list(found) == ["a/deep/y.FLAC", "a/x.wav", "b/z.mp3"]
    assert found["b/z.mp3"] == str(tmp_path / "b/z.mp3")
    assert web.find_examples([]) == {}


def test_gradio_loads_only_for_the_page():
    code = "import sys, salmonn.chat, salmonn.web; print({'gradio', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"


# ---- in a browser


@pytest.fixture
def browser() -> Iterator:
    """Headless Chromium that writes down every address it asks for."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def address(page: Page, clip) -> Iterator[str]:
    """A page that is served, with one example."""
    page.examples = {"example.wav": clip}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blocks = build(page)
    yield serve(blocks, "127.0.0.1", port, share=False, max_upload_mb=1, files=[clip])
    blocks.close(verbose=False)


_BEYOND_THE_EDGE = """return [...document.querySelectorAll("h1, p, img, button, textarea, label, .block, .message")]
    .filter(part => part.getBoundingClientRect().right > innerWidth).map(part => part.outerHTML)"""


def test_a_visit(browser, address: str, page: Page, clip, written, monkeypatch, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    monkeypatch.setattr(turns_module, "_PATIENCE", 5.0)

    def find(selector: str) -> list:
        return browser.find_elements("css selector", selector)

    def until(condition) -> None:
        WebDriverWait(browser, 20, 0.1).until(lambda _: condition())

    def text_of(selector: str) -> list[str]:  # in one go: while it is read, the page may put other elements there
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText.trim())"
        return browser.execute_script(script, selector)

    def press(label: str) -> None:
        script = "[...document.querySelectorAll('button')].find(part => part.innerText.trim() == arguments[0]).click()"
        browser.execute_script(script, label)

    browser.get(address)
    until(lambda: find("input[type=file]") and find("textarea"))
    assert browser.title == "SALMONN"
    assert "gradio" not in find("body")[0].text.lower()

    too_large = tmp_path / "large.wav"
    soundfile.write(too_large, np.zeros(600_000), 16_000)
    find("input[type=file]")[0].send_keys(str(too_large))
    until(lambda: find("#error [role=alert]"))
    assert "exceed the maximum allowed size of 1.0 Mb" in text_of("#error [role=alert]")[0]

    broken = tmp_path / "broken.wav"
    broken.write_text("this is not audio")
    find("input[type=file]")[0].send_keys(str(broken))
    until(lambda: text_of("#error [role=alert]") == ["broken.wav: undecodable: Format not recognised"])

    browser.refresh()
    until(lambda: find("input[type=file]"))
    find("input[type=file]")[0].send_keys(clip)
    until(lambda: find("#picture img"))
    assert not find("#error [role=alert]")
    listener = page.listener
    for text in ("What is said?", "배는 무슨 색입니까?"):
        find("textarea")[0].send_keys(text)
        press("Ask")
        [answer] = listener.ask(listener.hear([clip]), listener.question(text))
        until(lambda answer=answer: text_of(".message.bot")[-1:] == [answer.text])
    press("Transcribe")
    [answer] = listener.ask(listener.hear([clip]), listener.task_question("asr"))
    until(lambda: text_of(".message.bot")[2:] == [answer.text])
    assert text_of(".message.user")[-1] == "Transcribe"

    for width in (400, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script(_BEYOND_THE_EDGE) == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []

    page.listener = Listener(listener.model, OmegaConf.merge(listener.config, {"generate": VERY_LONG}))
    n_written = len(written)
    press("Describe the sound")
    until(lambda: len(text_of(".message.bot")) == 4 and text_of(".message.bot")[-1] not in WAITING)
    press("Stop")
    until(lambda: text_of(".note") == ["Stopped."])
    page.turns.run(int)  # the model is free for others
    assert len(written) == n_written
    page.listener = listener
    press("Transcribe")
    until(lambda: text_of(".message.bot")[4:] == [answer.text])
