"""What is told before a weight is read: at the published sizes, from config files and file headers alone."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from salmonn import preflight
from salmonn.common import files, gpu
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.model.beats import PUBLISHED_SIZES, BEATs
from salmonn.model.meta_model import build_meta_model, require_checkpoint_fits
from salmonn.model.random_model import VICUNA_7B, VICUNA_13B, WHISPER_LARGE
from salmonn.training import readiness
from tests.fixtures.checkpoints import write_weights_without_values
from tests.fixtures.commands import run_command
from tests.fixtures.paths import GOLDEN, ROOT
from tests.fixtures.waiting import HANG

FULL = json.loads((GOLDEN / "full_size_keys.json").read_text())
SHARD = "model-0000{}-of-00002.safetensors"
SIZES = {"13b": VICUNA_13B, "7b": VICUNA_7B}


def without_values(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Tensors of any shape that take no room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders and files of the published sizes as they look from outside, and published-format checkpoints."""
    folder = tmp_path_factory.mktemp("weights")
    for size, shape in SIZES.items():
        llama = folder / f"vicuna-{size}"
        shutil.copytree(GOLDEN / "base/llama", llama, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        LlamaConfig(**{**shape, "vocab_size": 450}).save_pretrained(llama)  # as many as the tokenizer beside it
        with torch.device("meta"):
            tensors = LlamaForCausalLM(LlamaConfig.from_pretrained(llama)).state_dict()
        names, shards = list(tensors), {}
        for i, some in ((1, names[: len(names) // 2]), (2, names[len(names) // 2 :])):
            write_weights_without_values(llama / SHARD.format(i), {name: tensors[name] for name in some})
            shards |= dict.fromkeys(some, SHARD.format(i))
        (llama / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        names = FULL[f"salmonn_{size}"] | {name: [2] for name in FULL[f"salmonn_{size}_non_trainable_extras"]}
        torch.save({"model": without_values(names)}, folder / f"salmonn-{size}.pth")
    whisper = WhisperConfig(**WHISPER_LARGE, decoder_layers=1, decoder_attention_heads=20)
    whisper.save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    with torch.device("meta"):
        tensors = WhisperModel(whisper).state_dict()
        beats = {name: list(value.shape) for name, value in BEATs(PUBLISHED_SIZES).state_dict().items()}
    write_weights_without_values(folder / "whisper/model.safetensors", tensors)
    torch.save({"cfg": PUBLISHED_SIZES, "model": without_values(beats)}, folder / "beats.pt")
    return folder


def options(weights, size="13b"):
    return [
        f"model.llama_path={weights}/vicuna-{size}",
        f"model.whisper_path={weights}/whisper",
        f"model.beats_path={weights}/beats.pt",
        "datasets.prefix=",
        "run.device=cpu",
    ]


def problems(weights, *more, size="13b", config="configs/stage1.yaml"):
    return preflight.find_problems(load_config(config, [*options(weights, size), *more]), ())


@pytest.mark.parametrize("size", SIZES)
def test_a_published_checkpoint_fits_the_model_of_its_size(weights, size):
    config = load_config("configs/stage2.yaml", options(weights, size))
    meta_model = build_meta_model(config.model)
    assert all(p.device.type == "meta" for p in meta_model.parameters())
    n_trainable = sum(p.numel() for p in meta_model.parameters() if p.requires_grad)
    assert n_trainable == FULL["num_trainable_parameters"][f"salmonn_{size}"]
    require_checkpoint_fits(meta_model, f"{weights}/salmonn-{size}.pth")
    assert problems(weights, f"model.ckpt={weights}/salmonn-{size}.pth", size=size) == []


def test_the_checkpoint_of_another_llm_is_refused_with_the_reason(weights):
    (message,) = problems(weights, f"model.ckpt={weights}/salmonn-13b.pth", size="7b")
    assert "one whose LLM is 5120 wide, not 4096" in message
    assert "unexpected: llama_model.base_model.model.model.layers.32." in message
    assert len(message.splitlines()) < 20


def test_all_problems_are_told_together(weights, tmp_path):
    """A missing shard, a BEATs of another kind, a wrong end symbol, a task without prompt: one message."""
    llama = tmp_path / "llama"
    shutil.copytree(weights / "vicuna-13b", llama, copy_function=os.symlink)  # a copy would take 26 GB of zeros
    (llama / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "ann.json").write_text('{"annotation": [{"path": "a.wav", "text": "", "task": "dowsing"}]}')
    wrong = [f"model.llama_path={llama}", f"model.beats_path={weights}/salmonn-7b.pth", "model.end_sym=<stop>"]
    wrong += [f"datasets.train_ann_path={tmp_path}/ann.json", "datasets.prefix=/nowhere"]
    config = load_config("configs/stage1.yaml", [*options(weights), *wrong])
    with pytest.raises(UserError) as error:
        preflight.refuse(preflight.find_problems(config, ("train_ann_path",)))
    message = str(error.value)
    assert "lacks its weights: model-00002-of-00002.safetensors" in message
    assert "salmonn-7b.pth is not a BEATs checkpoint" in message
    assert "model.end_sym = '<stop>' is not a token" in message
    assert "'dowsing' (first in entry 0)" in message
    assert "datasets.prefix: /nowhere does not exist" in message


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"task": ""}, "entry 1: 'task' is empty"),
        ({"task": "QA", "Q": "<SpeechHere>?"}, "entry 1: 'Q' holds '<SpeechHere>'"),
        ({"text": "yes</s>"}, "entry 1: 'text' holds the end symbol '</s>'"),
        ({"task": "QA"}, "1 entries of the task 'QA' have no 'Q', which its prompts in "),
        ({"task": "QA", "Q": " "}, "1 entries of the task 'QA' have no 'Q'"),
        ({"task": "QA", "Q": "\u200b \u2060"}, "1 entries of the task 'QA' have no 'Q'"),
    ],
)
@pytest.mark.parametrize("key", ["train_ann_path", "valid_ann_path"])
def test_an_entry_that_would_end_an_epoch_keeps_a_run_from_starting(weights, tmp_path, key, entry, told):
    entries = [{"path": "a.wav", "text": "x"}, {"path": "a.wav", "text": "x", **entry}]
    (tmp_path / "ann.json").write_text(json.dumps({"annotation": entries}))
    config = load_config("configs/stage2.yaml", [*options(weights), f"datasets.{key}={tmp_path}/ann.json"])
    (problem,) = [line for line in preflight.find_problems(config, (key,)) if f"{tmp_path}/ann.json" in line]
    assert told in problem
    assert "entry 1" in problem


@pytest.mark.parametrize("key", ["train_ann_path", "valid_ann_path"])
def test_a_question_that_the_llm_cannot_hold_keeps_a_run_from_starting(weights, tmp_path, key):
    entries = [{"path": "a.wav", "text": "x", "task": task, "Q": "why " * n} for task, n in (("asr", 9999), ("QA", 1))]
    config = load_config("configs/stage1.yaml", [*options(weights), f"datasets.{key}={tmp_path}/ann.json"])
    for n in (0, 9, 9999):
        more = [{"path": "a.wav", "text": "x", "task": "QA", "Q": "why " * n}]
        content = entries + more if n else entries[:1]
        (tmp_path / "ann.json").write_text(json.dumps({"annotation": content}))
        told = [problem for problem in preflight.find_problems(config, (key,)) if "positions" in problem]
        assert len(told) == (n == 9999)  # not of a question that nobody asks
    assert f"{tmp_path}/ann.json: entry 2: 'Q' has " in told[0]
    assert "the LLM has 2048 positions" in told[0]


def test_what_is_wrong_with_two_annotation_files_is_told_together(weights, tmp_path):
    keys = ("train_ann_path", "valid_ann_path")
    for key in keys:
        (tmp_path / f"{key}.json").write_text('{"annotation": [{"path": "a.wav", "text": "", "task": ""}]}')
    named = [f"datasets.{key}={tmp_path}/{key}.json" for key in keys]
    config = load_config("configs/stage1.yaml", [*options(weights), *named])
    for more in ("model.prompt_path=", "run.objective=ctc", "model.multi_prompt=True"):
        config = load_config("configs/stage1.yaml", [*options(weights), *named, more])
        problems = preflight.find_problems(config, keys)
        assert [key for key in keys if any(f"{key}.json" in problem for problem in problems)] == list(keys)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["model"].pop("ln_audio.bias"), "missing: ln_audio.bias"),
        (lambda c: c["model"].update({"ln_audio.bais": torch.zeros(2)}), "unexpected: ln_audio.bais"),
        (
            lambda c: c["model"].update({"ln_audio.bias": torch.zeros(2)}),
            "ln_audio.bias: [2] in the file, [768]",
        ),
    ],
)
def test_a_checkpoint_with_wrong_names_or_shapes_is_refused(weights, tmp_path, change, told):
    content = torch.load(weights / "salmonn-13b.pth", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "wrong.pth")
    (message,) = problems(weights, f"model.ckpt={tmp_path}/wrong.pth")
    assert told in message
    assert f"{tmp_path}/wrong.pth does not fit" in message


