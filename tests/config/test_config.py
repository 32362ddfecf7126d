"""Typed configuration: published files load, mistakes are named, bases and overrides merge."""

import math
import re

import pytest
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.checks import BOUNDS, CHOICES, FORMS, PATHS
from salmonn.config.keys import known_keys
from salmonn.config.loading import leaves, load_config, model_config
from salmonn.config.schema import Config, ModelConfig
from salmonn.config.stored import sets_secret
from tests.fixtures.paths import ROOT

# Shape of the published training file, and the keys that two forks add (prefix, exp_name, token).
PUBLISHED = """
model:
  llama_path: a
  whisper_path: b
  beats_path: c
  token: t
  freeze_whisper: True
  use_speech_Qformer: True
  num_speech_query_token: 1
  second_per_window: 0.333333
  lora_alpha: 32
  multi_prompt: True
  prompt_template: "USER: {}\\nASSISTANT:"
  max_txt_len: 300
  end_sym: "</s>"
datasets:
  prefix: /data
  train_ann_path: x.json
  whisper_path: b
run:
  exp_name: first
  epoch_based: False
  iters_per_epoch: 3000
  device: cuda
  dist_url: "env://"
  optims:
    max_epoch: 30
    warmup_start_lr: 1e-6
    beta2: 0.999
generate:
  num_beams: 4
  top_p: 0.9
"""


def write(tmp_path, text, name="config.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_published_file_loads_and_keeps_its_values(tmp_path):
    config = load_config(write(tmp_path, PUBLISHED))
    assert config.model.prompt_template == "USER: {}\nASSISTANT:"
    assert config.run.optims.warmup_start_lr == 1e-6  # YAML reads 1e-6 as a string
    assert (config.datasets.prefix, config.run.exp_name, config.model.token) == ("/data", "first", "t")


def test_unset_keys_take_the_published_defaults(tmp_path):
    config = load_config(write(tmp_path, "model: {}"))
    assert (config.model.lora_rank, config.model.lora_alpha, config.model.second_stride) == (8, 32, 0.333333)
    assert (config.run.optims.init_lr, config.run.optims.weight_decay) == (3e-5, 0.05)
    assert (config.generate.max_new_tokens, config.generate.num_beams) == (200, 4)
    assert config.run.exp_name == "config"


def test_every_unknown_key_is_named_with_the_nearest_known_one(tmp_path):
    path = write(tmp_path, "model: {lora_rnk: 4}\nrum: {seed: 1}")
    with pytest.raises(UserError) as error:
        load_config(path, ["run.batchsize_train=2"])
    message = str(error.value)
    assert "model.lora_rnk (did you mean model.lora_rank?)" in message
    assert "rum (did you mean run?)" in message
    assert "run.batchsize_train (did you mean run.batch_size_train?)" in message


def test_every_wrong_type_and_impossible_value_is_reported_together(tmp_path):
    path = write(tmp_path, "model: {lora_rank: eight, second_per_window: 0.001}\nrun: {amp_dtype: fp8, log_freq: 0}")
    with pytest.raises(UserError) as error:
        load_config(path)
    for key in ("model.lora_rank", "run.amp_dtype", "run.log_freq"):
        assert key in str(error.value)


def test_options_come_last_and_keep_their_type(tmp_path):
    config = load_config(
        write(tmp_path, "run: {batch_size_train: 4}"),
        ["run.batch_size_train=2", "model.lora=False", "run.optims.init_lr=1e-4", "model.lora_target_modules=[k_proj]"],
    )
    assert config.run.batch_size_train == 2
    assert config.model.lora is False
    assert config.run.optims.init_lr == 1e-4
    assert list(config.model.lora_target_modules) == ["k_proj"]


def test_an_empty_value_takes_back_what_the_file_or_its_base_says(tmp_path):
    write(tmp_path, "model: {beats_path: a, ckpt: b}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nmodel: {beats_path: }")
    assert load_config(path).model.beats_path == ""
    assert load_config(path, ["model.ckpt="]).model.ckpt == ""
    assert load_config(path, ["model.ckpt=null"]).model.ckpt == ""


def test_defaults_are_built_once_and_no_configuration_changes_those_of_another(tmp_path, monkeypatch):
    built, structured = [], OmegaConf.structured
    monkeypatch.setattr(OmegaConf, "structured", lambda schema: built.append(schema) or structured(schema))
    path = write(tmp_path, "model: {ckpt: , lora_target_modules: }\ndatasets: {path_map: }")
    before = load_config(path)
    changed = load_config(path)
    changed.model.lora_target_modules.append("k_proj")
    changed.datasets.path_map.append({"from": "a", "to": "b"})
    changed.run.optims.init_lr = 1.0
    assert load_config(path) == before != changed
    assert len(built) <= 1


def test_a_base_is_relative_to_the_file_and_is_overridden(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "run: {seed: 1, log_freq: 7}", "base.yaml")
    config = load_config(write(tmp_path / "sub", "base: ../base.yaml\nrun: {seed: 2}"))
    assert (config.run.seed, config.run.log_freq) == (2, 7)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("~/x.pth", "/home/me/x.pth"), *((name, name) for name in ("a=b, [c] {d}: #e's.pth", "null", "'a'", "007"))],
)
@pytest.mark.parametrize("options", [(), ["model.ckpt=third.pth"], ["model="]])
def test_a_checkpoint_given_by_its_path_is_that_file_whatever_it_is_called(
    tmp_path, monkeypatch, options, given, meant
):
    monkeypatch.setenv("HOME", "/home/me")
    assert load_config(write(tmp_path, "model: {ckpt: other.pth}"), options, given).model.ckpt == meant


