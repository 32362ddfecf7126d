"""Configuration files of other SALMONN trainers load and mean the same; every key of theirs is accounted for."""

import logging

import pytest

from salmonn.common.errors import UserError
from salmonn.config.foreign import LEFT_OUT, RENAMED
from salmonn.config.keys import known_keys
from salmonn.config.loading import generate_config, load_config, model_config
from tests.fixtures.paths import ROOT

# Keys of the published training and decoding files (github.com/bytedance/SALMONN, configs/), as facts.
MODEL = (
    *("llama_path", "whisper_path", "beats_path", "ckpt", "freeze_whisper", "freeze_beats", "use_speech_Qformer"),
    *("freeze_speech_QFormer", "window_level_Qformer", "num_speech_query_token", "second_per_window", "second_stride"),
    *("speech_llama_proj_model", "freeze_speech_llama_proj", "lora", "lora_rank", "lora_alpha", "lora_dropout"),
    *("multi_prompt", "prompt_template", "prompt_path", "test_prompt_path", "max_txt_len", "end_sym"),
)
ANNOTATIONS = ("train_ann_path", "valid_ann_path", "test_ann_path", "whisper_path")
RUN = (
    *("seed", "output_dir", "evaluate", "log_freq", "epoch_based", "iters_per_epoch", "accum_grad_iters", "device"),
    *("batch_size_train", "batch_size_eval", "num_workers", "use_distributed", "amp", "world_size", "dist_url"),
)
OPTIMS = ("max_epoch", "warmup_steps", "warmup_start_lr", "init_lr", "min_lr", "weight_decay", "beta2")
GENERATE = (
    *("max_new_tokens", "num_beams", "do_sample", "min_length", "temperature", "top_p", "repetition_penalty"),
    "length_penalty",
)
WANDB = ("use_wandb", "wandb_project", "wandb_local_dir", "wandb_name", "wandb_entity")
ASKING = {"run": ("batch_size_eval", "num_workers", "device"), "generate": GENERATE}
PUBLISHED = {"model": (*MODEL, "low_resource"), "datasets": ANNOTATIONS, "run": RUN, "run.optims": OPTIMS}
FILES = {
    "published, training": PUBLISHED,
    "published, training with wandb": {**PUBLISHED, "run": (*RUN, *WANDB)},
    "published, decoding": {"model": MODEL, "generate": GENERATE},
    "4x5090 reproduction, training": {**PUBLISHED, "run.optims": (*OPTIMS, "grad_clip_norm")},
    "4x5090 reproduction, evaluation": {
        "model": (*MODEL, "low_resource"),
        **ASKING,
        "abs_class": ("model_name", "seed"),
        "model_class": ("device",),
    },
    "hackathon trainer": {
        **PUBLISHED,
        "model": (*MODEL, "token"),
        "datasets": (*ANNOTATIONS, "prefix"),
        "run": (*RUN, "exp_name"),
    },
    "hackathon evaluator": {
        "model": (*MODEL, "token", "only_preprocessor"),
        **ASKING,
        "generate": (*GENERATE, "end_sym"),
        "datasets": ("prefix", "test_ann_path_asr", "test_ann_path_aac", "whisper_path"),
    },
    "a fork for Gemma": {
        **PUBLISHED,
        "model": (
            *(key for key in MODEL if "llama" not in key),
            *("gemma_path", "speech_gemma_proj_model", "freeze_speech_gemma_proj"),
        ),
        "run": (*RUN, "gpu", "save_freq"),
    },
}
# Values that mean something else than our defaults; other keys are set to "", which leaves the default.
VALUES = {
    "model.llama_path": "llm",
    "model.gemma_path": "llm",
    "model.freeze_speech_gemma_proj": True,
    "model.only_preprocessor": True,
    "model.end_sym": "<eos>",
    "generate.end_sym": "<eos>",
    "run.use_wandb": True,
    "run.wandb_project": "salmonn",
    "run.gpu": 0,
    "run.save_freq": 1,
    "run.optims.grad_clip_norm": -1.0,
    "abs_class.seed": 7,
}


def write(tmp_path, sections):
    """A file with these keys of these sections."""
    lines = []
    for section in sorted(sections):
        *outer, name = section.split(".")
        lines.append(f"{'  ' * len(outer)}{name}:")
        for key in sections[section]:
            value = VALUES.get(f"{section}.{key}")
            lines.append(f"{'  ' * (len(outer) + 1)}{key}: {'null' if value is None else value}")
    path = tmp_path / "theirs.yaml"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("origin", FILES)
def test_files_of_other_trainers_load_and_each_foreign_key_is_told(tmp_path, caplog, origin):
    sections = FILES[origin]
    with caplog.at_level(logging.WARNING):
        config = load_config(write(tmp_path, sections))
    assert config.model.llama_path == "llm"
    assert config.model.end_sym == "<eos>"
    assert config.run.optims.grad_clip_norm == 0  # -1 means none there
    foreign = {f"{name}.{key}" for name, keys in sections.items() for key in keys} - set(known_keys())
    assert all(any(f" {key} = " in line for line in caplog.messages) for key in foreign)
    assert len(caplog.messages) == len(foreign) + ("grad_clip_norm" in sections.get("run.optims", ()))


def test_what_stands_for_a_key_of_ours_sets_it(tmp_path):
    config = load_config(write(tmp_path, FILES["a fork for Gemma"]))
    assert config.model.freeze_speech_llama_proj is True
    assert load_config(write(tmp_path, FILES["4x5090 reproduction, evaluation"])).run.seed == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: {gemma_path: a, llama_path: b}", "model.gemma_path and model.llama_path are both set"),
        ("model: {gemma_pth: a}", "model.gemma_pth"),
        ("run: {wandb_key: a}", "run.wandb_key"),
        ("run: {save_frequency: 1}", "run.save_frequency"),
        ("abs_class: {model_name: a, other: 1}", "abs_class"),
        ("run: {optims: {grad_clip_norm: -x}}", "grad_clip_norm"),
    ],
)
def test_what_is_neither_ours_nor_theirs_stays_an_error(tmp_path, text, told):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        load_config(path)


def test_options_and_sections_from_python_may_be_foreign_too(tmp_path, caplog):
    path = tmp_path / "c.yaml"
    path.write_text("model: {llama_path: a}")
    options = ["run.use_wandb=False", "run.optims.grad_clip_norm=-1", "model.gemma_path=b"]
    config = load_config(path, options)
    assert (config.model.llama_path, config.run.optims.grad_clip_norm) == ("b", 0)
    assert sum("--options: " in line for line in caplog.messages) == 3
    assert model_config({"gemma_path": "c", "only_preprocessor": True}).llama_path == "c"
    assert generate_config({"end_sym": "</s>"}).num_beams == 4
    assert generate_config(None).num_beams == 4


def test_the_page_on_migrating_has_every_foreign_key():
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    assert [key for key in (*RENAMED, *LEFT_OUT) if f"`{key}`" not in page] == []
