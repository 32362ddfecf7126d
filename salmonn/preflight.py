"""What keeps a run from starting, all of it told together and before anything big is read.

PyTorch and transformers, which take seconds, load only where a check needs them: that files are missing is told before.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from salmonn.common.cli import tell_wait
from salmonn.common.errors import UserError, examples
from salmonn.common.files import GB, free_bytes
from salmonn.common.gpu import require_driver
from salmonn.common.imports import importing
from salmonn.config.missing_files import has_mini_model, missing_files
from salmonn.data.annotations import Annotations
from salmonn.model import prompts

if TYPE_CHECKING:
    from salmonn.model.salmonn import SALMONN

_TASKS_SHOWN = 5
MINI_ANSWERS, MINI_EVALUATES = "configs/mini/decode.yaml", "configs/mini/evaluate.yaml"
_ADAM_STATE = 2  # values that AdamW keeps beside each parameter


def refuse(problems: Sequence[str], what: str = "this run", mini: str = "") -> None:
    """Raise one UserError that lists the problems, each once, if there are any.

    `what` cannot start; `mini`: the configuration of the miniature world's model for the same.
    """
    if problems:
        lines = [problem.replace("\n", "\n  ") for problem in dict.fromkeys(problems)]
        remedy = f"\nPaths begin in {Path.cwd()}; set them in the config file or with --options KEY=PATH."
        if not has_mini_model():
            remedy += "\nTo see everything work without downloads, run the miniature world: make quickstart"
        elif mini:
            remedy += f"\nThe model that is here is the miniature world's: --cfg-path {mini}"
        is_missing = any("get it: " in problem for problem in problems)
        raise UserError("\n  ".join([f"{what} cannot start:", *lines]) + (remedy if is_missing else ""))


def require_loadable(config: DictConfig, what: str) -> None:
    """Raise one UserError with all that keeps a model from being loaded to answer questions."""
    refuse(find_problems(config, (), training=False), what, MINI_ANSWERS)


def require_files(config: DictConfig, annotations: Sequence[str], unread: Sequence[str], what: str, mini: str) -> None:
    """Where files are missing, raise UserError with all that keeps a model from answering; PyTorch is not needed."""
    if missing_files(config, annotations, unread):
        refuse(find_problems(config, annotations, unread, training=False), what, mini)


def find_problems(
    config: DictConfig,
    annotations: Sequence[str],
    unread: Sequence[str] = (),
    training: bool = True,
    goes_on: Sequence[Path] = (),
) -> list[str]:
    """All that is wrong with what the config names, before anything big is read.

    `annotations`: keys of the datasets section that the command reads. `unread`: checkpoints
    that the config names and that need not be there (yet, or any more). `training`: each task of the data
    needs training prompts, and the run's folder needs room. `goes_on`: the first of these that can be read
    has to fit the model.
    """
    if not training:  # an evaluation, a conversation: nothing is chosen among the training prompts
        config = OmegaConf.merge(config, {"model": {"prompt_path": ""}})
    missing = missing_files(config, annotations, unread)
    problems = [*missing, *problem_of(_require_device, config)]
    there = [path for path in (config.datasets[key] for key in annotations) if Path(path).is_file()]
    for path in there if training else ():
        problems += problem_of(_require_entries, config, path)
    if not any(problem.startswith("model.") for problem in missing):
        problems += problem_of(_require_model, config, unread, training, goes_on, there)
    return problems


def problem_of(require: Callable[..., object], *args: object, **kwargs: object) -> list[str]:
    """What a check that raises UserError has to say; empty where it raises nothing."""
    try:
        require(*args, **kwargs)
    except UserError as error:
        return [str(error)]
    return []


def _require_device(config: DictConfig) -> None:
    if "torch" not in sys.modules:  # it knows drivers in places of its own
        require_driver(config.run.device)
    if config.run.device != "cpu":
        from salmonn.common.device import device_of

        device_of(config)


def _require_entries(config: DictConfig, path: str) -> None:
    """Raise UserError when an annotation file or none of its clips can be read, or there is nothing to learn from."""
    from salmonn.data.filtering import require_some_usable, require_tasks

    annotations = Annotations(path, end_sym=config.model.end_sym)
    tasks = config.run.ctc_tasks if config.run.objective == "ctc" else None
    if tasks is not None:
        require_tasks(annotations, tasks)
    else:
        _require_prompts(config.model, annotations)
    if not config.datasets.prefix or Path(config.datasets.prefix).exists():  # else that is told
        require_some_usable(annotations, config.datasets, tasks)


def _require_prompts(model: DictConfig, annotations: Annotations) -> None:
    """Raise UserError when the prompts cannot be read, or an annotation file has entries without them.

    A task may lack a prompt, and an entry the question that its prompts ask.
    """
    path = annotations.path
    if not Path(model.prompt_path).is_file():
        return
    pools = prompts.load_train_prompts(model.prompt_path, model.prompt_template)
    if model.test_prompt_path and Path(model.test_prompt_path).is_file():
        prompts.load_test_prompts(model.test_prompt_path, model.prompt_template)
    tasks, problems = annotations.tasks, []  # {task: its first entry}
    if missing := sorted(tasks.keys() - pools, key=tasks.__getitem__):
        named = ", ".join(f"{task!r} (first in entry {tasks[task]})" for task in missing[:_TASKS_SHOWN])
        problems.append(
            f"annotation file {path}: {len(missing)} values of 'task' have no prompt in "
            f"{model.prompt_path}: {named}{' ...' if len(missing) > _TASKS_SHOWN else ''}"
        )
    for task in (task for task in tasks if any(map(prompts.asks_question, pools.get(task, ())))):
        if len(silent := annotations.without_question(task)):
            problems.append(
                f"annotation file {path}: {len(silent)} entries of the task {task!r} have no 'Q', which its prompts in "
                f"{model.prompt_path} ask: {examples([f'entry {i}' for i in silent])}"
            )
    if problems:
        raise UserError("\n".join(problems))


def _require_short_questions(model: "SALMONN", path: str) -> None:
    """Raise UserError where a question alone fills the LLM: with it a batch would take the memory of many."""
    from salmonn.model.llm_input import tokenize

    try:
        annotations = Annotations(path)
    except UserError:  # told already
        return
    prompt_path = model.config.prompt_path
    pools = prompts.load_train_prompts(prompt_path, "{}") if Path(prompt_path).is_file() else {}
    asking = [task for task, pool in pools.items() if any(map(prompts.asks_question, pool))]
    entry = annotations.longest_question(asking)
    question = annotations[entry]["Q"] if annotations[entry]["task"] in asking else ""
    n = len(tokenize(model.tokenizer, [question])[0])
    positions = getattr(model.llama_model.config.get_text_config(), "max_position_embeddings", None)
    if positions and n >= positions:
        raise UserError(
            f"annotation file {path}: entry {entry}: 'Q' has {n} tokens, and the LLM has {positions} positions for "
            "prompt, clip and answer: shorten it, or take the entry out"
        )


def _require_model(
    config: DictConfig, unread: Sequence[str], training: bool, goes_on: Sequence[Path], annotations: Sequence[str]
) -> None:
    """Raise UserError when a part has the wrong kind, a checkpoint or a question does not fit, or the disk is full."""
    if "torch" not in sys.modules:
        tell_wait("loading PyTorch")
    with importing():
        from salmonn.model import checkpoint
        from salmonn.model.alignment import model_class
        from salmonn.model.meta_model import build_meta_model, require_checkpoint_fits, require_start_fits
        from salmonn.model.salmonn import SALMONN

    meta_model = build_meta_model(config.model, model_class(config.run) if training else SALMONN)
    problems = []
    for path, partial in ((config.model.speech_llama_proj_model, True), (config.model.ckpt, False)):
        if path and path not in unread:
            problems += problem_of(require_start_fits, meta_model, path, partial)
    if readable := next((path for path in goes_on if not problem_of(checkpoint.read, path, lazily=True)), None):
        problems += problem_of(require_checkpoint_fits, meta_model, readable)
    for path in annotations if training and config.run.objective == "answer" else ():
        problems += problem_of(_require_short_questions, meta_model, path)
    n_trainable = sum(p.numel() for p in meta_model.parameters() if p.requires_grad)
    if training and not config.run.evaluate:
        problems += problem_of(_require_disk, config, checkpoint_bytes(n_trainable))
    if problems:
        raise UserError("\n".join(problems))


def checkpoint_bytes(n_trainable: int) -> int:
    """Size of a checkpoint to go on from: parameters and AdamW's state in float32."""
    return 4 * n_trainable * (1 + _ADAM_STATE)


def _require_disk(config: DictConfig, size: int) -> None:
    """Raise UserError unless the run's checkpoints have room beside each other while one is written."""
    run = config.run
    folder = Path(run.output_dir)
    there = sum(file.stat().st_size for file in (folder / run.exp_name).glob("checkpoint_*.pth"))
    n_files = run.keep_checkpoints + 2  # the best, and the one being written
    free = free_bytes(folder)
    if free + there < n_files * size:
        raise UserError(
            f"run.output_dir = {folder}: {free / GB:.1f} GB are free, but this run's {n_files} checkpoints take "
            f"{n_files * size / GB:.1f} GB (run.keep_checkpoints = {run.keep_checkpoints}, the best, one being written)"
        )