@pytest.mark.parametrize("name", ["~nobody-known/x", "a\0b", "x" * 300])
def test_a_checkpoint_given_by_its_path_is_checked_as_the_key_is(tmp_path, name):
    with pytest.raises(UserError, match=r"model\.ckpt = "):
        load_config(write(tmp_path, "{}"), ckpt=name)


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        ("- a\n- b", [], "at the top level"),
        ("run: 3", [], "run must be a section"),
        ("run: {seed: [", [], "not valid YAML"),
        ("base: config.yaml", [], "leads back"),
        ("run: {}", ["run.seed"], "key=value"),
        ("model: {use_speech_Qformer: False}", [], "use_speech_Qformer"),
        ("model: {low_resource: True, llm_quantization: nf4}", [], "low_resource"),
        ("model: {prompt_template: hello}", [], "prompt_template"),
        ("run: {seed: '${nope}'}", [], "nope"),
        ("run: {seed: '???'}", [], "seed"),
        ("base: 3", [], "base"),
        ("model: {lora_target_modules: {a: b}}", [], "lora_target_modules"),
        ("model: {qformer_num_heads: 0}", [], "qformer_num_heads"),
        ("run: {num_workers: -1}", [], "num_workers"),
        ("run: {seed: -1, device: gpu}", [], "run.device = gpu"),
        ("run: {optims: {init_lr: .nan}}", [], "run.optims.init_lr"),
        ("generate: {do_sample: True, temperature: 0}", [], "temperature"),
    ],
)
def test_bad_input_gets_one_message(tmp_path, text, options, what):
    with pytest.raises(UserError, match=what):
        load_config(write(tmp_path, text), options)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml")


def test_model_section_alone_is_completed_and_checked():
    assert model_config({"lora_rank": 4}).lora_alpha == ModelConfig().lora_alpha
    with pytest.raises(UserError, match="lora_rang"):
        model_config({"lora_rang": 4})


@pytest.mark.parametrize(
    "path",
    sorted(
        p.relative_to(ROOT).as_posix()
        for p in ROOT.glob("configs/**/*.yaml")
        if p.name not in ("eval_tasks.yaml", "benchmarks.yaml", "choices.yaml") and not p.stem.startswith("recipes")
    ),
)
def test_every_shipped_config_loads(path):
    load_config(ROOT / path)


