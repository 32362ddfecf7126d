"""Talking to the model: one question with files, a conversation that survives wrong input, audio encoded once."""

import json
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import TextIteratorStreamer

from salmonn.audio.decode import load_clip
from salmonn.chat import Chat, answer_once, converse, hear, main, number, parse_arguments
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.inference.engine import InferenceEngine
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG


@pytest.fixture(scope="module")
def options(mini_world: Path, tmp_path_factory) -> list[str]:
    output = tmp_path_factory.mktemp("out")
    paths = [option for option in mini_options(mini_world, output) if not option.startswith("datasets.")]
    return [*paths, "model.ckpt=", "generate.max_new_tokens=12", "generate.num_beams=1"]


@pytest.fixture(scope="module")
def engine(options: list[str]) -> InferenceEngine:
    torch.manual_seed(0)
    return InferenceEngine.load(load_config(ROOT / "configs/mini/decode.yaml", options))


@pytest.fixture
def chat(engine: InferenceEngine, monkeypatch) -> Chat:
    monkeypatch.setattr(engine.model, "lora_scaling", engine.model.lora_scaling)  # put back after the test
    return Chat(engine)


@pytest.fixture(scope="module")
def clips(mini_world: Path) -> list[str]:
    return [str(path) for path in sorted((mini_world / "audio/speech").glob("test_*.wav"))[:2]]


@pytest.fixture
def long_clip(tmp_path: Path) -> str:
    """12 s, more than twice what the miniature Whisper hears."""
    path = tmp_path / "long.wav"
    noise = np.random.default_rng(0).normal(size=12 * 16_000)
    soundfile.write(path, 0.1 * noise, 16_000)
    return str(path)


def talk(options: list[str], *arguments: str, typed: bytes | None = None) -> subprocess.CompletedProcess:
    command = ["-m", "salmonn.chat", "--cfg-path", "configs/mini/decode.yaml", *arguments, "--options", *options]
    if typed is None:
        return run_command(*command)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, input=typed, capture_output=True, timeout=HANG)
    return subprocess.CompletedProcess(command, result.returncode, result.stdout.decode(), result.stderr.decode())


# ---- one question


def test_each_file_of_a_batch_gets_the_answer_that_it_gets_alone(options, clips, engine):
    result = talk(options, "--audio", *clips, "--prompt", "What is said?", "--json")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["audio"] for answer in answers] == clips
    prompt = "USER: <Speech><SpeechHere></Speech> What is said?\nASSISTANT:"
    for answer in answers:
        wav = torch.from_numpy(load_clip(answer["audio"], 5.0))[None]
        [alone] = engine.model.generate({"raw_wav": wav}, engine.config.generate, [prompt], return_details=True)
        assert answer["prompt"] == prompt
        assert (answer["answer"], answer["finished"]) == (alone["text"], alone["finished"])
    assert "the connector is untrained" in result.stderr


