"""The page is for those who ask for it by its own name, and takes so much of each and no more."""

import asyncio
import http.client
import socket

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from salmonn.web import gate
from salmonn.web.gate import Gate, own_names
from salmonn.web.layout import close, serve

OWN = "127.0.0.1:7860"


async def read(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def client(host="127.0.0.1", address="http://127.0.0.1:7860", largest_file=1000) -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", read, methods=["GET", "POST"])])
    return TestClient(Gate(app, own_names(host), largest_file), base_url=address)


@pytest.mark.parametrize(
    ("host", "asked", "origin", "is_taken"),
    [
        ("127.0.0.1", OWN, None, True),
        ("127.0.0.1", "localhost:7860", "http://localhost:7860", True),
        ("127.0.0.1", "LOCALHOST:8000", "http://127.0.0.1:8000", True),  # forwarded by ssh
        ("127.0.0.1", "evil.example:7860", None, False),
        ("127.0.0.1", "evil.example:7860", "http://evil.example:7860", False),
        ("127.0.0.1", "127.0.0.1.evil.example", None, False),
        ("127.0.0.1", "evil.example@127.0.0.1", "http://evil.example", False),
        ("127.0.0.1", "evil.example@127.0.0.1", None, False),
        ("127.0.0.1", OWN, "http://evil.example@127.0.0.1:7860", False),
        ("127.0.0.1", "", None, False),
        ("127.0.0.1", "127.0.0.1:port", None, False),
        ("127.0.0.1", "10.0.0.5:7860", None, False),
        ("127.0.0.1", OWN, "http://evil.example", False),
        ("127.0.0.1", OWN, "http://localhost:3000", False),  # another page of this machine
        ("127.0.0.1", OWN, "null", False),
        ("127.0.0.1", OWN, "http://[bad", False),
        ("gpu.lab", "GPU.lab:80", "http://gpu.lab:80", True),
        ("gpu.lab", "other.lab:80", None, False),
        ("0.0.0.0", "10.0.0.5:7860", "http://10.0.0.5:7860", True),
        ("0.0.0.0", f"{socket.gethostname()}:7860", None, True),
        ("0.0.0.0", "evil.example:7860", None, False),
        ("0.0.0.0", "10.0.0.5:7860", "http://evil.example:7860", False),
    ],
)
def test_who_is_let_in(host, asked, origin, is_taken):
    headers = {"host": asked} | ({"origin": origin} if origin else {})
    answers = [client(host).get("/", headers=headers), client(host).post("/x", content=b"a", headers=headers)]
    assert [answer.status_code for answer in answers] == ([200, 200] if is_taken else [403, 403])


def upload(visitor: TestClient, size: int = 10, files: int = 1):
    return visitor.post(
        "/gradio_api/upload?upload_id=1", files=[("files", (f"{i}.wav", b"a" * size)) for i in range(files)]
    )


def test_a_visitor_uploads_so_many_files_so_many_bytes_and_again_when_they_are_gone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])
    visitor = client(largest_file=10_000)
    assert {upload(visitor).status_code for _ in range(gate.MOST_UPLOADS)} == {200}
    assert upload(visitor).status_code == 429
    assert visitor.post("/x", content=b"a").status_code == 200
    now[0] = gate.KEPT + 1
    assert [upload(visitor, 9_000).status_code for _ in range(12)] == [200] * 10 + [429] * 2


def test_many_files_in_one_upload_count_each():
    visitor = client(largest_file=10**6)
    assert upload(visitor, files=gate.MOST_UPLOADS).status_code == 200
    assert upload(visitor).status_code == 429


@pytest.mark.parametrize("name", ["filename=", "filename*=utf-8''", "FileName="])
def test_one_upload_brings_no_more_files_than_many_may(name):
    def body(files: int) -> bytes:
        head = f'--b\r\nContent-Disposition: form-data; name="files"; {name}"a.wav"\r\n\r\na\r\n'
        return (head * files + "--b--\r\n").encode()

    headers = {"content-type": "multipart/form-data; boundary=b"}
    for files, status in ((gate.MOST_UPLOADS, 200), (gate.MOST_UPLOADS + 1, 429), (900, 429)):
        visitor = client(largest_file=10**6)
        assert visitor.post("/gradio_api/upload", content=body(files), headers=headers).status_code == status
        assert upload(visitor).status_code == 429


def test_other_requests_are_short_and_say_how_long_they_are():
    visitor = client()
    assert visitor.post("/gradio_api/queue/join", content=b"a" * 10**6).text == str(10**6)
    assert visitor.post("/gradio_api/queue/join", content=b"a" * 2**21).status_code == 413
    assert visitor.post("/gradio_api/queue/join", content=iter([b"a", b"b"])).status_code == 411


def test_a_connection_that_stays_open_is_checked_too():
    sent = []

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "headers": [(b"host", b"evil.example")], "path": "/"}
    asyncio.run(Gate(None, own_names("127.0.0.1"), 1)(scope, None, send))
    assert sent == ["websocket.close"]


def test_the_page_that_is_served_has_the_gate(tmp_path):
    (tmp_path / "example.wav").write_bytes(b"sound")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with gr.Blocks() as blocks:
        gr.Textbox()
    serve(blocks, "127.0.0.1", port, False, 1, [str(tmp_path / "example.wav")])
    try:
        for path in ("/", "/config", f"/gradio_api/file={tmp_path}/example.wav"):
            got = {host: status(port, path, host) for host in (f"localhost:{port}", "evil.example")}
            assert got == {f"localhost:{port}": 200, "evil.example": 403}
    finally:
        close(blocks)


def status(port: int, path: str, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Host": host})
    return connection.getresponse().status