def test_every_key_has_a_place():
    keys = known_keys()
    assert {"model.window_level_Qformer", "datasets.prefix", "run.optims.beta2", "generate.length_penalty"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_a_later_base_wins_over_an_earlier_one(tmp_path):
    (tmp_path / "a.yaml").write_text("run: {seed: 1, log_freq: 7}\nmodel: {lora_rank: 4}")
    (tmp_path / "b.yaml").write_text("run: {seed: 2}")
    (tmp_path / "c.yaml").write_text("base: [a.yaml, b.yaml]\nmodel: {lora_rank: 16}")
    config = load_config(tmp_path / "c.yaml")
    assert (config.run.seed, config.run.log_freq, config.model.lora_rank) == (2, 7, 16)
    (tmp_path / "d.yaml").write_text("base: [a.yaml, 3]")
    with pytest.raises(UserError, match="expected the name of a config file, or a list of names"):
        load_config(tmp_path / "d.yaml")


def test_the_llm_takes_the_kind_of_mixed_precision(tmp_path):
    (tmp_path / "a.yaml").write_text("run: {amp_dtype: bf16}")
    assert load_config(tmp_path / "a.yaml").model.llm_dtype == "bfloat16"
    assert load_config(tmp_path / "a.yaml", ["run.device=cpu"]).model.llm_dtype == "auto"
    assert load_config(tmp_path / "a.yaml", ["run.amp_dtype=fp16"]).model.llm_dtype == "auto"
    with pytest.raises(UserError, match="bf16 does not go with"):
        load_config(tmp_path / "a.yaml", ["model.llm_dtype=float16"])
    with pytest.raises(UserError, match="amp_dtype = fp16 does not go with"):
        load_config(tmp_path / "a.yaml", ["run.amp_dtype=fp16", "model.llm_dtype=bfloat16"])


# ---- text is as it was typed

TYPED = ["20240501_1", "007", "1e5", "no", "off", "0x1F", "12:30:00", "true", ".5", "a #b", " a ", "a: b", "[x]", "*x"]
TYPED += ["&x", "!x", "- a", "2024-05-01", "nan", "'tis", '"a" b', "a, b", "100%", "NULL", "?", "@x", "{x: 1}"]


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("key", ["run.exp_name", "model.end_sym", "evaluate.name"])
def test_text_on_the_command_line_stays_as_typed(tmp_path, key, typed):
    config = load_config(write(tmp_path, "run: {exp_name: x}"), [f"{key}={typed}"])
    assert OmegaConf.select(config, key) == typed


@pytest.mark.parametrize("written", ["20240501_1", "007", "1e5", "no", "off", "0x1F", "12:30:00", "true", ".5", "1.10"])
def test_text_in_a_file_stays_as_written(tmp_path, written):
    path = write(tmp_path, f"run: {{exp_name: {written}, ctc_tasks: [asr, {written}]}}")
    assert (load_config(path).run.exp_name, list(load_config(path).run.ctc_tasks)) == (written, ["asr", written])
    write(tmp_path, f"run: {{exp_name: {written}}}", "base.yaml")
    assert load_config(write(tmp_path, "base: base.yaml", "above.yaml")).run.exp_name == written


def test_text_in_lists_and_sections_on_the_command_line_stays_as_typed(tmp_path):
    options = ["model.lora_target_modules=[no, 007, 'a #b']", "datasets.path_map=[{from: 1e5, to: 1_0}]"]
    config = load_config(write(tmp_path, "run: {}"), [*options, "run={exp_name: 007, seed: 3, amp: no}"])
    assert list(config.model.lora_target_modules) == ["no", "007", "a #b"]
    assert config.datasets.path_map == [{"from": "1e5", "to": "1_0"}]
    assert (config.run.exp_name, config.run.seed, config.run.amp) == ("007", 3, False)


def test_text_in_quotes_is_that_of_yaml_and_nothing_takes_back(tmp_path):
    path = write(tmp_path, "run: {exp_name: x}")
    template = 'model.prompt_template="A: {}\\nB:"'
    config = load_config(path, ["run.exp_name='it''s #1'", template, "model.ckpt=null", 'model.end_sym="007"'])
    assert (config.run.exp_name, config.model.prompt_template) == ("it's #1", "A: {}\nB:")
    assert (config.model.ckpt, config.model.end_sym) == ("", "007")


def test_a_tilde_is_the_home_folder_in_every_path_and_in_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    path = write(tmp_path, "run: {output_dir: ~/runs}\ndatasets: {prefix: ~/data, path_map: [{from: ~x, to: ~/disk}]}")
    config = load_config(path, ["run.resume=~/mine", "model.ckpt=~", "model.end_sym=~/"])
    assert (config.run.output_dir, config.datasets.prefix) == ("/home/anna/runs", "/home/anna/data")
    assert config.datasets.path_map == [{"from": "~x", "to": "/home/anna/disk"}]
    assert (config.run.resume, config.model.ckpt, config.model.end_sym) == ("/home/anna/mine", "/home/anna", "~/")
    with pytest.raises(UserError, match=r"run\.output_dir = ~nobody-of-that-name/x: this home folder is not known"):
        load_config(path, ["run.output_dir=~nobody-of-that-name/x"])


@pytest.mark.parametrize(
    "name",
    [".", "..", "a/../..", "../a", "a/..", "a/./b", "./a", "a/", "/a", "/", "//", "a//b", "~", "~/mine", "../../etc"],
)
def test_a_name_that_means_another_folder_is_refused(tmp_path, name):
    (tmp_path / "c.yaml").write_text(f"run: {{exp_name: '{name}'}}")
    for path, options in ((tmp_path / "c.yaml", []), (ROOT / "configs/mini/stage1.yaml", [f"run.exp_name={name}"])):
        with pytest.raises(UserError, match=r"run\.exp_name = .*: must be the name of a folder of its own in run"):
            load_config(path, options)


@pytest.mark.parametrize("name", ["a", "may/stage1", "...", ".a", "a..b", "v1.0", "a b", "é"])
def test_a_name_of_a_folder_is_taken(name):
    assert load_config(ROOT / "configs/mini/stage1.yaml", [f"run.exp_name={name}"]).run.exp_name == name


# ---- every key, whatever it is given

TYPED_VALUES = ["[[1]]", "${a", "a/" * 3000]
IN_FILES = [".nan", "1e308", "{a: 1}", "${", "${a}", "???", "!!int x", "!!set {a}", "&a [*a]", "[" * 2000, "9" * 5000]
IN_FILES += ['"a\\0b"', '"\\ud800"', "!!python/object:os.system x"]
LEAVES = dict(leaves(OmegaConf.to_container(OmegaConf.structured(Config))))
OPTIONS = [key for key in LEAVES if key != "stages"]  # which is for files
NUMBERS = {key for key, value in LEAVES.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def refusal(path, options=()) -> str:
    """In which message a configuration is refused; none where it is taken, with finite numbers."""
    try:
        config = load_config(path, options)
    except UserError as error:
        return str(error)
    assert all(math.isfinite(OmegaConf.select(config, name)) for name in NUMBERS)
    return ""


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1" + "0" * 30])
def test_a_number_that_cannot_be_is_refused_by_every_key_at_once(tmp_path, value):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, "run: {exp_name: x}"), [f"{key}={value}" for key in OPTIONS])
    told = set(re.findall(r"^ *(?:--options: )?([\w.]+) = ", str(error.value), re.MULTILINE))
    allowed = {"run.optims.warmup_start_lr", "run.optims.grad_clip_norm", "generate.length_penalty"}
    assert told >= {*BOUNDS, *CHOICES, *FORMS} - (allowed if value == "-1" else set())


