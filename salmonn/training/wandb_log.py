"""Curves on Weights & Biases beside TensorBoard's, where `run.wandb_project` names a project."""

import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.common.files import write_text
from salmonn.config.stored import written_config

if TYPE_CHECKING:
    from wandb import Run

WANDB_ID = "wandb_id"  # file of a run's folder: a run that goes on goes on there, too


def require_wandb(config: DictConfig) -> None:
    """Raise UserError where a project is named and the library is not here."""
    if config.run.wandb_project and find_spec("wandb") is None:
        raise UserError(
            f"run.wandb_project = {config.run.wandb_project}: needs wandb, which is not installed: pip install wandb "
            '(or run.wandb_project="" for TensorBoard alone)'
        )


def open_wandb(folder: Path, config: DictConfig) -> "Run":
    """The run of a folder at wandb, new or gone on with; its key stays where wandb looks for it.

    Of the machine, the command line and the console nothing is sent, for they may hold secrets. WANDB_MODE=offline
    writes to the folder alone. Raises UserError.
    """
    require_wandb(config)
    import wandb

    name = folder / WANDB_ID
    if not name.exists():
        write_text(name, secrets.token_hex(4))
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    try:
        run = wandb.init(
            project=config.run.wandb_project,
            name=folder.name,
            id=name.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=written_config(config),
            settings=settings,
        )
    except wandb.Error as error:
        raise UserError(
            f"run.wandb_project = {config.run.wandb_project}: wandb says: {error} "
            "(log in by `wandb login`, or set WANDB_MODE=offline)"
        ) from error
    run.define_metric("*", step_metric="step")  # a run that goes on may draw a step again
    return run


def scalars(kind: str, values: dict[str, Any]) -> dict[str, float]:
    """{curve: value} of a line of the log: `kind/name` per number, `kind/task/name` per task."""
    of_tasks = {f"{task}/{name}": v for task, of in values.get("tasks", {}).items() for name, v in of.items()}
    return {f"{kind}/{name}": v for name, v in {**values, **of_tasks}.items() if isinstance(v, int | float)}
