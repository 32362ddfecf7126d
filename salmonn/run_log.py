"""What a run writes down: log lines as JSON, TensorBoard curves, the list of files it could not read."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

from salmonn import distributed

logger = logging.getLogger("salmonn")


def setup_logging() -> None:
    """Messages of rank 0 at INFO, of the other ranks only what is wrong; the libraries' small talk is left out."""
    import transformers

    level = logging.INFO if distributed.is_main() else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=level, force=True)
    for chatty in ("httpx", "urllib3", "matplotlib", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # peft asks transformers 5 under a name that is on its way out
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


class RunLog:
    """`log.jsonl` and TensorBoard in a run's folder; does nothing on ranks other than 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensorboard = None
        if distributed.is_main():
            from tensorboardX import SummaryWriter

            self._lines = (folder / "log.jsonl").open("w", encoding="utf-8")
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line `{"kind", "step", **values}` and a curve `kind/name` per number."""
        if self._tensorboard is None:
            return
        self._lines.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._tensorboard is not None:
            self._lines.close()
            self._tensorboard.close()


_SKIPPED_SHOWN = 3  # in the log; all of them are in skipped_files.jsonl


class SkippedFiles:
    """The distinct files that could not be read, over all ranks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "skipped_files.jsonl"
        self._reasons: dict[str, str] = {}

    def add(self, reports: list[dict[str, Any]]) -> None:
        """Take the `broken` reports of a batch; the first few files are named in the log."""
        for report in reports:
            if report["path"] in self._reasons:
                continue
            self._reasons[report["path"]] = report["reason"]
            if len(self._reasons) <= _SKIPPED_SHOWN:
                logger.info("skipped unreadable file %s: %s", report["path"], report["reason"])
            if len(self._reasons) == _SKIPPED_SHOWN:
                logger.info("further unreadable files go without a line here; %s lists them all", self.path)

    def gather(self) -> int:
        """Join the lists of all ranks, write them (rank 0), return the number of files."""
        for reasons in distributed.gather_objects(self._reasons):
            self._reasons.update(reasons)
        if distributed.is_main():
            lines = [json.dumps({"path": p, "reason": r}) + "\n" for p, r in sorted(self._reasons.items())]
            self.path.write_text("".join(lines), encoding="utf-8")
        return len(self._reasons)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