def test_nothing_gives_every_key_its_default_back(tmp_path):
    path = ROOT / "configs/mini/stage1.yaml"
    assert load_config(path, [f"{key}=" for key in OPTIONS]) == load_config(write(tmp_path, "{}", "stage1.yaml"))


@pytest.mark.parametrize("key", known_keys())
def test_a_value_is_taken_or_refused_in_one_message_that_names_the_key(tmp_path, key):
    path = write(tmp_path, "run: {exp_name: x}")
    for value in TYPED_VALUES:
        message = refusal(path, [option := f"{key}={value}"])
        assert not message or ("--options (a secret): " if sets_secret(option) else key) in message


@pytest.mark.parametrize("key", ["run", "seed", "exp_name", "ctc_tasks", "amp", "save_every_minutes"])
@pytest.mark.parametrize("value", IN_FILES)
def test_what_a_file_says_is_taken_or_refused_in_one_message(tmp_path, key, value):
    path = write(tmp_path, f"run: {value}" if key == "run" else f"run: {{{key}: {value}}}")
    message = refusal(path)
    assert not message or str(path) in message or f"run.{key} = " in message


def test_every_number_has_bounds_and_every_text_is_a_choice_a_form_a_path_or_free():
    or_null = {
        "model.lora_scaling",
        "model.whisper_silence",
        "model.sound_seconds",
        "evaluate.efficiency.runs",
        "evaluate.efficiency.warmup",
    }
    assert NUMBERS | or_null == set(BOUNDS)
    free = {"run.wandb_project", "model.token", "model.prompt_template", "model.end_sym", "evaluate.judge.model"}
    checked = {"evaluate.judge.base_url", "evaluate.judge.key_variable"}
    texts = {key for key, value in LEAVES.items() if isinstance(value, str)}
    assert texts == {*CHOICES, *FORMS, *PATHS, *free, *checked}


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("run.optims.beta2=1", "run.optims.beta2 = 1.0: must be at least 0 and below 1"),
        ("run.seed=4294967296", "run.seed = 4294967296: must be at least 0 and at most 4294967295"),
        ("model.second_per_window=nan", "model.second_per_window = nan: must be at least 0.02"),
        ("model.second_stride=inf", "model.second_stride = inf: must be at least 0.02"),
        ("model.lora_dropout=1.5", "model.lora_dropout = 1.5: must be at least 0 and below 1"),
        ("generate.top_p=0", "generate.top_p = 0.0: must be more than 0 and at most 1"),
        ("generate.repetition_penalty=nan", "generate.repetition_penalty = nan: must be more than 0"),
        ("evaluate.efficiency.runs=0", "evaluate.efficiency.runs = 0: must be at least 1"),
        ("run.dist_url=somewhere", "run.dist_url = somewhere: choose env://"),
        ("run.dist_url=tcp://host:70000", "run.dist_url = tcp://host:70000: choose env://"),
        ("run.exp_name=" + "x" * 300, "run.exp_name = xxx"),
        ("run.seed=${", "--options run.seed=${: "),
        ("stages=[a.yaml]", "--options stages: write the list into a config file"),
    ],
)
def test_what_cannot_be_is_told_with_its_key_and_what_can(tmp_path, option, told):
    with pytest.raises(UserError, match=re.escape(told)):
        load_config(write(tmp_path, "run: {exp_name: x}"), [option])