def test_a_beats_file_that_contradicts_its_own_configuration_is_refused(weights, tmp_path):
    content = torch.load(weights / "beats.pt", weights_only=True)
    torch.save({**content, "cfg": {**PUBLISHED_SIZES, "encoder_layers": 11}}, tmp_path / "beats.pt")
    (message,) = problems(weights, f"model.beats_path={tmp_path}/beats.pt")
    assert "does not fit its own configuration" in message
    assert "unexpected: encoder.layers.11." in message


def test_no_room_for_the_checkpoints_is_told_before_training(weights, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(free=1e9))
    (message,) = problems(weights, f"run.output_dir={tmp_path}/new")
    n_trainable = FULL["num_trainable_parameters"]["salmonn_13b"]
    assert f"1.0 GB are free, but this run's 4 checkpoints take {4 * 12 * n_trainable / 1e9:.1f} GB" in message
    assert not (tmp_path / "new").exists()
    # those of the same run that are there already give way
    (tmp_path / "new/stage1").mkdir(parents=True)
    (tmp_path / "new/stage1/checkpoint_last.pth").write_bytes(b"")
    with (tmp_path / "new/stage1/checkpoint_last.pth").open("r+b") as file:
        file.truncate(12 * n_trainable * 3)  # a hole: takes no room here
    assert problems(weights, f"run.output_dir={tmp_path}/new") == []


