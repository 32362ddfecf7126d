"""Serve a SALMONN to programs that speak OpenAI's protocol: /v1/chat/completions with input_audio, /v1/models.

  python -m salmonn.serve                                        the final model, at http://127.0.0.1:8000/v1
  python -m salmonn.serve --ckpt salmonn_v1.pth --port 9000
  python -m salmonn.serve --cfg-path configs/mini/decode.yaml --options generate.num_beams=1
                                                                 the miniature world's; streams word by word

Only this machine can reach it, unless --host says otherwise; then clients have to show the key that is in the
environment variable SALMONN_API_KEY, which is asked for on this machine, too, where it is set. Requests that wait
are answered together, run.batch_size_eval at a time. Ctrl-C, or SIGTERM, ends it: what is being answered is
brought to its end, what waits is refused. docs/serving.md has examples.
"""

import ipaddress
import os
import signal
import threading
import time
from argparse import Namespace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from salmonn.common.address import add_address, require_address
from salmonn.common.cli import asking_parser, run_cli, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.imports import importing
from salmonn.config.loading import load_config
from salmonn.preflight import MINI_ANSWERS, require_files

if TYPE_CHECKING:
    import uvicorn

KEY_VARIABLE = "SALMONN_API_KEY"

_GRACE = 30  # s, in which the answers under way are brought to their end


def main() -> None:
    """Load the model and serve it until Ctrl-C."""
    args = parse_arguments()
    key = read_key(args.host)
    config = load_config(args.cfg_path, args.options, args.ckpt)
    require_address(args.host, args.port)  # all that is wrong is known before the model is loaded
    require_files(config, (), (), "the server", MINI_ANSWERS)
    tell_wait(f"loading the server and {config.model.ckpt or config.model.llama_path}")
    require_fastapi()
    serve(args, config, key)


def parse_arguments() -> Namespace:
    """The command line. Raises UserError for numbers that cannot be."""
    parser = asking_parser(__doc__)
    add = parser.add_argument
    add_address(parser, 8000)
    add("--name", default="salmonn", metavar="NAME", help="what clients call the model (default: salmonn)")
    add("--max-upload-mb", type=float, default=25, metavar="MB", help="largest clip that is taken (default: 25)")
    add("--max-waiting", type=int, default=32, metavar="NUMBER", help="requests at a time (default: 32)")
    add("--max-seconds", type=float, default=600, metavar="SECONDS", help="until an answer is there (default: 600)")
    add("--cut-long", action="store_true", help="of clips that are too long hear the beginning, as evaluate.py does")
    args = parser.parse_args()
    wrong = {
        "--name: give a name": not args.name.strip(),
        f"--max-upload-mb {args.max_upload_mb:g}: more than 0, up to 1000": not 0 < args.max_upload_mb <= 1000,
        f"--max-waiting {args.max_waiting}: 1 or more": args.max_waiting < 1,
        f"--max-seconds {args.max_seconds:g}: more than 0": not args.max_seconds > 0,
    }
    if problems := [problem for problem, is_wrong in wrong.items() if is_wrong]:
        raise UserError("\n".join(problems))
    return args


def read_key(host: str) -> str:
    """The key that clients have to show, "" for none. Raises UserError for a key that cannot be sent, or is needed."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        if not _is_this_machine(host):
            raise UserError(f"--host {host} lets other machines in: put a key for them into {KEY_VARIABLE}")
        return ""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY_VARIABLE} holds no key: letters, digits and signs of ASCII, without spaces")
    return key


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_fastapi() -> None:
    """Raises UserError where the server's packages are not there, or do not load."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the server needs FastAPI and uvicorn ({error}): pip install -r requirements.txt") from error


def serve(args: Namespace, config: DictConfig, key: str) -> None:
    """Load the model and serve it."""
    with importing():  # torch and transformers load only now
        import uvicorn

        from salmonn.common.logging import setup_logging
        from salmonn.inference.engine import InferenceEngine, tell_if_untrained
        from salmonn.serve.api import Api, Service
        from salmonn.serve.batches import Batches
        from salmonn.web.gate import own_names
        from salmonn.web.request_queue import RequestQueue

    setup_logging()
    queue = RequestQueue(InferenceEngine.load(config, "the server"))
    tell_if_untrained(config)
    largest_clip = int(args.max_upload_mb * 2**20)
    service = Service(args.name, key, largest_clip, args.max_waiting, args.max_seconds, args.cut_long)
    batches = Batches(queue)
    api = Api(batches, service)
    settings = uvicorn.Config(
        api.guarded(own_names(args.host)), host=args.host, port=args.port, lifespan="off", access_log=False,
        log_config=None, log_level="warning", server_header=False, timeout_graceful_shutdown=_GRACE,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, name="server")  # off the main thread it leaves signals alone
    ending = threading.Event()
    try:
        thread.start()
        _wait_until_served(server, thread, args)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _end(ending, server))
        print(f"SALMONN is at http://{args.host}:{args.port}/v1 (Ctrl-C ends it)", flush=True)
        while not ending.wait(1) and thread.is_alive():
            pass
        api.door.close(_GRACE - 5)
        batches.refuse_waiting()
    finally:
        server.should_exit = True
        thread.join()
        queue.close()


def _end(ending: threading.Event, server: "uvicorn.Server") -> None:
    """On a signal; on the second one without waiting for anybody."""
    server.force_exit = ending.is_set()
    ending.set()


def _wait_until_served(server: "uvicorn.Server", thread: threading.Thread, args: Namespace) -> None:
    """Raises UserError where the port was taken meanwhile."""
    while not server.started:
        if not thread.is_alive():
            raise UserError(f"http://{args.host}:{args.port} cannot be served: choose another --port or --host")
        time.sleep(0.01)


if __name__ == "__main__":
    run_cli(main)
