"""A web page for a SALMONN: upload or record a clip, ask about it, watch the answer appear.

  python -m salmonn.web                                          the final model, at http://127.0.0.1:7860
  python -m salmonn.web --ckpt salmonn_v1.pth --port 8000
  python -m salmonn.web --cfg-path configs/mini/decode.yaml --examples output/mini/world/audio/*/test_*
                                                                 the miniature world's model and test clips

Only this machine can reach the page, unless --host or --share say otherwise: who can reach it can use it,
there is no password. It answers under its own names: 127.0.0.1, localhost and --host (with 0.0.0.0 any address, and
this machine's name). A visitor uploads 200 files a day, in all ten times --max-upload-mb. One model serves all
visitors, one request after the other. Ctrl-C ends it.
"""

import os
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path

from omegaconf import DictConfig

from salmonn.audio.decode import AudioError, inspect_header
from salmonn.common.address import add_address, require_address
from salmonn.common.cli import asking_parser, run_cli, tell, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.files import unwritable_part, visible
from salmonn.common.imports import importing
from salmonn.config.loading import load_config
from salmonn.data.clip_paths import OTHER_EXTENSIONS
from salmonn.preflight import MINI_ANSWERS, require_files

_EXTENSIONS = (".wav", *OTHER_EXTENSIONS)


def main() -> None:
    """Load the model and serve the page until Ctrl-C."""
    args = parse_arguments()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    config = load_config(args.cfg_path, args.options, args.ckpt)
    examples = find_examples(args.examples)
    require_address(args.host, args.port)  # all that is wrong is known before the model is loaded
    require_files(config, (), (), "the page", MINI_ANSWERS)
    tell_wait(f"loading the page and {config.model.ckpt or config.model.llama_path}")
    with uploads_folder():
        require_gradio()
        show(args, config, examples)


def show(args: Namespace, config: DictConfig, examples: dict[str, str]) -> None:
    """Load the model and serve the page."""
    with importing():  # torch and transformers load only now
        from salmonn.common.logging import setup_logging
        from salmonn.inference.engine import InferenceEngine, tell_if_untrained
        from salmonn.model.lineage import read_lineage
        from salmonn.web.layout import build, close, serve
        from salmonn.web.page import Page
        from salmonn.web.request_queue import RequestQueue

    setup_logging()
    engine = InferenceEngine.load(config, "the page")
    queue = RequestQueue(engine)
    tell_if_untrained(config)
    blocks = build(Page(queue, examples, args.max_minutes, read_lineage(engine.config.model.ckpt)))
    try:
        url = serve(blocks, args.host, args.port, args.share, args.max_upload_mb, list(examples.values()))
        print(f"SALMONN is at {url} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        queue.close()
        close(blocks)


def parse_arguments() -> Namespace:
    """The command line. Raises UserError for numbers that cannot be."""
    parser = asking_parser(__doc__)
    add = parser.add_argument
    add_address(parser, 7860)
    add("--share", action="store_true", help="also a public address, through gradio's servers, for a week")
    add(
        "--examples",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="clips, each with a name if you like, or folders of clips, to choose from",
    )
    add("--max-upload-mb", type=float, default=100, metavar="MB", help="largest file that is taken (default: 100)")
    add("--max-minutes", type=float, default=60, metavar="MINUTES", help="longest clip heard in windows (default: 60)")
    args = parser.parse_args()
    if not 0 < args.max_upload_mb < float("inf"):
        raise UserError(f"--max-upload-mb {args.max_upload_mb:g}: more than 0")
    if not args.max_minutes > 0:
        raise UserError(f"--max-minutes {args.max_minutes:g}: more than 0")
    return args


def find_examples(paths: Sequence[str]) -> dict[str, str]:
    """Clips by a short name: the files named, and all in the folders; what the page must not show is told and left out.

    A clip as NAME=FILE has that name. Of several folders each gives a clip in turn. Raises UserError where a path
    leads to no clip.
    """
    found: list[Path] = []
    names: dict[Path, str] = {}
    for text in paths:
        name, _, file = text.partition("=")
        path = Path(file if file and Path(file).is_file() and not Path(text).exists() else text)
        if str(path) == file:
            names[path] = name
        named = [path] if path.is_file() else [p for p in visible(path, "**/*") if p.suffix.lower() in _EXTENSIONS]
        inside = path.parent if path.is_file() else path
        problems = {clip: problem for clip in named if (problem := _why_not_shown(clip, inside))}
        if problems:
            first, problem = next(iter(problems.items()))
            tell(f"--examples: {len(problems)} left out, e.g. {str(first)!r}: {problem}")
        if not (clips := [clip for clip in named if clip not in problems]):
            raise UserError(f"--examples {path}: {'no clips in it' if path.is_dir() else _why_no_clip(path)}")
        found += clips
    if not found:
        return {}
    above = os.path.commonpath([path.parent for path in found])
    return {names.get(path) or os.path.relpath(path, above): str(path.absolute()) for path in _in_turns(found)}


def _in_turns(clips: Sequence[Path]) -> list[Path]:
    """The same clips, of each folder one after the other: the first ones are of all kinds."""
    folders: dict[Path, list[Path]] = {}
    for clip in clips:
        folders.setdefault(clip.parent, []).append(clip)
    return [clip for row in zip_longest(*folders.values()) for clip in row if clip is not None]


def _why_not_shown(clip: Path, folder: Path) -> str:
    """Why a file is none that visitors may be given; "" where it is one."""
    if not str(clip).isprintable():
        return "its name is no plain UTF-8"
    if not clip.resolve().is_relative_to(folder.resolve()):
        return "it is a link that leads out of the folder"
    try:
        inspect_header(clip)
    except AudioError as error:
        return str(error.reason)
    return ""


def _why_no_clip(path: Path) -> str:
    return "is no clip that can be shown" if path.exists() else "does not exist"


@contextmanager
def uploads_folder() -> Iterator[None]:
    """Where gradio keeps what visitors upload: GRADIO_TEMP_DIR, else a folder that goes with this command.

    Gradio's own, /tmp/gradio, belongs to the user who was first on a machine. To be entered before gradio is imported.
    Raises UserError where the folder cannot be written to.
    """
    with tempfile.TemporaryDirectory(prefix="salmonn-web-") as own:
        folder = Path(os.environ.setdefault("GRADIO_TEMP_DIR", own))
        if unwritable_part(folder):
            raise UserError(f"GRADIO_TEMP_DIR = {folder}: cannot be written to; name another folder, or unset it")
        yield


def require_gradio() -> None:
    """Raises UserError where gradio is not there, or does not load."""
    try:
        with importing():
            import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the web page needs gradio ({error}): pip install -r requirements.txt") from error


if __name__ == "__main__":
    run_cli(main)
