"""The server, asked by OpenAI's own client: answers, streams, batches, limits, and who is let in."""

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.inference.engine import InferenceEngine
from salmonn.serve import __main__ as command
from salmonn.serve import api as api_module
from salmonn.serve.batches import Asked, Batches, sure_ids
from salmonn.serve.chat_request import read_request
from salmonn.serve.errors import RefusedError
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from tests.fixtures.served import QUESTION, free_port, in_base64, message
from tests.fixtures.waiting import HANG, wait_until
from tests.fixtures.web_rows import VERY_LONG

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")

pytest_plugins = ["tests.fixtures.web", "tests.fixtures.served"]

KEY = "sk-a-very-secret-key"


def client(served, key: str = "none") -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=HANG)


def ask(served, path, text: str = QUESTION, key: str = "none", **settings):
    return client(served, key).chat.completions.create(model="salmonn", messages=message(path, text), **settings)


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """How many answers each batch of the model had."""
    sizes: list[int] = []
    answer = InferenceEngine.answer_rows
    monkeypatch.setattr(
        InferenceEngine, "answer_rows", lambda *args, **more: sizes.append(len(args[1])) or answer(*args, **more)
    )
    return sizes


# ---- answers


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "ogg"])
def test_a_clip_of_any_kind_is_answered_as_elsewhere(serve, engine, clip, tmp_path, kind):
    wav, rate = soundfile.read(clip)
    soundfile.write(tmp_path / f"clip.{kind}", wav, rate)
    (expected,) = engine.ask(engine.hear([tmp_path / f"clip.{kind}"]), engine.question(QUESTION))
    answered = ask(serve(), tmp_path / f"clip.{kind}")
    (choice,) = answered.choices
    assert choice.message.content == expected.text != ""
    assert choice.finish_reason == ("stop" if expected.finished else "length")
    assert answered.usage.total_tokens == answered.usage.prompt_tokens + answered.usage.completion_tokens
    assert answered.usage.completion_tokens <= 12 < answered.usage.prompt_tokens


def test_base64_may_come_in_lines_and_as_a_data_url(serve, clip):
    served, data = serve(), in_base64(clip)
    plain = ask(served, clip).choices
    for form in ("data:audio/wav;base64," + data, "\n".join(data[i : i + 76] for i in range(0, len(data), 76)) + "\n"):
        asked = message(clip, data=form)
        assert client(served).chat.completions.create(model="salmonn", messages=asked).choices == plain


