"""What a model was trained on, one run after the other: kept in its checkpoints, told by web page and model card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.model import checkpoint, pretrained

LINEAGE = "lineage"  # where a checkpoint, and the "training" of a folder, holds it


@dataclass(frozen=True)
class Training:
    """A run that a model comes from; without tasks nothing is known of it."""

    run: str
    data: str = ""  # name of the annotation file
    tasks: tuple[str, ...] = ()
    step: int = 0  # the last one


def lineage_of(content: Mapping[str, Any]) -> list[Training]:
    """The runs that a checkpoint's content names, the last one last; none where it does not say, or not so."""
    saved = content.get(LINEAGE)
    if not isinstance(saved, list) or not all(map(_is_run, saved)):
        return []
    return [Training(one["run"], one["data"], tuple(one["tasks"]), one["step"]) for one in saved]


def _is_run(saved: Any) -> bool:
    kinds = {"run": str, "data": str, "tasks": list, "step": int}
    is_whole = isinstance(saved, dict) and all(isinstance(saved.get(key), kind) for key, kind in kinds.items())
    return is_whole and all(isinstance(task, str) for task in saved["tasks"])


def read_lineage(path: str | Path) -> list[Training]:
    """The runs that a checkpoint file comes from, a folder's model.safetensors among them; none for "".

    Raises UserError for a file that cannot be read.
    """
    if not path:
        return []
    if Path(path).suffix == ".safetensors":
        try:
            return lineage_of(pretrained.read_config(Path(path).parent)["training"])
        except UserError:  # alone, or beside another config.json: parameters are all that it has
            return []
    return lineage_of(checkpoint.read(path, lazily=True))


def lineage_before(path: str | Path) -> list[Training]:
    """The runs before one that starts from this checkpoint: one of which nothing is known where it does not say."""
    return read_lineage(path) or ([Training(Path(path).name)] if path else [])


def written(runs: Sequence[Training]) -> list[dict[str, Any]]:
    """As a checkpoint holds it: plain values."""
    return [{**asdict(run), "tasks": list(run.tasks)} for run in runs]


def known_tasks(runs: Sequence[Training]) -> set[str] | None:
    """The tasks that the model was trained for; None where nobody knows."""
    if not runs or not all(run.tasks for run in runs):
        return None
    return {task for run in runs for task in run.tasks}