def test_every_wrong_file_is_named_before_the_model_is_loaded(clips, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("this is not audio")
    files = ["--audio", clips[0], "nowhere.wav", str(broken)]
    result = talk(["model.llama_path=/nowhere"], *files, "--prompt", "What is said?")
    assert result.returncode == 2
    assert result.stdout == ""
    missing, undecodable = result.stderr.splitlines()
    assert missing == "error: nowhere.wav: file does not exist"
    assert undecodable.startswith(f"{broken}: undecodable")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audio", "a.wav", "--prompt", " "], "--prompt is empty"),
        (["--task", "asr"], "name them with --audio"),
        (["--audio", "a.wav", "--json"], "--json needs"),
        (["--audio", "a.wav", "--prompt", "x", "--question", "y"], "--question fills"),
        (["--audio", "a.wav", "b.wav"], "several clips need"),
        (["--overlap", "1"], "--overlap is for --long"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chat", *arguments])
    with pytest.raises(UserError, match=message):
        parse_arguments()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "QA"], "the task QA needs a question"),
        (["--task", "QA", "--question", " "], "the task QA needs a question"),
        (["--task", "asr", "--question", "Who?"], "the task asr takes no question"),
        (["--task", "ars"], "no test prompt for the task 'ars' (known: "),
    ],
)
def test_a_task_that_cannot_be_asked_is_told_before_the_model_is_loaded(options, clips, arguments, message):
    result = talk(["model.llama_path=nowhere", *options], "--audio", clips[0], *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("long", [False, True])
def test_answers_about_several_files_are_behind_their_names(engine: InferenceEngine, clips, long, capsys):
    args = Namespace(audio=clips, task="asr", question="", prompt=None, json=False, long=long, overlap=None)
    answer_once(engine, args)
    answers = engine.ask(engine.hear(clips), engine.task_question("asr"))
    expected = [f"{path}: {answer.text}" for path, answer in zip(clips, answers, strict=True)]
    assert capsys.readouterr().out.splitlines() == expected


# ---- conversation

TYPED = """What is said?
/audio nowhere.wav
/audio {broken}
/audio {clip}

/task
/task nothing
/task QA
/task asr now
/task asr
/scale two
/scale -1
/scale nan
/scale 2
/beams 0
/beams 1e9
/beams 2
/autio x
<SpeechHere><SpeechHere>
What is said?
"""


def test_a_conversation_answers_wrong_input_with_a_message_and_goes_on(options, clips, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("this is not audio")
    typed = TYPED.format(broken=broken, clip=clips[0]).encode() + b"\xff\xfe\n/audio \0\n/quit\nnever read\n"
    result = talk(options, typed=typed)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    expected = [
        "no clip is heard yet", "nowhere.wav: file does not exist", "broken.wav: undecodable", "the question is empty",
        "no test prompt for the task 'nothing'", "the task QA needs a question", "the task asr takes no question",
        "'two': give a number", "'-1': give", "'nan': give", "'0': give a whole number", "'1e9': give",
        "did you mean /audio?", "<SpeechHere> exactly once", "\\x00: file does not exist",
    ]  # fmt: skip
    assert len(errors) == len(expected), result.stderr
    for error, part in zip(errors, expected, strict=True):
        assert part in error
    assert "LoRA scaling 2\n" in result.stderr
    assert "2 beams\n" in result.stderr
    prompts = TYPED.count("\n") + 3
    assert result.stdout.count("> ") == prompts
    assert "asr, audiocaption," in result.stdout


def test_the_end_of_the_input_ends_a_conversation(options):
    result = talk(options, typed=b"/help\n")
    assert result.returncode == 0, result.stderr
    assert "/scale NUMBER" in result.stdout


def test_ctrl_c_stops_an_answer_and_not_the_conversation(options, clips):
    endless = [*options, "generate.max_new_tokens=100000", "generate.min_length=100000"]
    command = [sys.executable, "-m", "salmonn.chat", "--cfg-path", "configs/mini/decode.yaml", "--audio", clips[0]]
    process = subprocess.Popen(
        [*command, "--options", *endless],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert any("listening to" in line for line in process.stderr)
        process.stdin.write("What is said?\n")
        process.stdin.flush()
        while (read := process.stdout.read(1)) in "> ":
            assert read, "it has ended"
        process.send_signal(signal.SIGINT)
        assert any("(stopped)" in line for line in process.stderr)
        out, _ = process.communicate("/help\n/quit\n", timeout=HANG)
        assert "/scale NUMBER" in out
        assert process.returncode == 0
    finally:
        process.kill()


@pytest.mark.parametrize("audio", [[], ["a.wav"]], ids=["before a question", "in an answer"])
def test_ctrl_c_under_torchrun_which_then_ends_all_ends_the_conversation(monkeypatch, audio):
    def interrupted(*_: str) -> None:
        monkeypatch.setattr("builtins.input", lambda _: "/quit")
        raise KeyboardInterrupt

    talking = SimpleNamespace(obey=interrupted)
    monkeypatch.setattr("builtins.input", interrupted)
    converse(talking, audio)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converse(talking, audio)


def test_other_ranks_wait_for_as_long_as_a_person_takes(monkeypatch):
    events = []

    @contextmanager
    def within(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append(f"no more {name}")

    model = SimpleNamespace(lending=lambda: within("lending"))
    engine = SimpleNamespace(model=model, config=SimpleNamespace(generate=None))
    monkeypatch.setattr("salmonn.common.distributed.patiently", lambda: within("patient"))
    monkeypatch.setattr("salmonn.common.logging.setup_logging", lambda: None)
    monkeypatch.setattr("salmonn.inference.engine.InferenceEngine", lambda *_: engine)
    monkeypatch.setattr("salmonn.inference.engine.tell_if_untrained", lambda _: None)
    monkeypatch.setattr("salmonn.model.salmonn.load_for_inference", lambda _: None)
    for name in ("require_files", "require_loadable"):
        monkeypatch.setattr(f"salmonn.chat.{name}", lambda *_: None)
    monkeypatch.setattr("salmonn.chat.converse", lambda *_: events.append("a conversation"))
    monkeypatch.setattr(sys, "argv", ["chat", "--cfg-path", str(ROOT / "configs/mini/decode.yaml")])
    main()
    assert events == ["patient", "lending", "a conversation", "no more lending", "no more patient"]


def test_a_clip_is_encoded_once_for_several_questions(chat: Chat, clips, monkeypatch, capsys):
    encoded = []
    encode = chat.engine.model.encode_and_spell
    monkeypatch.setattr(
        chat.engine.model, "encode_and_spell", lambda wav, *rest: encoded.append(len(wav)) or encode(wav, *rest)
    )
    for line in (f"/audio {clips[0]}", "What is said?", "/task asr", "/scale 2", "/beams 2", "Who speaks?"):
        chat.obey(line)
    assert encoded == [1]
    chat.obey(f"/audio '{clips[1]}'")
    assert encoded == [1, 1]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_clip_that_cannot_be_read_leaves_the_one_before(chat: Chat, clips, capsys):
    chat.obey(f"/audio {clips[0]}")
    before = chat.heard
    with pytest.raises(UserError, match=r"nowhere\.wav"):
        chat.obey("/audio nowhere.wav")
    assert chat.heard is before
    chat.obey("What is said?")
    assert capsys.readouterr().out


def test_scaling_and_beams_change_what_is_answered_with(chat: Chat, clips, monkeypatch):
    seen = []
    answer = chat.engine.model.answer_embeds

    def watch(embeds, chosen, settings, *spelling, **library):
        seen.append((chat.engine.model.lora_scaling, settings.num_beams, library["streamer"] is not None))
        return answer(embeds, chosen, settings, *spelling, **library)

    monkeypatch.setattr(chat.engine.model, "answer_embeds", watch)
    for line in (f"/audio {clips[0]}", "What?", "/scale 2", "/beams 3", "What?"):
        chat.obey(line)
    assert seen == [(4.0, 1, True), (2.0, 3, False)]
    assert chat.engine.config.generate.num_beams == 1  # one person's setting is not another's


def test_a_streamed_answer_is_the_same_text(engine: InferenceEngine, chat: Chat, clips, capsys):
    heard, question = engine.hear(clips[:1]), engine.question("What is said?")
    [answer] = engine.ask(heard, question)
    assert answer.text
    streamer = TextIteratorStreamer(engine.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert engine.ask(heard, question, streamer=streamer) == [answer]
    pieces = list(streamer)
    assert "".join(pieces).strip() == answer.text
    assert sum(map(bool, pieces)) > 1
    chat.obey(f"/audio {clips[0]}")
    chat.obey("What is said?")
    assert capsys.readouterr().out.strip() == answer.text


# ---- long clips


def test_without_long_the_beginning_is_heard_and_that_is_told(options, long_clip, engine):
    result = talk(options, "--audio", long_clip, "--task", "asr")
    assert result.returncode == 0, result.stderr
    assert f"{long_clip}: only the first 5 s are heard; --long hears all of it" in result.stderr
    wav = torch.from_numpy(load_clip(long_clip, 5.0))[None]
    expected = engine.model.generate({"raw_wav": wav, "task": ["asr"]}, engine.config.generate)
    assert result.stdout.strip() == expected[0]


def test_long_answers_about_each_window_and_says_so(options, long_clip):
    arguments = ["--audio", long_clip, "--long", "--overlap", "1", "--task", "audiocaption"]
    result = talk(options, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert "12.0 s, put together from 3 windows" in result.stderr
    assert "the published one 30 s" in result.stderr
    answer = json.loads(result.stdout)
    assert [(window["start"], window["end"]) for window in answer["windows"]] == [(0, 5), (4, 9), (8, 12)]
    first = answer["windows"][0]["answer"]
    assert answer["answer"].splitlines()[0] == f"[0:00.0 - 0:05.0] {first}"


def test_windows_of_a_long_clip_are_heard_as_clips_of_their_own(engine: InferenceEngine, long_clip):
    heard = engine.hear_long(long_clip, 1.0)
    wav = load_clip(long_clip, 12.0)
    for row, span in enumerate(heard.spans):
        part = wav[int(span.start * 16_000) : int(span.end * 16_000)]
        [alone] = engine.hear([part]).embeds
        torch.testing.assert_close(heard.embeds[row], alone, atol=1e-4, rtol=0)


def test_a_short_clip_is_not_stitched(engine: InferenceEngine, clips):
    heard, question = engine.hear_long(clips[0]), engine.task_question("asr")
    assert engine.ask(heard, question) == engine.ask(engine.hear(clips[:1]), question)


@pytest.mark.parametrize("overlap", [-1.0, 5.0, float("nan")])
def test_an_overlap_that_leaves_no_window_is_refused(engine: InferenceEngine, clips, overlap):
    with pytest.raises(UserError, match="less than the window of 5 s"):
        engine.hear_long(clips[0], overlap)


@pytest.mark.parametrize("in_windows", [False, True])
def test_that_there_is_hardly_any_sound_in_a_clip_is_told(engine: InferenceEngine, clips, tmp_path, capsys, in_windows):
    soundfile.write(tmp_path / "mute.wav", np.zeros(6 * 16_000), 16_000)
    soundfile.write(tmp_path / "blip.wav", 0.1 * np.ones(50), 16_000)
    for name, said in (("mute", "it holds only silence"), ("blip", "it holds less than 0.1 s of sound")):
        path = str(tmp_path / f"{name}.wav")
        assert hear(engine, [path], in_windows, None).embeds
        assert capsys.readouterr().err.count(f"note: {path}: {said}; the model answers all the same\n") == 1
    hear(engine, clips[:1], in_windows, None)
    assert "sound" not in capsys.readouterr().err


def test_numbers_are_whole_where_they_have_to_be():
    assert number("2.5", float, 0, 10) == 2.5
    with pytest.raises(UserError, match="a whole number from 1 to 64"):
        number("2.5", int, 1, 64)
