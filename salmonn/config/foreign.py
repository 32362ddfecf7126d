"""Keys that configuration files of other SALMONN trainers have and ours do not: what becomes of each, told in a line.

Where the keys are from: docs/migrating.md. Any other unknown key stays an error.
"""

from typing import Any

from salmonn.common.errors import UserError

RENAMED = {
    "model.gemma_path": "model.llama_path",
    "model.speech_gemma_proj_model": "model.speech_llama_proj_model",
    "model.freeze_speech_gemma_proj": "model.freeze_speech_llama_proj",
    "abs_class.seed": "run.seed",
}
LEFT_OUT = {
    "model.only_preprocessor": "the whole model is loaded, whoever asks it",
    "generate.end_sym": "answers end at model.end_sym",
    "run.gpu": "torchrun gives each process its GPU; for one process write run.device=cuda:N",
    "run.save_freq": "run.save_every_steps and run.save_every_minutes say when a checkpoint is written",
    "run.use_wandb": "run.wandb_project names the project; without one nothing goes to wandb",
    "run.wandb_local_dir": "wandb's files lie in the run's folder",
    "run.wandb_name": "the run's folder is its name",
    "run.wandb_entity": "wandb reads WANDB_ENTITY",
    "abs_class.model_name": "evaluate.name names results",
    "model_class.device": "run.device says where the model runs",
}


def translate(values: dict[str, Any], where: str) -> list[str]:
    """Put foreign keys of a configuration (nested dicts) under our names, or leave them out; a line for each.

    Raises UserError where one is set beside the key that it stands for, to something else.
    """
    told = []
    for key in (*RENAMED, *LEFT_OUT):
        section, _, name = key.partition(".")
        if name not in _section(values, section):
            continue
        value = values[section].pop(name)
        if not values[section]:
            del values[section]  # of the foreign sections nothing stays
        if key in LEFT_OUT:
            told.append(f"{where}: {key} = {value!r} is left out: {LEFT_OUT[key]}")
        else:
            _set(values, RENAMED[key], value, f"{where}: {key}")
            told.append(f"{where}: {key} = {value!r} is taken for {RENAMED[key]}")
        if key == "run.use_wandb" and value is False:
            values["run"] = {**_section(values, "run"), "wandb_project": ""}
    optims = _section(_section(values, "run"), "optims")
    limit = optims.get("grad_clip_norm")
    if isinstance(limit, int | float) and limit < 0:
        optims["grad_clip_norm"] = 0.0
        told.append(f"{where}: run.optims.grad_clip_norm = {limit} is taken for 0: no clipping")
    return told


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of keys; empty where there is none, or a value in its place, which the schema tells."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _set(values: dict[str, Any], key: str, value: Any, foreign: str) -> None:
    section, _, name = key.partition(".")
    ours = _section(values, section)
    if ours.get(name, value) != value:
        raise UserError(f"{foreign} and {key} are both set, to different values; keep one of them")
    values[section] = {**ours, name: value}