def test_a_run_that_cannot_go_on_is_told_before_the_model_is_loaded(weights, tmp_path):
    state = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "config": {}, "progress": {}}
    (tmp_path / "stage1").mkdir()
    content = torch.load(weights / "salmonn-13b.pth", weights_only=True)
    torch.save({**content, **state}, tmp_path / "stage1/checkpoint_last.pth")

    def told(*more):
        config = load_config("configs/stage1.yaml", [*options(weights), f"run.output_dir={tmp_path}", *more])
        return [problem for problem in readiness.run_problems(config) if "ann_path" not in problem]

    assert told() == []
    (problem,) = told("model.lora_rank=16")
    assert "checkpoint_last.pth does not fit this model" in problem
    (problem,) = told("run.resume=/nowhere.pth")
    assert problem == "run.resume = /nowhere.pth: choose auto, none, or a checkpoint that exists"


def test_a_machine_without_weights_lists_everything_in_one_screen():
    result = run_command("train.py", "--cfg-path", "configs/stage1.yaml", "--dry-run")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) < 24
    for what in ("llama_path", "whisper_path", "beats_path", "train_ann_path", "valid_ann_path", "prefix"):
        assert what in result.stderr
    assert "no usable GPU" in result.stderr or torch.cuda.is_available()
    assert "Traceback" not in result.stderr


TOLD_AT_ONCE = """
import importlib, sys
sys.modules |= dict.fromkeys(("torch", "transformers", "gradio"))  # whose import fails now
from salmonn.common.errors import UserError
for module, *words in (
    ("salmonn.training.command", "--cfg-path", "configs/own.yaml"),
    ("salmonn.training.command", "--cfg-path", "configs/all_stages.yaml", "--dry-run"),
    ("salmonn.evaluation.command", "--mode", "valid_asr"), ("salmonn.evaluation.command", "--mode", "table3"),
    ("salmonn.chat",), ("salmonn.chat", "--ckpt", "nowhere.pth"), ("salmonn.web.__main__", "--port", "7861"),
    ("salmonn.serve.__main__", "--port", "8001"),
):
    sys.argv = [module, *words, "--options", "run.device=cpu", "model.llama_path=/nowhere/llama"]
    try:
        importlib.import_module(module).main()
    except UserError as error:
        print(str(error).partition(":")[0], "llama" in str(error), "whisper" in str(error))
"""