def test_the_model_is_listed(serve):
    served = serve(name="mine")
    assert [model.id for model in client(served).models.list()] == ["mine"]
    assert client(served).models.retrieve("mine").owned_by == "salmonn"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here, 'mine' is"):
        client(served).models.retrieve("other")


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stream_gives_the_answer_bit_by_bit(serve, engine, clip, beams, monkeypatch):
    monkeypatch.setattr(engine, "config", OmegaConf.merge(engine.config, {"generate": {"num_beams": beams}}))
    monkeypatch.setattr(api_module, "_EVERY", 0.001)
    served = serve()
    whole = ask(served, clip)
    chunks = list(ask(served, clip, stream=True, stream_options={"include_usage": True}))
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(said) == whole.choices[0].message.content
    assert (len(said) > 1) == (beams == 1)
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    "spelled", [["▁a", "<0x42>", "<0xFF>", "b"], ["<0xEB>", "<0xB0>", "<0xB0>", "▁a"], ["</s>", "<0x41>"]]
)
def test_letters_that_stand_in_bytes_are_told_once_no_byte_can_follow(engine, spelled):
    tokenizer = engine.model.tokenizer
    ids = tokenizer.convert_tokens_to_ids(spelled)
    texts = [tokenizer.decode(sure_ids(ids[:n], tokenizer), skip_special_tokens=True) for n in range(len(ids) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(texts[-1])


def test_how_to_search_is_the_clients_choice(serve, clip):
    served = serve()
    short = ask(served, clip, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert ask(served, clip, max_completion_tokens=2).choices == short.choices
    plain = ask(served, clip)
    assert (
        ask(served, clip, temperature=0, seed=None, frequency_penalty=0, stop=None, user="me").choices == plain.choices
    )
    several = ask(served, clip, temperature=2, top_p=1, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1
    streamed = list(ask(served, clip, temperature=2, n=2, stream=True))
    assert {choice.index for chunk in streamed for choice in chunk.choices if choice.delta.content} == {0, 1}


def test_those_who_wait_are_answered_together_and_as_alone(serve, busy, engine, mini_world, rows):
    clips = sorted((mini_world / "audio/speech").glob("test_*.wav"))[:3]
    expected = [engine.ask(engine.hear([path]), engine.question(QUESTION))[0].text for path in clips]
    rows.clear()
    served, answers = serve(), {}

    def answer(i: int, **settings: int) -> None:
        answers[i] = ask(served, clips[i % 3], **settings)

    askers = [threading.Thread(target=answer, args=[i]) for i in range(3)]
    askers.append(threading.Thread(target=answer, args=[3], kwargs={"max_tokens": 3}))
    for n_waiting, asker in enumerate(askers, 1):
        asker.start()
        wait_until(lambda n=n_waiting: len(served.batches._waiting) == n)
    busy.set()
    for asker in askers:
        asker.join(HANG)
    assert [answers[i].choices[0].message.content for i in range(3)] == expected
    assert answers[3].usage.completion_tokens == 3
    assert rows == [2, 1, 1]  # run.batch_size_eval is 2; other settings, another batch


def test_of_a_long_clip_the_beginning_is_heard_if_that_is_wanted(serve, engine, long_clip):
    with pytest.raises(openai.BadRequestError, match="the clip is longer than 5 s"):
        ask(serve(), long_clip)
    (expected,) = engine.ask(engine.hear([long_clip]), engine.question(QUESTION))
    assert ask(serve(cut_long=True), long_clip).choices[0].message.content == expected.text


def test_an_answer_about_silence_comes_with_a_warning(serve, clip, tmp_path):
    soundfile.write(tmp_path / "mute.wav", np.zeros(16_000), 16_000)
    served = serve()
    assert ask(served, tmp_path / "mute.wav").model_extra == {"warning": "the clip: it holds only silence"}
    assert all(event.warning for event in ask(served, tmp_path / "mute.wav", stream=True))
    assert not ask(served, clip).model_extra


# ---- what is refused


def body(clip, **more) -> dict:
    return {"model": "salmonn", "messages": message(clip), **more}


def content(*parts: dict) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def sound(data: str) -> dict:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


TEXT = {"type": "text", "text": "What?"}
NOISE = "UklGRhAAAABub25zZW5zZQ=="


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"model": "gpt-4o"}, 404, "'gpt-4o' is not served here, 'salmonn' is"),
        ({"messages": []}, 400, "messages: give one message, of the role user"),
        ({"messages": [{"role": "system", "content": [TEXT]}]}, 400, "messages: give one message, of the role user"),
        ({"messages": [{"role": "user", "content": "What?"}]}, 400, "messages.0.content: give a list of parts"),
        (content(TEXT), 400, "0 parts are input_audio"),
        (content(TEXT, sound(NOISE), sound(NOISE)), 400, "2 parts are input_audio"),
        (content(sound(NOISE)), 400, "the question is empty"),
        (content(TEXT, sound(NOISE)), 400, "input_audio: undecodable"),
        (content(TEXT, sound("")), 400, "input_audio: empty file"),
        (content(TEXT, sound("%%%")), 400, "input_audio.data is no base64"),
        (content(TEXT, {"type": "image_url", "image_url": {"url": "x"}}), 400, "image_url"),
        (content({**TEXT, "text": "a" * 2001}, sound(NOISE)), 400, "2001 characters, up to 2000"),
        (content({**TEXT, "text": "<SpeechHere> <SpeechHere>"}, sound(NOISE)), 400, "exactly once"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 10**6}, 400, "max_tokens: Input should be less than or equal to 2048"),
        ({"max_tokens": "12"}, 400, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "differ"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0.5}, 400, "top_p: is of sampling"),
        ({"n": 2}, 400, "n: the answers would be the same"),
        ({"n": 9, "temperature": 1}, 400, "n: Input should be less than or equal to 8"),
        ({"stop": ["."]}, 400, "stop: not supported here"),
        ({"seed": 1}, 400, "seed: not supported here"),
        ({"logprobs": True}, 400, "logprobs: not supported here"),
        ({"tools": [{"type": "function"}]}, 400, "tools: not supported here"),
        ({"num_beams": 2}, 400, "num_beams: no such parameter here"),
        ({"stream_options": {"include_usage": True}}, 400, "only for stream=true"),
    ],
)
def test_what_would_not_be_heeded_is_refused_and_why(serve, clip, changes, status, told):
    answered = httpx.post(f"{serve().url}/v1/chat/completions", json={**body(clip), **changes})
    assert answered.status_code == status
    error = answered.json()["error"]
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(answered.content) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"a" * 10**5: 1},
        {"model": "b" * 10**5},
        content({**TEXT, "c" * 10**5: 1}, sound(NOISE)),
        content({"type": "d" * 10**5}),
        {"messages": [{"role": "user", "content": [TEXT], "e" * 10**5: 1}]},
    ],
)
def test_what_is_refused_is_not_repeated_at_length(changes):
    with pytest.raises(RefusedError) as refused:
        read_request(json.dumps({"model": "salmonn", **content(TEXT), **changes}).encode(), "salmonn")
    assert refused.value.status in (400, 404)
    assert len(json.dumps(refused.value.body)) < 1000


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"\xff", b'{"temperature": NaN}', b'{"model": 1}'])
def test_what_is_no_request_is_refused(serve, sent):
    answered = httpx.post(f"{serve().url}/v1/chat/completions", content=sent)
    assert (answered.status_code, set(answered.json())) == (400, {"error"})


