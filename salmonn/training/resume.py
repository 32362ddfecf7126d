"""Where a run goes on, and whether it is the same experiment still."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.digest import BOOKKEEPING
from salmonn.config.loading import BEST
from salmonn.config.stored import without_secrets
from salmonn.data.annotations import Annotations
from salmonn.model import checkpoint
from salmonn.training.progress import Progress
from salmonn.training.run_content import DATA, Content, read_content, require_optimizer
from salmonn.training.run_folder import RunFolder, is_restart

logger = logging.getLogger(__name__)

_COUNTED = ("train_ann_path", "valid_ann_path")  # of which the result is made


class Resumed(NamedTuple):
    """Where a run goes on."""

    progress: Progress
    path: Path  # of the checkpoint
    changes: list[str]  # of the configuration since: `key: before -> now`


def find_resumed(folder: RunFolder, lazily: bool = False) -> tuple[Resumed, Content] | None:
    """Where to go on: at the newest usable checkpoint of the folder, or the one of `run.resume`; None: nowhere.

    With `run.resume` PATH, and after a restart by torchrun or Slurm, what the same command has saved
    comes first, whatever it says about a run that was there before. Raises UserError where there
    are checkpoints and none can be read: a run of days is not started anew by accident.
    """
    run, config = folder.config.run, without_secrets(OmegaConf.to_container(folder.config))
    if not folder.continues():
        return None
    named = folder.names_checkpoint()
    if (named or is_restart()) and (own := _newest(folder, lambda content: content["config"] == config, lazily)):
        return own
    if (run.overwrite and not named) or run.resume == "none":
        return None
    if named:
        path = Path(run.resume)
        if folder.kept() and not run.overwrite and path.resolve().parent != folder.path.resolve():
            raise UserError(
                f"{folder.path} already holds another run than run.resume = {path}; leave run.resume out to go on with "
                f"that one, choose another run.exp_name, or replace it with --options run.overwrite=True"
            )
        return _resumed(folder, path, read_content(path, lazily))
    kept = folder.kept()
    found = _newest(folder, lambda _: True, lazily)
    if kept and not found:
        raise UserError(
            f"none of the checkpoints in {folder.path} can be read ({', '.join(path.name for path in kept)}); "
            f"run.resume=PATH goes on from another one ({BEST} of this folder, for one), run.overwrite=True starts "
            f"anew"
        )
    return found


def _newest(folder: RunFolder, accepted: Callable[[Content], bool], lazily: bool) -> tuple[Resumed, Content] | None:
    for path in folder.kept():
        try:
            content = read_content(path, lazily)
        except UserError as error:
            logger.warning("%s", error)
            continue
        if accepted(content):
            return _resumed(folder, path, content)
    return None


def _resumed(folder: RunFolder, path: Path, content: Content) -> tuple[Resumed, Content]:
    told = changed_keys(content["config"], without_secrets(OmegaConf.to_container(folder.config)))
    # that it goes on is known, and how answers are evaluated or generated is no matter of a run
    changes = [change for change in told if not change.startswith(("run.resume: ", "evaluate.", "generate."))]
    before, now = content.get(DATA, {}), contents_of_data(folder.config)
    changes += [
        f"datasets.{key}: {folder.config.datasets[key]} has another content than it had"
        for key in _COUNTED
        if {key} <= before.keys() & now.keys() and before[key] != now[key]
    ]
    return Resumed(Progress.from_saved(content["progress"]), path, changes), content


def contents_of_data(config: DictConfig) -> dict[str, str]:
    """What tells the contents of a run's annotation files that are there, by key. Raises UserError for bad ones."""
    paths = {key: Path(config.datasets[key]) for key in _COUNTED}
    end_sym = config.model.end_sym
    return {key: Annotations(path, end_sym=end_sym).content for key, path in paths.items() if path.is_file()}


def mend_best(folder: RunFolder, best: Mapping[str, Any]) -> str:
    """See that the best checkpoint, of the validation `best`, can be read; returns what is wrong with it, or "".

    Where it cannot, it is written anew from another checkpoint of the same moment. One that is not there was moved.
    """
    if not best or not (folder.path / BEST).exists():
        return ""
    try:
        checkpoint.read(folder.path / BEST)
        return ""
    except UserError as error:
        problem = str(error)
    for path in folder.kept():
        try:
            content = read_content(path)
        except UserError:
            continue
        if content["progress"].get("valid") == best and content.get("step") == best.get("step"):
            try:
                folder.save_best(content)
            except OSError as error:
                return f"{problem}; {path} holds the same, but it could not be written: {error}"
            logger.warning("%s: it is written anew from %s", problem, path)
            return ""
    return problem


# ---- the same experiment

# What may differ without making it another experiment. A step cut by run.batch_tokens has the mean of one that is not,
# with other random numbers: its parts draw their own, and its prompts are drawn at once.
_NOT_OF_THE_RESULT = (
    *BOOKKEEPING, "run.resume", "run.overwrite", "run.output_dir", "run.exp_name", "run.device", "run.compile",
    "run.valid_every_steps", "run.batch_size_eval", "run.world_size", "run.dist_url", "run.use_distributed",
    "run.shard_llm", "run.batch_tokens", "run.batch_seconds", "model.device_8bit", "model.gradient_checkpointing",
    "model.test_prompt_path", "datasets.max_bad_fraction", "datasets.whisper_path", "datasets.test_ann_path",
    "datasets.valid_ann_path_",
)  # fmt: skip
_LENGTH = "run.optims.max_epoch: "  # a run that is not done may become longer, or shorter


def changes_of_the_result(changes: Sequence[str]) -> list[str]:
    """The changes that make it another experiment."""
    return [change for change in changes if not change.startswith(_NOT_OF_THE_RESULT)]


def require_same_experiment(folder: RunFolder) -> None:
    """Raise UserError where the folder's run was begun with other settings and nobody has said that this is meant.

    And where its optimiser's state is not whole.
    """
    found = find_resumed(folder, lazily=True)
    if not found:
        return
    (progress, path, told), content = found
    run, changes = folder.config.run, changes_of_the_result(told)
    is_done = progress.epoch >= run.optims.max_epoch
    if not is_done:
        require_optimizer(content, progress, path)
    if is_done and changes:
        says, remedy = "a run that is done, with another configuration", "choose another run.exp_name"
    elif run.resume == "" and (changes := [change for change in changes if not change.startswith(_LENGTH)]):
        says = "another experiment"
        remedy = "choose another run.exp_name, go on with it by these settings (run.resume=auto)"
    else:
        return
    raise UserError(
        "\n  ".join([f"{folder.path} holds {says}:", *changes])
        + f"\nNothing was trained: {remedy}, or replace it with run.overwrite=True"
    )


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What a configuration says otherwise than another: `key: before -> now`."""
    changes = []
    for key in sorted(before.keys() | now.keys(), key=str):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
