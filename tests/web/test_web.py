"""The web page: one model for several people, answers as they are written, errors in a box, and a real browser."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from dev import web_screenshot
from dev.web_screenshot import WAITING, Visitor, open_browser, served
from salmonn.audio.decode import load_clip
from salmonn.common.errors import UserError
from salmonn.inference.engine import Answer, InferenceEngine
from salmonn.model.lineage import Training
from salmonn.web import __main__ as web
from salmonn.web import layout
from salmonn.web.conversation import Conversation
from salmonn.web.layout import build
from salmonn.web.page import TWO_CLIPS, Page, answer_settings
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG
from tests.fixtures.web_rows import SEARCH, VERY_LONG, asked, heard, shown

pytest_plugins = ["tests.fixtures.web"]


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken <b>.wav"
    path.write_text("this is not audio")
    return str(path)


# ---- what the page does


def test_a_clip_is_encoded_once_for_several_questions(page: Page, clip, monkeypatch):
    encoded = []
    encode = page.engine.model.encode_and_spell
    monkeypatch.setattr(
        page.engine.model, "encode_and_spell", lambda wav, *rest: encoded.append(len(wav)) or encode(wav, *rest)
    )
    conversation, [chat, picture, note, error] = heard(page, clip)
    assert (chat, note, error) == ([], "", "")
    assert picture.startswith('<img alt="Waveform and log-mel spectrogram of test_')
    for text, task in (("배는 무슨 색입니까?", ""), ("", "asr"), ("Which one?", "QA")):
        chat, *_, error = asked(page, conversation, text, task=task)
        assert error == ""
    assert encoded == [1]
    assert [message["content"] for message in chat[::2]] == ["배는 무슨 색입니까?", "Transcribe", "Which one?"]
    assert [message["role"] for message in chat] == ["user", "assistant"] * 3


def test_a_file_that_cannot_be_heard_is_told_by_its_name(page: Page, broken):
    conversation, [chat, picture, _, error] = heard(page, broken)
    assert (conversation.encoding.heard, chat, picture) == (None, [], "")
    assert 'role="alert">broken &lt;b&gt;.wav: undecodable' in error
    assert str(Path(broken).parent) not in error
    assert heard(page, broken, in_windows=True)[1][-1] == error
    assert heard(page, None)[1] == [[], "", "", ""]


def test_of_a_long_clip_it_is_told_what_was_heard(page: Page, long_clip):
    assert "Only the first 5 s are heard." in heard(page, long_clip)[1][2]
    conversation, [_, _, note, error] = heard(page, long_clip, in_windows=True)
    assert "7.4 s, heard in 3 windows" in note
    assert error == ""
    assert len(conversation.encoding.heard.embeds) == 3


@pytest.mark.parametrize("in_windows", [False, True])
def test_that_a_clip_is_silent_is_told_in_the_note(page: Page, clip, tmp_path, in_windows):
    soundfile.write(tmp_path / "mute.wav", np.zeros(12 * 16_000), 16_000)
    conversation, [_, _, note, error] = heard(page, str(tmp_path / "mute.wav"), in_windows=in_windows)
    assert "it holds only silence: is the microphone on?" in note
    assert ("windows; the picture" in note, error) == (in_windows, "")
    assert conversation.encoding.heard
    assert "silence" not in heard(page, clip, in_windows=in_windows)[1][2]


@pytest.mark.parametrize("in_windows", [False, True])
def test_a_clip_is_decoded_once(page: Page, clip, in_windows, monkeypatch):
    read, decoded = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda *args, **library: decoded.append(args) or read(*args, **library)
    )
    _, [_, picture, _, error] = heard(page, clip, in_windows)
    assert picture.startswith("<img")
    assert error == ""
    assert len(decoded) == 1


def test_nothing_is_sent_to_the_browser_twice(page: Page, clip, monkeypatch):
    conversation, _ = heard(page, clip)
    told = [None, None, Answer("", False), Answer("a dog", False), Answer("a dog", False), Answer("a dog runs", True)]
    monkeypatch.setattr(page.queue, "answer", lambda *_: iter(told))
    rows = list(page.ask(conversation, "What is said?", *SEARCH, None))
    sent = [[value for value in part if value != gr.skip()] for part in zip(*rows, strict=True)]
    chats, questions, notes, errors = sent
    assert [chat[1]["content"] for chat in chats] == ["…", "a dog", "a dog runs"]
    told = [re.search(r"Answering|Waiting|Answered", note)[0] for note in notes]
    assert told == ["Answering", "Waiting", "Answering", "Answered", "Answered"]  # the last one can't be stopped
    assert (questions, errors) == ([""], [""])


def test_an_answer_without_words_is_told(page: Page, clip, monkeypatch):
    conversation, _ = heard(page, clip)
    monkeypatch.setattr(page.queue, "answer", lambda *_: iter([Answer("", finished=True)]))
    assert asked(page, conversation, "What?")[0][-1]["content"] == "(no words)"


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        (" ", "", "the question is empty"),
        ("", "QA", "Write a question first"),
        ("?", "asr", ""),
        ("a" * 2001, "", "2001 characters: up to 2000"),
        ("배" * 200_000, "QA", "200000 characters: up to 2000"),
    ],
)
def test_a_question_that_cannot_be_asked_leaves_the_talk(page: Page, clip, text, task, message):
    conversation, _ = heard(page, clip)
    conversation.ask("Who?").answer = "anna"
    chat, _, _, error = asked(page, conversation, text, task=task)
    assert message in error
    assert bool(error) == bool(message)
    assert len(chat) == len(conversation.messages) == (2 if message else 4)
    assert [message["content"] for message in chat][:2] == ["Who?", "anna"]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", ["${oc.env:SERVERS_SECRET}", float("nan"), -1e30, 1e30, None, []])
def test_settings_that_no_slider_offers_are_refused_and_look_nothing_up(page: Page, clip, monkeypatch, place, value):
    monkeypatch.setenv("SERVERS_SECRET", "sk_planted")
    conversation, _ = heard(page, clip)
    settings = [*SEARCH[:place], value, *SEARCH[place + 1 :]]
    if place == 1:
        assert answer_settings(page.engine.config.generate, *settings).do_sample is bool(value)
        return
    *_, error = shown(page.ask(conversation, "What?", *settings, None))
    assert 'role="alert"' in error
    assert "sk_planted" not in error
    assert conversation.turns == []


def test_what_nobody_expected_is_told_without_a_traceback(page: Page, clip, monkeypatch, caplog):
    conversation, _ = heard(page, clip)
    monkeypatch.setattr(page.engine.model, "answer_embeds", lambda *_, **__: 1 / 0)
    chat, *_, error = asked(page, conversation, "What?")
    assert chat == []
    assert "ZeroDivisionError" in error
    assert "Traceback" not in error
    assert "Traceback" in caplog.text  # the server's log has it
    assert "No clip yet" in asked(page, Conversation(), "What?")[-1]


def test_every_task_has_a_button(page: Page):
    parts = build(page).config["components"]
    buttons = [part["props"]["value"] for part in parts if part["type"] == "button"]
    assert len(buttons) == len(set(buttons)) == len(page.engine.model.test_prompts) + 3
    assert {"Ask", "Stop", "Save the conversation", "Transcribe", "Describe the music"} <= set(buttons)


RUNS = [Training("stage1", "one.json", ("asr", "audiocaption"), 3), Training("<b>", "two.json", ("QA", "dowsing"), 9)]


@pytest.mark.parametrize(
    ("lineage", "n_shown"),
    [(RUNS, 3), (RUNS[:1], 2), ([], 26), ([Training("salmonn_v1.pth"), *RUNS], 26), ([Training("a", "", ("x",))], 0)],
)
def test_tasks_that_the_model_was_not_trained_for_stand_behind_the_others(page: Page, lineage, n_shown):
    page.lineage = lineage
    trained, others = page.tasks
    n_tasks = len(page.engine.model.test_prompts)
    assert len(trained) == min(n_shown, n_tasks)
    assert sorted([*trained, *others]) == sorted(page.engine.model.test_prompts)
    folded = [part for part in build(page).config["components"] if part["type"] == "accordion"]
    [more] = [part["props"] for part in folded if part["props"]["label"].startswith("More")]
    assert (more["open"], more["visible"]) == (False, bool(others))


def test_the_page_says_which_model_it_is_and_what_it_was_trained_on(page: Page, monkeypatch):
    config = OmegaConf.merge(page.engine.model.config, {"ckpt": "output/<i>/stage2/checkpoint_best.pth"})
    monkeypatch.setattr(page.engine, "config", OmegaConf.merge(page.engine.config, {"model": config}))
    page.lineage = RUNS
    about = page.about()
    assert "stage2/checkpoint_best.pth" in about
    assert Path(config.llama_path).name in about
    assert "stage1 on one.json: Transcribe, Describe the sound" in about
    assert "&lt;b&gt; on two.json: Ask about it, dowsing" in about
    assert str(Path(config.llama_path).parent) not in about  # where things lie on the server is nobody's business
    page.lineage = []
    assert "What it was trained on is not known." in page.about()


def test_the_page_of_a_model_without_checkpoint_says_so(page: Page):
    assert "without a checkpoint, its answers mean nothing" in page.about()


# ---- two clips, the same clip in another way


def test_a_second_clip_is_heard_after_the_first(page: Page, clip, tmp_path):
    soundfile.write(tmp_path / "other.wav", np.zeros(16_000), 16_000)
    conversation = Conversation()
    rows = page.listen(conversation, clip, False, str(tmp_path / "other.wav"))
    assert shown(rows)[-1] == ""
    pair = load_clip([clip, tmp_path / "other.wav"], page.engine.model.max_seconds)
    np.testing.assert_array_equal(conversation.encoding.heard.wav, pair)
    assert asked(page, conversation, "", task=TWO_CLIPS)[-1] == ""


def test_what_is_about_two_clips_asks_for_the_second(page: Page, clip):
    conversation, _ = heard(page, clip)
    assert "give a second one first" in asked(page, conversation, "", task=TWO_CLIPS)[-1]
    assert conversation.turns == []


def test_a_second_clip_that_cannot_be_heard_is_told_by_its_name(page: Page, clip, broken):
    *_, error = shown(page.listen(Conversation(), clip, False, broken))
    assert "broken &lt;b&gt;.wav: undecodable" in error
    assert str(Path(broken).parent) not in error


def test_hearing_a_clip_in_another_way_keeps_what_was_asked(page: Page, long_clip):
    conversation, _ = heard(page, long_clip)
    asked(page, conversation, "Who?")
    before = conversation.messages
    chat, *_, error = shown(page.listen(conversation, long_clip, True, None, keeps_turns=True))[1:]
    assert (chat, conversation.messages, error) == (before, before, "")
    assert len(conversation.encoding.heard.embeds) == 3
    asked(page, conversation, "And who?")
    assert len(conversation.turns) == 2


def test_a_clip_that_cannot_be_heard_leaves_the_player_and_why_stays(page: Page, clip, broken):
    conversation, _ = heard(page, broken)
    assert page.drop_unheard(conversation) is None
    assert shown(page.listen(conversation, None, False)) == [gr.skip()] * 6  # the player is empty now
    conversation, _ = heard(page, clip)
    assert page.drop_unheard(conversation) == gr.skip()
    assert shown(page.listen(conversation, None, False))[1] == []


def test_what_can_be_stopped_is_marked_while_it_goes_on(page: Page, clip):
    conversation = Conversation()
    busy = ["busy" in row[3] for row in page.listen(conversation, clip, False) if row[3] != gr.skip()]
    assert (busy[0], busy[-1], conversation.is_busy) == (True, False, False)
    notes = [row[2] for row in page.ask(conversation, "Who?", *SEARCH, None) if row[2] != gr.skip()]
    assert ["busy" in note for note in notes] == [True] * (len(notes) - 1) + [False]
    assert re.search(r"Answered in \d+\.\d s\.", notes[-1])


@pytest.mark.parametrize("number", [-1, 1, 99, None, "0", "example.wav", 0.0, [0]])
def test_an_example_that_is_none_gives_no_file(page: Page, clip, number):
    page.examples = {"example.wav": clip}
    assert page.choose(number) is None
    assert page.choose(0) == clip


# ---- the command


def test_what_cannot_be_served_is_told_before_the_model_is_loaded(monkeypatch, tmp_path):
    for arguments, message in (
        (["--max-upload-mb", "-1"], "--max-upload-mb -1"),
        (["--max-minutes", "0"], "--max-minutes 0: more"),
    ):
        monkeypatch.setattr(sys, "argv", ["web", *arguments])
        with pytest.raises(UserError, match=message):
            web.parse_arguments()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be served .*choose another --port"):
            web.require_address("127.0.0.1", port)
    with pytest.raises(UserError, match="--port 70000: a number from 1 to 65535"):
        web.require_address("127.0.0.1", 70000)
    with pytest.raises(UserError, match="no clips in it"):
        web.find_examples([str(tmp_path)])
    with pytest.raises(UserError, match="does not exist"):
        web.find_examples(["/nowhere"])


def test_a_gradio_that_does_not_load_is_told_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(web, "require_files", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["web", "--cfg-path", f"{ROOT}/configs/mini/decode.yaml", "--port", "7999"])
    with pytest.raises(UserError, match=r"the web page needs gradio \(.*\): pip install -r requirements.txt"):
        web.main()


def test_uploads_lie_in_a_folder_of_this_commands_own_or_in_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)  # and set back in the end
    with web.uploads_folder():
        own = Path(os.environ["GRADIO_TEMP_DIR"])
        assert own.stat().st_uid == os.getuid()
        assert own.stat().st_mode & 0o077 == 0
    assert not own.exists()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
        with pytest.raises(UserError, match=f"GRADIO_TEMP_DIR = {folder}: cannot be written to"), web.uploads_folder():
            pass
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "mine"))
    with web.uploads_folder():
        assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "mine")


def test_nobody_else_can_reach_the_page_unless_asked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["web"])
    args = web.parse_arguments()
    assert (args.host, args.share) == ("127.0.0.1", False)


def test_examples_are_files_and_all_of_a_folder(tmp_path):
    for name in ("a/x.wav", "a/deep/y.FLAC", "b/z.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(16_000), 16_000)
    (tmp_path / "a/notes.txt").touch()
    found = web.find_examples([str(tmp_path / "a"), str(tmp_path / "b/z.mp3")])
    assert list(found) == ["a/deep/y.FLAC", "a/x.wav", "b/z.mp3"]
    assert found["b/z.mp3"] == str(tmp_path / "b/z.mp3")
    assert web.find_examples([]) == {}


def test_examples_may_have_names_and_come_from_each_folder_in_turn(tmp_path):
    for name in ("a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav", "a/x=y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(16_000), 16_000)
    found = web.find_examples([str(tmp_path / "a"), f"A bell, then rain={tmp_path}/b/1.wav"])
    assert list(found) == ["a/1.wav", "A bell, then rain", "a/2.wav", "a/3.wav", "a/x=y.wav"]
    assert found["A bell, then rain"] == str(tmp_path / "b/1.wav")
    assert list(web.find_examples([f"{tmp_path}/a/x=y.wav"])) == ["x=y.wav"]
    for wrong in (f"name={tmp_path}/none.wav", "name=", "="):
        with pytest.raises(UserError, match="does not exist"):
            web.find_examples([wrong])


def test_only_audio_inside_a_folder_is_an_example(tmp_path, capsys):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "deep/good.wav", np.zeros(16_000), 16_000)
    (folder / "inside.wav").symlink_to("deep/good.wav")
    (folder / "passwd.wav").symlink_to("/etc/passwd")
    (folder / "text.wav").write_text("root:x:0:0")
    (folder / "empty.wav").touch()
    soundfile.write(tmp_path / "other.wav", np.zeros(16_000), 16_000)
    (folder / "linked.wav").symlink_to(tmp_path / "other.wav")
    (folder / "out").symlink_to(tmp_path)
    for name in (b"caf\xe9.wav", b"red\x1b[31m.wav", b"two\nlines.wav"):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes((folder / "deep/good.wav").read_bytes())
    assert list(web.find_examples([str(folder)])) == ["deep/good.wav", "inside.wav"]
    told = capsys.readouterr().err
    assert "--examples: 7 left out, e.g. " in told
    assert "\x1b" not in told
    for file in ("passwd.wav", "linked.wav", "text.wav"):
        with pytest.raises(UserError, match="is no clip that can be shown"):
            web.find_examples([str(folder / file)])
    assert list(web.find_examples([str(folder / "deep/good.wav")])) == ["good.wav"]


def test_gradio_loads_only_for_the_page():
    code = "import sys, salmonn.chat, salmonn.web.__main__; print({'gradio', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"


# ---- in a browser


def test_a_page_that_is_served_for_a_while_is_closed_whatever_happens(page: Page, monkeypatch):
    closed = []
    monkeypatch.setattr(layout, "build", lambda page: page)
    monkeypatch.setattr(layout, "serve", lambda *_, **__: "http://127.0.0.1")
    monkeypatch.setattr(layout, "close", closed.append)
    with pytest.raises(ZeroDivisionError), served(page):
        print(1 / 0)
    assert closed == [page]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium, started once."""
    try:
        with open_browser() as browser:
            yield browser
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def address(page: Page, clip, monkeypatch) -> Iterator[str]:
    """A page that is served, with one example."""
    monkeypatch.setattr(web_screenshot, "_PATIENCE", HANG)
    page.examples = {"example.wav": clip}
    with served(page, max_upload_mb=1) as address:
        yield address