def test_other_addresses_are_told_in_the_same_form(serve):
    served = serve()
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/docs", 404)):
        answered = httpx.request(method, served.url + path)
        assert (answered.status_code, set(answered.json())) == (status, {"error"})


def test_a_clip_that_is_too_large_is_refused_before_it_is_read_and_after(serve, tmp_path):
    soundfile.write(tmp_path / "large.wav", np.zeros(16_000), 16_000)  # 32 kB
    with pytest.raises(openai.APIStatusError, match=r"the clip has 0\.0 MB") as refused:
        ask(serve(largest_clip=20_000), tmp_path / "large.wav")
    assert refused.value.status_code == 413
    soundfile.write(tmp_path / "huge.wav", np.zeros(4_000_000), 16_000)  # more than a socket holds
    with pytest.raises(openai.APIStatusError, match="The request is too long") as refused:
        ask(serve(largest_clip=20_000), tmp_path / "huge.wav")
    assert refused.value.status_code == 413


def test_a_request_without_a_length_is_refused(serve):
    answered = httpx.post(f"{serve().url}/v1/chat/completions", content=iter([b"{", b"}"]))
    assert (answered.status_code, set(answered.json())) == (411, {"error"})


def test_who_sends_too_slowly_is_told(serve, monkeypatch):
    monkeypatch.setattr(api_module, "_SLOWEST_BODY", 0.1)

    host, _, port = serve().url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=HANG) as slow:  # its second byte never comes
        slow.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "http://localhost:3000"}]
)
def test_other_sites_are_kept_out(serve, headers):
    answered = httpx.get(f"{serve().url}/v1/models", headers=headers)
    assert answered.status_code == 403
    assert answered.json()["error"]["type"] == "permission_error"


