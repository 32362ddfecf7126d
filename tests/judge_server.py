"""A small OpenAI-compatible endpoint for the tests of judges, and what those tests share."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import ROOT
from salmonn.config import load_config
from salmonn.evaluation.judge import Question
from salmonn.evaluation.judge_prompts import JUDGED_TASKS

KEY = "sk-a-very-secret-key-0123456789"
QUESTIONS = [
    Question(str(i), JUDGED_TASKS[i % 3], f"question {i}?", (f"reference {i}",), f"answer {'good' if i % 2 else 'bad'}")
    for i in range(8)
]


class Judge:
    """A small endpoint: counts requests, says yes to answers that hold `good`; `rule` may do otherwise."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.lock = threading.Lock()
        self.rule = lambda *_: None  # (status, body[, headers]) instead of a verdict
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.handle_error = lambda *_: None  # clients that time out or are killed
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self):
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge.lock:
                    judge.requests.append({"path": self.path, **body})
                    judge.headers.append(dict(self.headers))
                    number = len(judge.requests)
                prompt = body["messages"][0]["content"]
                status, text, *more = judge.rule(number, prompt) or (200, completion(verdict_on(prompt)))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **(more[0] if more else {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args):
                pass

        return Handler


def completion(content: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def verdict_on(prompt: str) -> str:
    return "Yes." if "good" in prompt.split("<answer>")[1] else "no"


def settings(*options: str):
    return load_config(
        ROOT / "configs/evaluate.yaml", [f"evaluate.judge.{option}" for option in options]
    ).evaluate.judge


def endpoint(judge: Judge, *options: str):
    return settings("kind=openai", f"base_url={judge.url}", "model=tiny-judge", *options)


def expect_right(verdicts) -> None:
    assert [(v.id, v.correct) for v in verdicts] == [(q.id, "good" in q.answer) for q in QUESTIONS]
