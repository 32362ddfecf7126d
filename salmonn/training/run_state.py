"""What a checkpoint of a run holds: built, read, chosen to go on from, taken up again."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.config.loading import BEST
from salmonn.config.schema import Config
from salmonn.config.stored import require_literal, require_plain, without_secrets, written_config
from salmonn.data.annotations import Annotations
from salmonn.data.quarantine import Quarantine
from salmonn.model import checkpoint
from salmonn.model.lineage import LINEAGE, Training, lineage_before, lineage_of, written
from salmonn.model.parameter_counts import trainable_parameters
from salmonn.model.salmonn import SALMONN
from salmonn.training.optim import require_whole_moments
from salmonn.training.progress import Progress
from salmonn.training.run_folder import RunFolder, is_restart
from salmonn.training.step import NotFiniteError, TrainingStep

logger = logging.getLogger(__name__)

_OF_A_RUN = {"optimizer", "scaler", "config", "progress"}  # what a run goes on from, beside the parameters
# of a part that the libraries take for granted
_OTHER_SHAPE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)
Content = dict[str, Any]  # of a checkpoint: "model", "optimizer", "scaler", "config", "progress", "epoch", "step"
_DATA = "annotations"  # what tells the contents of the annotation files, by key; checkpoints of before do not have it
_COUNTED = ("train_ann_path", "valid_ann_path")  # of which the result is made


def build_content(model: nn.Module, config: DictConfig, progress: Progress, **more: Any) -> Content:
    """What a checkpoint holds: the parameters that no frozen backbone's own file has, and all that going on takes."""
    return {
        "model": checkpoint.own_values(model),
        **more,
        "config": written_config(config),
        "progress": asdict(progress),
    }


def read_content(path: Path, lazily: bool = False) -> Content:
    """A checkpoint that a run can go on from; `lazily` as in `checkpoint.read`. Raises UserError for any other file."""
    content = checkpoint.read(path, lazily=lazily)
    if missing := _OF_A_RUN - content.keys():
        raise UserError(f"{path} holds parameters but no run to go on with (no {', '.join(sorted(missing))})")
    parts = _OF_A_RUN | ({_DATA} & content.keys())
    if odd := sorted(key for key in parts if not isinstance(content[key], dict)):
        raise UserError(
            f"{path} is damaged, or no checkpoint of this code: {', '.join(odd)} in it must be dictionaries"
        )
    require_plain(content["progress"], f"{path}: its progress")
    try:
        Progress.from_saved(content["progress"])
    except TypeError as error:
        raise UserError(f"{path} was written by another version of this code ({error})") from error
    require_literal(config := without_secrets(content["config"]), f"{path}: its configuration")
    content["config"] = _completed(config, OmegaConf.to_container(OmegaConf.structured(Config)), path)
    _drop_removed_keys(content["config"], path)
    return content


def require_optimizer(content: Content, progress: Progress, path: Path) -> None:
    """Raise UserError where the optimiser's state in a checkpoint is not whole: the next step would spoil the model."""
    model = content["config"]["model"]
    drops_layers = not (model["freeze_whisper"] and model["freeze_beats"])  # no step yet, perhaps
    only_overflows = bool(content["scaler"]) and not content["optimizer"].get("state")
    try:
        require_whole_moments(content["optimizer"], progress.iteration > 0 and not drops_layers and not only_overflows)
    except _OTHER_SHAPE as error:
        raise UserError(f"{path}: its optimiser cannot go on: {error}") from error