def test_without_the_key_nothing_is_answered_and_the_key_is_told_nowhere(serve, clip, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    served = serve(key=KEY)
    for shown in ({}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": b"Bearer \xff"}):
        answered = httpx.get(f"{served.url}/v1/models", headers=shown)
        assert (answered.status_code, answered.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert KEY not in answered.text
    with pytest.raises(openai.AuthenticationError):
        client(served, "wrong").chat.completions.create(**body(clip))
    assert client(served, KEY).chat.completions.create(**body(clip)).choices
    assert KEY not in caplog.text + "".join(capfd.readouterr())


def test_when_too_many_wait_others_are_told_to_try_again(serve, busy, clip):
    served = serve(most_waiting=1)
    first = threading.Thread(target=ask, args=[served, clip])
    first.start()
    wait_until(lambda: served.batches._waiting)
    with pytest.raises(openai.RateLimitError, match="1 requests are waiting already") as refused:
        ask(served, clip)
    assert refused.value.response.headers["Retry-After"] == "5"
    busy.set()
    first.join(HANG)


@pytest.mark.usefixtures("busy")
def test_an_answer_that_takes_too_long_is_given_up(serve, clip):
    served = serve(seconds=0.2)
    with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.2 s") as refused:
        ask(served, clip)
    assert refused.value.status_code == 503
    with pytest.raises(openai.APIError, match=r"no answer within 0\.2 s"):
        list(ask(served, clip, stream=True))
    wait_until(lambda: all(asked.left.is_set() for asked in served.batches._waiting))


@pytest.mark.parametrize("problem", [UserError("out of GPU memory: try fewer beams"), ValueError("a secret")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_in_the_model_is_told_without_its_details(serve, clip, monkeypatch, problem, stream):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(InferenceEngine, "answer_rows", fail)
    words = "out of GPU memory" if isinstance(problem, UserError) else "the log of the server tells more"
    with pytest.raises(openai.APIError, match=words) as told:
        list(ask(serve(), clip, stream=stream))
    assert "secret" not in str(told.value)
    if not stream:
        assert told.value.status_code == (503 if isinstance(problem, UserError) else 500)


# ---- who leaves, and the end


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_stops_for_a_client_that_leaves(serve, engine, clip, monkeypatch, stream):
    monkeypatch.setattr(engine, "config", OmegaConf.merge(engine.config, {"generate": VERY_LONG}))
    served = serve()
    begun: list[Asked] = []
    answer = Batches._answer
    monkeypatch.setattr(Batches, "_answer", lambda self, batch: begun.extend(batch) or answer(self, batch))
    host, _, port = served.url.removeprefix("http://").partition(":")
    sent = json.dumps(body(clip, stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(head.encode() + sent)
        wait_until(lambda: begun)
    wait_until(begun[0].answers.done)
    assert isinstance(begun[0].answers.exception(), CancelledError)  # not brought to its end


def test_who_has_left_is_not_answered_and_holds_nobody_up(queue, engine, clip, rows):
    batches = Batches(queue)
    asked = [Asked(engine.read_clip(clip), engine.question(QUESTION), engine.config.generate) for _ in range(2)]
    asked[0].left.set()
    batches._waiting = asked
    queue.run(batches._answer_some)
    assert asked[0].answers.cancelled() or not asked[0].answers.done()
    assert asked[1].answers.result().details[0]["text"]
    assert rows == [1]


def test_who_leaves_while_others_are_answered_gets_no_more_words(queue, engine, clip):
    """Else a batch would last as long as the answer that nobody waits for."""
    long = OmegaConf.merge(engine.config.generate, {"max_new_tokens": 40, "min_length": 40})
    first, second = (Asked(engine.read_clip(clip), engine.question(QUESTION), long, is_told=True) for _ in range(2))
    batches = Batches(queue)
    taken = batches._take
    batches._take = lambda: [taken(), first.left.set()][0]  # as it begins
    batches._waiting = [first, second]
    queue.run(batches._answer_some)
    lengths = [len(asked.answers.result().details[0]["token_ids"]) for asked in (first, second)]
    assert lengths[0] <= 2 < lengths[1]


@pytest.mark.usefixtures("busy")
def test_at_the_end_what_waits_is_refused(serve, clip):
    served, told = serve(), []

    def wait() -> None:
        try:
            ask(served, clip)
        except openai.APIStatusError as error:
            told.append((error.status_code, error.message))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: served.batches._waiting)
    served.api.door.close(HANG)
    served.batches.refuse_waiting()
    waiting.join(HANG)
    assert told[0][0] == 503
    assert "The server is ending" in told[0][1]
    assert httpx.get(f"{served.url}/v1/models").status_code == 503


# ---- the command line


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        (["--host", "0.0.0.0"], None, "--host 0.0.0.0 lets other machines in: put a key"),
        ([], "", "SALMONN_API_KEY holds no key"),
        ([], "with space", "SALMONN_API_KEY holds no key"),
        ([], "schlüssel", "SALMONN_API_KEY holds no key"),
        (["--port", "0"], None, "--port 0: a number from 1 to 65535"),
        (["--max-waiting", "0"], None, "--max-waiting 0: 1 or more"),
        (["--max-upload-mb", "nan"], None, "--max-upload-mb nan"),
        (["--max-seconds", "0"], None, "--max-seconds 0: more than 0"),
        (["--cfg-path", "nowhere.yaml"], "sk-1", "config file nowhere.yaml does not exist"),
    ],
)
def test_what_is_wrong_with_the_command_is_told_first(options, key, told, monkeypatch):
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(command.KEY_VARIABLE, key)
    monkeypatch.setattr("sys.argv", ["salmonn-serve", *options])
    with pytest.raises(UserError, match=told) as error:
        command.main()
    assert not key or key not in str(error.value)


def test_the_command_serves_and_ends_when_it_is_told_to(mini_world, tmp_path, clip, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    port = free_port()
    options = [option for option in mini_options(mini_world, tmp_path) if "datasets." not in option]
    options = ["--options", *options, "model.ckpt=", "generate.max_new_tokens=12"]
    served = [sys.executable, "-m", "salmonn.serve", "--cfg-path", "configs/mini/decode.yaml", "--port", str(port)]
    process = subprocess.Popen(
        [*served, *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, command.KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == f"SALMONN is at http://127.0.0.1:{port}/v1 (Ctrl-C ends it)\n"
        assert ask(SimpleNamespace(url=f"http://127.0.0.1:{port}"), clip, key=KEY).choices
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert KEY not in out + err
    assert "Traceback" not in err
