"""What a run writes down: log lines as JSON and TensorBoard curves."""

import contextlib
import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from salmonn.common import distributed
from salmonn.common.files import replacing

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

logger = logging.getLogger("salmonn")


def setup_logging() -> None:
    """Messages of rank 0 at INFO, of the other ranks only what is wrong; the libraries' small talk is left out."""
    import transformers

    is_main = int(os.environ.get("RANK", 0)) == 0  # the processes may not have joined yet
    level = logging.INFO if is_main else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=level, force=True)
    for chatty in ("httpx", "urllib3", "matplotlib", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # on its way out of transformers 5, without a successor in early releases
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)


class RunLog:
    """`log.jsonl` and TensorBoard in a run's folder; does nothing on ranks other than 0.

    `step`: where a run goes on; what its folder says of later steps was not kept and goes.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.folder = folder
        self._lines: TextIO | None = None
        self._tensorboard: SummaryWriter | None = None
        self._told: set[str] = set()
        if distributed.is_main():
            import tensorboardX

            path = folder / "log.jsonl"
            _keep_until(path, step)
            self._lines = path.open("a", encoding="utf-8")
            self._tensorboard = tensorboardX.SummaryWriter(
                str(folder / "tensorboard"), purge_step=step + 1 if step else None
            )

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line `{"kind", "step", **values}`, and a curve `kind/name` per number, `kind/task/name` per task."""
        if self._lines is None or self._tensorboard is None:
            return
        try:
            self._lines.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._lines.flush()
        except OSError as error:
            self._warn_once(f"a line of {self.folder / 'log.jsonl'} could not be written: {error}")
        self._draw(self._tensorboard, kind, step, values)

    def _draw(self, tensorboard: "SummaryWriter", kind: str, step: int, values: dict[str, Any]) -> None:
        # the library's thread dies of a full disk, and its queue then blocks whoever adds to it
        if not tensorboard.file_writer.event_writer._worker.is_alive():
            self._warn_once("TensorBoard's curves stop here: its files cannot be written (disk full?)")
            return
        of_tasks = {f"{task}/{name}": v for task, of in values.get("tasks", {}).items() for name, v in of.items()}
        for name, value in {**values, **of_tasks}.items():
            if isinstance(value, int | float):
                tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def _warn_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("%s; training goes on", message)

    def close(self) -> None:
        """Flush and close the files."""
        if self._lines is None or self._tensorboard is None:
            return
        with contextlib.suppress(OSError):  # told when the line was written
            self._lines.close()
        if self._tensorboard.file_writer.event_writer._worker.is_alive():
            self._tensorboard.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines about later steps, and those that a kill or a full disk has cut."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(line for line in lines if _step_of(line) <= step))


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