def _completed(saved: dict[str, Any], defaults: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint's configuration with the keys that came later. Raises UserError where it has another shape."""
    completed = defaults | saved
    for key, default in defaults.items():
        value = completed[key]
        if isinstance(default, dict) and isinstance(value, dict):
            completed[key] = _completed(value, default, path)
        elif isinstance(default, dict | int) and not isinstance(value, type(default)):
            raise UserError(
                f"{path} is damaged, or no checkpoint of this code: its configuration has {key} = {value!r}"
            )
    return completed


_REMOVED = {"run": ("length_grouped",)}  # keys that earlier versions had, by section


def _drop_removed_keys(config: dict[str, Any], path: Path) -> None:
    """Take keys that are gone out of a checkpoint's configuration: a run of an earlier version goes on without them."""
    for section, keys in _REMOVED.items():
        found = config.get(section, {})
        if dropped := [f"{section}.{key} = {found.pop(key)}" for key in keys if key in found]:
            logger.info("%s names keys that are gone; they are left out: %s", path, ", ".join(dropped))


# ---- where to go on


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
    before, now = content.get(_DATA, {}), contents_of_data(folder.config)
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


# What may differ without making it another experiment. A step cut by run.batch_tokens has the mean of one that is not,
# with other random numbers: its parts draw their own, and its prompts are drawn at once.
_NOT_OF_THE_RESULT = (
    "run.num_workers", "run.log_freq", "run.save_every", "run.keep_checkpoints", "run.timeout_minutes", "run.device",
    "run.wandb_project", "run.loader_timeout_minutes", "run.valid_every_steps", "run.output_dir", "run.exp_name",
    "run.batch_size_eval", "run.resume", "run.overwrite", "run.world_size", "run.dist_url", "run.use_distributed",
    "run.encoder_cache", "run.compile", "run.shard_llm", "run.batch_tokens", "run.batch_seconds", "model.device_8bit",
    "model.gradient_checkpointing", "model.test_prompt_path", "datasets.max_bad_fraction", "datasets.whisper_path",
    "datasets.test_ann_path", "datasets.valid_ann_path_",
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


def lineage_of_run(config: DictConfig, tasks: Sequence[str], content: Content | None) -> list[Training]:
    """The runs that a run's parameters come from, itself the last; `content`: the checkpoint where it goes on."""
    run, model = config.run, config.model
    if run.objective == "ctc":
        tasks = [task for task in tasks if task in run.ctc_tasks]
    this = Training(run.exp_name, Path(config.datasets.train_ann_path).name, tuple(tasks))
    starts = [path for path in (model.speech_llama_proj_model, model.ckpt) if path]
    if content is None:
        return [*(before for path in starts for before in lineage_before(path)), this]
    known = lineage_of(content)  # what the run began from may be gone by now, and is not looked at
    return [*(known[:-1] if known else [Training(Path(path).name) for path in starts]), this]


# ---- saved and taken up


class RunState:
    """What a checkpoint holds: parameters, optimiser and loss scaler, where the run is, what it could not use."""

    def __init__(
        self, folder: RunFolder, model: SALMONN, step: TrainingStep, progress: Progress, quarantine: Quarantine
    ) -> None:
        self.folder, self.model, self.step, self.progress, self.quarantine = folder, model, step, progress, quarantine
        self.lineage: list[Training] = []  # the runs that the parameters come from, this one the last
        self.annotations: dict[str, str] = {}  # what tells the contents of its annotation files, by key
        self.is_saved = False  # all that was done up to the last attempt
        self.started_at = self.saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training, with those before a run was taken up again."""
        return self.progress.seconds + time.monotonic() - self.started_at

    def restore(self, resumed: Resumed, content: Content) -> None:
        """Take up the run that a checkpoint holds."""
        path, progress = resumed.path, self.progress
        checkpoint.take_parameters(self.model, content["model"], path)
        require_optimizer(content, progress, path)
        try:
            self.step.load_state_dict(content)
        except _OTHER_SHAPE as error:
            raise UserError(f"{path}: its optimiser does not fit this configuration ({error})") from error
        self.quarantine.go_on(progress.tried, progress.unreadable)
        progress.go_on(content["config"]["run"], self.folder.config.run, distributed.world_size())
        logger.info(
            "going on with %s: epoch %d, iteration %d, %d samples seen",
            path, progress.epoch, progress.epoch_iteration, progress.samples,
        )  # fmt: skip
        for change in resumed.changes:
            logger.warning("   the configuration has changed: %s", change)

    def save(self, epoch: int, is_best: bool = False) -> None:
        """Write the checkpoint to go on from; one that cannot be written is no reason to end a run.

        `is_best`: that of the newest validation, to be kept as the best, too.
        """
        self.quarantine.sync()
        self.saved_at = time.monotonic()
        best_before = self.progress.best
        if is_best:
            self.progress.best = self.progress.valid
        written = self._write(epoch, is_best) if distributed.is_main() else None
        self.is_saved, is_best_kept = distributed.from_main(written)
        if is_best and not is_best_kept:
            self.progress.best = best_before

    def require_saved(self, failure: str) -> None:
        """Raise UserError, which begins with `failure`, if the last checkpoint could not be written."""
        if not self.is_saved:
            raise UserError(
                f"{failure} to {self.folder.path} (see above); make room, and the same command goes on from the last "
                f"checkpoint"
            )

    def _write(self, epoch: int, is_best: bool) -> tuple[bool, bool]:
        """Whether all could be written, and whether the best could."""
        tried, unreadable = self.quarantine.tried, self.quarantine.unreadable
        progress = replace(self.progress, seconds=self.seconds, tried=tried, unreadable=unreadable)
        *before, this = self.lineage or [Training(self.folder.config.run.exp_name)]
        lineage = written([*before, replace(this, step=progress.iteration)])
        more = {"epoch": epoch, "step": progress.iteration, LINEAGE: lineage, _DATA: self.annotations}
        content = build_content(self.model, self.folder.config, progress, **self.step.state_dict(), **more)
        is_best_kept = False
        try:
            if progress.valid:
                write_json(self.folder.path / "summary.json", self._summary(progress))
            if is_best:  # first: killed in between, the same is validated again
                self.folder.save_best(content)
                is_best_kept = True
            self.folder.save(content)
        except OSError as error:
            logger.error("NO CHECKPOINT WAS WRITTEN: %s. The one before it is kept; training goes on.", error)
            return False, is_best_kept
        return True, is_best_kept

    def _summary(self, progress: Progress) -> dict[str, Any]:
        return {
            "iterations": progress.iteration,
            "seconds": round(progress.seconds, 1),
            "trainable_parameters": sum(trainable_parameters(self.model).values()),
            "tried": progress.tried,
            "bad": progress.unreadable,
            "bad_files": len(self.quarantine.files),
            "valid_loss": progress.valid.get("loss"),
            "valid_loss_shuffled": progress.valid.get("loss_shuffled"),
            "best": progress.best,
        }

    def keep_not_finite(self, error: NotFiniteError, epoch: int, iteration: int) -> str:
        """Save what led to a loss or gradients that are not finite; says where, behind a semicolon."""
        if not distributed.is_main():
            return ""
        path = self.folder.path / "not_finite.pth"
        place = {"epoch": epoch, "iteration": iteration, "samples": error.samples}
        try:
            state = {"problem": str(error), **place, **self.step.state_dict()}
            checkpoint.save(path, build_content(self.model, self.folder.config, self.progress, **state))
        except OSError as full:
            return f"; what gave it could not be saved: {full}"
        return f"; the parameters and the optimiser that gave it are in {path}"