def test_a_config_file_that_cannot_be_read_is_told(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="does not exist"):
            load_config(tmp_path / name)
    (tmp_path / "utf16.yaml").write_bytes("run: {}".encode("utf-16"))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "utf16.yaml")
    with pytest.raises(UserError, match="does not exist"):
        load_config(write(tmp_path, 'base: "a\\0b"'))


def test_a_short_file_of_very_many_values_or_levels_is_one_message(tmp_path):
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    texts = [laughs, "a: " + "[" * 2000 + "]" * 2000, "a: " + "{b: " * 2000 + "1" + "}" * 2000, "a: &a [*a]"]
    texts += ["".join(f"{' ' * i}a:\n" for i in range(depth)) for depth in (20, 150, 400, 2000)]
    for text in texts:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=r"c\.yaml"):
            load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"--options a\.a.*: there is no such key"):
        load_config("configs/mini/stage1.yaml", ["a." * 2000 + "a=1"])
    for value in ("[" * 2000 + "]" * 2000, "{b: " * 2000 + "1" + "}" * 2000, "&a [*a]"):
        with pytest.raises(UserError, match=r"--options run\.seed"):
            load_config("configs/mini/stage1.yaml", [f"run.seed={value}"])


def test_a_folder_inside_thousands_of_others_is_refused():
    with pytest.raises(UserError, match=r"run\.output_dir = a/a/.*: longer, or deeper, than"):
        load_config("configs/mini/stage1.yaml", [f"run.output_dir={'a/' * 1400}"])