_BEYOND_THE_EDGE = """return [...document.querySelectorAll("h1, p, img, button, textarea, label, .block, .message")]
    .filter(part => part.getBoundingClientRect().right > innerWidth).map(part => part.outerHTML)"""
_LEFT_OVER = """return [...document.querySelectorAll("footer, [class*=api], a")].map(part => part.outerHTML)
    .concat(document.body.innerText.match(/gradio|use via api|built with/gi) ?? [])"""


def fits(visitor: Visitor) -> bool:
    """Whether nothing lies beyond the edge, on a phone and on a desk."""
    beyond = []
    for width in (400, 1280):
        visitor.resize(width)
        beyond += visitor.browser.execute_script(_BEYOND_THE_EDGE)
    return beyond == []


def test_a_visit(browser, address: str, page: Page, clip, long_clip, written, tmp_path):
    visitor = Visitor(browser, address)
    until, find, texts = visitor.until, visitor.find, visitor.texts
    assert browser.title == "SALMONN"
    assert browser.execute_script(_LEFT_OVER) == []

    too_large = tmp_path / "large.wav"
    soundfile.write(too_large, np.zeros(600_000), 16_000)
    visitor.upload(too_large)
    until(lambda: find("#error [role=alert]"))
    assert "exceed the maximum allowed size of 1.0 Mb" in texts("#error [role=alert]")[0]

    broken = tmp_path / "broken.wav"
    broken.write_text("this is not audio")
    visitor.upload(broken)
    until(lambda: texts("#error [role=alert]") == ["broken.wav: undecodable: Format not recognised"])

    visitor.upload(clip)
    until(lambda: find("#picture img"))
    assert not find("#error [role=alert]")
    engine = page.engine
    for text in ("What is said?", "배는 무슨 색입니까?"):
        visitor.ask(text)
        [answer] = engine.ask(engine.hear([clip]), engine.question(text))
        until(lambda answer=answer: texts(".message.bot")[-1:] == [answer.text])
    visitor.press("Transcribe")
    [answer] = engine.ask(engine.hear([clip]), engine.task_question("asr"))
    until(lambda: texts(".message.bot")[2:] == [answer.text])
    assert texts(".message.user")[-1] == "Transcribe"
    assert fits(visitor)

    page.engine = InferenceEngine(engine.model, OmegaConf.merge(engine.config, {"generate": VERY_LONG}))
    n_written = len(written)
    visitor.press("Describe the sound")
    until(lambda: len(texts(".message.bot")) == 4 and texts(".message.bot")[-1] not in WAITING)
    visitor.press("Stop")
    until(lambda: texts(".note")[-1:] == ["Stopped."])
    page.queue.run(int)  # the model is free for others
    assert len(written) == n_written

    visitor.press("Describe the sound")
    until(lambda: len(texts(".message.bot")) == 5 and texts(".message.bot")[-1] not in WAITING)
    find("#chat button[aria-label=Clear]")[0].click()
    until(lambda: texts(".message.bot") == texts(".note") == [])
    page.queue.run(int)
    assert len(written) == n_written
    page.engine = engine
    visitor.press("Transcribe")
    until(lambda: texts(".message.bot") == [answer.text])

    visitor.upload(long_clip)
    until(lambda: texts(".note") == ["Only the first 5 s are heard."])
    assert texts(".message") == []
    find("#in-windows input")[0].click()
    until(lambda: texts(".note") == ["7.4 s, heard in 3 windows; the picture shows the first."])
    assert fits(visitor)
    visitor.press("Describe the sound")
    heard = engine.hear_long(long_clip)
    [answer] = engine.ask(heard, engine.task_question("audiocaption"))
    until(lambda: texts(".message.bot") == [answer.text])
    assert answer.text.startswith("[0:00.0 - ")

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def test_two_visitors_with_settings_of_their_own(browser, address: str, page: Page, clip, monkeypatch, request):
    engine, asked = page.engine, []
    [transcript] = engine.ask(engine.hear([clip]), engine.task_question("asr"))
    answer = engine.model.answer_embeds

    def watch(embeds, chosen, settings, *spelling, **library):
        asked.append((engine.model.lora_scaling, settings.num_beams))
        return answer(embeds, chosen, settings, *spelling, **library)

    monkeypatch.setattr(engine.model, "answer_embeds", watch)
    tabs = [browser.current_window_handle]
    first = Visitor(browser, address)
    browser.switch_to.new_window("tab")
    tabs.append(browser.current_window_handle)
    second = Visitor(browser, address)
    for tab, visitor in zip(tabs, (first, second), strict=True):
        browser.switch_to.window(tab)
        visitor.choose("example.wav")
        visitor.until(lambda visitor=visitor: visitor.find("#picture img"))
    busy = request.getfixturevalue("busy")

    second.press("Settings")
    second.set("LoRA scaling", 1.5)
    second.set("Beams", 2)
    second.ask("What is said?")
    second.until(lambda: second.texts(".note") == ["Waiting: the model is busy with other requests."])
    browser.switch_to.window(tabs[0])
    first.press("Transcribe")
    first.until(lambda: first.texts(".message.bot") == ["…"])
    busy.set()
    first.until(lambda: first.texts(".message.bot") == [transcript.text])
    browser.switch_to.window(tabs[1])
    second.until(lambda: second.texts(".message.bot") not in ([], ["…"]))
    assert second.texts(".message.user") == ["What is said?"]
    assert asked == [(1.5, 2), (4.0, 1)]