def test_missing_files_are_told_by_each_command_in_its_words_before_pytorch_is_loaded():
    done = subprocess.run([sys.executable, "-c", TOLD_AT_ONCE], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    what = ["run", "run", "evaluation", "evaluation", "conversation", "conversation", "page", "server"]
    told = [f"{'the' if one in ('page', 'server') else 'this'} {one} cannot start True True" for one in what]
    assert done.stdout.splitlines() == told, done.stderr


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("salmonn.chat", ()),
        ("salmonn.web.__main__", ("--port", "7862")),
        ("salmonn.serve.__main__", ("--port", "8002")),
    ],
)
def test_a_checkpoint_named_on_the_command_line_may_lie_in_the_home_folder(command, more, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "argv", ["command", *more, "--ckpt", "~/nowhere.pth"])
    with pytest.raises(UserError, match=r"model\.ckpt: /home/me/nowhere\.pth does not exist"):
        importlib.import_module(command).main()


def test_chat_lists_the_device_with_the_files_and_names_the_model_that_is_here(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_DRIVERS", ("libnowhere.so.1", "/nowhere"))
    config = load_config(ROOT / "configs/decode.yaml")
    monkeypatch.chdir(tmp_path)
    for is_here in (False, True):
        with pytest.raises(UserError) as error:
            preflight.require_files(config, (), (), "this conversation", preflight.MINI_ANSWERS)
        for told in ("llama_path", "whisper_path", "beats_path", "model.ckpt", "run.device = cuda"):
            assert told in str(error.value)
        assert ("make quickstart" in str(error.value)) is not is_here
        assert ("--cfg-path configs/mini/decode.yaml" in str(error.value)) is is_here
        (tmp_path / "output/mini/stage3").mkdir(parents=True, exist_ok=True)
        (tmp_path / "output/mini/stage3/checkpoint_best.pth").touch()
    with pytest.raises(UserError) as error:
        preflight.refuse(["a: b does not exist\n    get it: c"])
    assert "mini" not in str(error.value)  # of a run there is nothing to say
    assert "quickstart" not in str(error.value)


def test_dry_run_of_the_full_size_model_takes_a_step_without_its_weights(weights, mini_world, tmp_path):
    """From configs alone: the weight files hold next to nothing."""
    ann = [f"datasets.{split}_ann_path={mini_world}/ann/stage1_{split}.json" for split in ("train", "valid")]
    more = [*ann, f"datasets.prefix={mini_world}/audio", f"run.output_dir={tmp_path}/out", "run.amp_dtype=bf16"]
    more += ["run.accum_grad_iters=2", f"model.ckpt={weights}/salmonn-13b.pth"]
    result = run_command(
        "train.py", "--cfg-path", "configs/stage1.yaml", "--dry-run", "--options", *options(weights)[:-2], *more,
        "run.device=cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Llama of 40 layers, 5120 wide; Whisper of 32 layers, 30 s, BEATs of 12 layers" in result.stdout
    assert "33.33 M trainable parameters (Q-Former" in result.stdout
    assert "effective batch 8 (4 x accumulation 2 x 1 process)" in result.stdout
    assert "LLM 8bit" in result.stdout
    assert "one step    of a tiny model of this shape: loss " in result.stdout
    assert not (tmp_path / "out").exists()


def test_dry_run_of_stage_0_at_full_size_trains_no_adapters(weights, mini_world, tmp_path):
    ann = [f"datasets.{split}_ann_path={mini_world}/ann/stage1_{split}.json" for split in ("train", "valid")]
    more = [*ann, f"datasets.prefix={mini_world}/audio", f"run.output_dir={tmp_path}/out", "run.amp_dtype=bf16"]
    result = run_command(
        "train.py", "--cfg-path", "configs/fast/stage0.yaml", "--dry-run", "--options", *options(weights)[:-2], *more,
        "run.device=cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Llama of 40 layers, 5120 wide, input embeddings only; Whisper of 32 layers" in result.stdout
    assert "LoRA" not in result.stdout
    assert "CTC 5121" in result.stdout
    assert "one step    of a tiny model of this shape: loss " in result.stdout
