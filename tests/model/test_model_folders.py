"""Folders, files and hub names that are no model of the library's layout are named for what they are."""

import json
import logging
import re
import shutil
from functools import partial

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.config.missing_files import missing_model_files
from salmonn.model import checkpoint, model_folders
from salmonn.model.alignment import Aligner
from salmonn.model.meta_model import build_meta_model, require_checkpoint_fits
from salmonn.model.model_folders import require_model_folder
from tests.fixtures.golden import golden_config
from tests.fixtures.paths import GOLDEN, ROOT

LOADERS = [build_meta_model, SALMONN.from_config]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4265\n"
LLM, WHISPER = GOLDEN / "base/llama", GOLDEN / "base/whisper"


def section(**changes):
    return model_config({**OmegaConf.to_container(golden_config("base")), "ckpt": "", **changes})


def message_of(load, **changes):
    with pytest.raises(UserError) as error:
        load(section(**changes))
    return str(error.value)


# ---- other layouts


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("key", "files", "told"),
    [
        ("llama_path", ["smollm2-q4.gguf"], "is a GGUF model"),
        ("llama_path", ["smollm2-q4.gguf", "config.json", "tokenizer.json"], "is a GGUF model"),
        ("llama_path", ["consolidated.00.pth", "params.json", "tokenizer.model"], "is a LLaMA in the files of Meta"),
        ("llama_path", ["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        ("llama_path", ["model.onnx", "config.json"], "is an ONNX model"),
        ("llama_path", ["snapshots/0123/config.json", "refs/main"], "is a folder of the hub's cache"),
        ("llama_path", [], "has no config.json"),
        ("whisper_path", ["model.bin", "config.json", "vocabulary.json", "tokenizer.json"], "is a CTranslate2 model"),
        ("whisper_path", ["model.bin", "vocabulary.txt"], "is a CTranslate2 model"),
        ("whisper_path", ["large-v2.pt"], "is a file of torch"),
    ],
)
def test_a_folder_of_another_layout_is_named_with_what_is_needed(tmp_path, load, key, files, told):
    (tmp_path / "it").mkdir()
    for file in files:
        (tmp_path / "it" / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "it" / file).write_text("{}")
    message = message_of(load, **{key: str(tmp_path / "it")})
    assert f"model.{key} = {tmp_path}/it {told}" in message
    assert "Needed is the folder of the model in the layout of Hugging Face (config.json, model.safetensors" in message
    assert message.count(told) == 1


@pytest.mark.parametrize(
    ("key", "given", "file", "command"),
    [
        ("llama_path", "it", "it/small q4.gguf", "gguf '{}/it/small q4.gguf' TARGET"),
        ("llama_path", "a.gguf", "a.gguf", "gguf {}/a.gguf TARGET"),
        ("whisper_path", "it", "it/model.bin", "ctranslate2 {}/it TARGET"),
        ("whisper_path", "it/model.bin", "it/model.bin", "ctranslate2 {}/it TARGET"),
        ("whisper_path", "a.gguf", "a.gguf", ""),
        ("llama_path", "it", "it/model.bin", ""),
    ],
)
def test_the_command_that_converts_is_named_where_there_is_one(tmp_path, key, given, file, command):
    (tmp_path / "it").mkdir()
    (tmp_path / file).touch()
    with pytest.raises(UserError) as error:
        require_model_folder(key, OmegaConf.create({key: str(tmp_path / given)}))
    assert ("python util/convert.py" in str(error.value)) == bool(command)
    assert command.replace("{}", str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(("key", "name"), [("llama_path", "a.gguf"), ("whisper_path", "tiny.pt"), ("llama_path", "a")])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, key, name):
    (tmp_path / name).write_bytes(b"GGUF")
    for load in LOADERS:
        assert f"model.{key} = {tmp_path}/{name} is " in message_of(load, **{key: str(tmp_path / name)})


@pytest.mark.parametrize("load", LOADERS)
def test_the_folder_of_another_key_is_refused(load):
    assert 'is a model of another kind ("whisper" in its config.json)' in message_of(load, llama_path=str(WHISPER))
    assert 'is a model of another kind ("llama" in its config.json)' in message_of(load, whisper_path=str(LLM))


@pytest.mark.parametrize("load", LOADERS)
def test_a_salmonn_folder_is_no_llm(tmp_path, load):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "salmonn"}))
    (tmp_path / "model.safetensors").touch()
    assert "is a SALMONN folder" in message_of(load, llama_path=str(tmp_path))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("llama_path", "tokenizer.model"), ("llama_path", "model.safetensors"), ("llama_path", "tokenizer_config.json"),
        ("whisper_path", "model.safetensors"), ("whisper_path", "preprocessor_config.json"),
    ],
)  # fmt: skip
def test_pointers_of_git_lfs_are_named(tmp_path, load, key, file):
    folder = shutil.copytree(LLM if key == "llama_path" else WHISPER, tmp_path / "it")
    (folder / file).write_text(POINTER)
    message = message_of(load, **{key: str(folder)})
    assert f"model.{key} = {folder}: {file} hold no content, but pointers of Git LFS: run `git lfs pull`" in message


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("key", ["beats_path", "ckpt", "speech_llama_proj_model"])
def test_a_pointer_in_the_place_of_a_file_is_named(tmp_path, load, key):
    (tmp_path / "it.pth").write_text(POINTER)
    config = section(**{key: str(tmp_path / "it.pth")})
    if load is build_meta_model and key != "beats_path":  # the preflight looks at checkpoints after it
        load = partial(require_checkpoint_fits, path=config[key])
    with pytest.raises(UserError, match="it is a pointer of Git LFS"):
        load(config)


# ---- names on the hub


def test_a_hub_that_cannot_be_reached_is_asked_once_and_told_once(monkeypatch):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("Connection refused")

    monkeypatch.setattr(model_folders, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for n, load in enumerate(LOADERS):
        model_folders._hub_problem.cache_clear()
        message = message_of(load, whisper_path="nobody/whisper-huge")
        assert message.count("\n") == 0
        assert "nobody/whisper-huge is no folder here, and the hub" in message
        assert "HF_HUB_OFFLINE=1" in message
        assert len(asked) == n + 1


def test_a_name_that_is_not_in_the_cache_is_told_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(model_folders, "get_session", None)  # is not asked
    model_folders._hub_problem.cache_clear()
    for load in LOADERS:
        message = message_of(load, llama_path="nobody/llm")
        assert "model.llama_path = nobody/llm is no folder here and not in the hub's cache" in message
        assert message.count("\n") == 0


def test_a_path_that_is_no_name_of_the_hub_is_told():
    for load in LOADERS:
        message = message_of(load, whisper_path="output/none/whisper")
        assert "model.whisper_path = output/none/whisper is no folder here, and no name that the hub could" in message
        assert message.count("\n") == 0


# ---- weights and configuration of different models


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("whisper_path", {"encoder_layers": 1}), ("whisper_path", {"encoder_layers": 7}),
        ("llama_path", {"num_hidden_layers": 1}), ("llama_path", {"num_hidden_layers": 9}),
    ],
)  # fmt: skip
def test_weights_of_other_layers_than_the_configuration_says_are_refused(tmp_path, load, key, changes):
    folder = shutil.copytree(LLM if key == "llama_path" else WHISPER, tmp_path / "it")
    change_config(folder, **changes)
    assert f"its config.json says {next(iter(changes.values()))}" in message_of(load, **{key: str(folder)})


@pytest.mark.parametrize("layers", ["2", [2], {}])
def test_a_number_of_layers_that_is_none_is_one_message(tmp_path, layers):
    folder = shutil.copytree(LLM, tmp_path / "it")
    change_config(folder, num_hidden_layers=layers)
    with pytest.raises(UserError, match=r"model\.llama_path"):
        model_folders.require_weight_files("llama_path", OmegaConf.create({"llama_path": str(folder)}))


@pytest.mark.parametrize("key", ["whisper_path", "llama_path"])
def test_weights_that_are_left_over_are_refused(tmp_path, key):
    folder = shutil.copytree(LLM if key == "llama_path" else WHISPER, tmp_path / "it")
    weights = load_file(folder / "model.safetensors")
    prefix = "model." if key == "llama_path" else ""
    extra = "layers.0.mlp.router.weight" if key == "llama_path" else "encoder.layers.0.self_attn.extra"
    save_file({**weights, f"{prefix}{extra}": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    message = message_of(SALMONN.from_config, **{key: str(folder)})
    assert "holds more than its config.json says: 1 weights, e.g. " in message
    assert extra in message


def test_weights_of_whispers_decoder_do_not_matter(tmp_path):
    folder = shutil.copytree(WHISPER, tmp_path / "it")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "decoder." not in k}
    extra = {"decoder.layers.77.fc1.bias": torch.ones(3), "proj_out.weight": torch.ones(3)}
    save_file({**weights, **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    SALMONN.from_config(section(whisper_path=str(folder)))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("key", ["whisper_path", "llama_path"])
def test_a_weight_file_that_is_cut_short_is_refused(tmp_path, load, key):
    folder = shutil.copytree(LLM if key == "llama_path" else WHISPER, tmp_path / "it")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        assert "model.safetensors cannot be loaded" in message_of(load, **{key: str(folder)})


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("extractor", [{"feature_size": 128}, {"chunk_length": 20}, {"hop_length": 80}])
def test_features_of_another_whisper_are_refused(tmp_path, load, extractor):
    folder = shutil.copytree(WHISPER, tmp_path / "it")
    WhisperFeatureExtractor(**extractor).save_pretrained(folder)
    assert "the two are of different Whispers" in message_of(load, whisper_path=str(folder))


# ---- weights that are no numbers


def weights_of(folder):
    """A folder's weights, of one file, to be written anew."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file), file


def in_shards(folder, weights):
    """The weights in two files with their index."""
    (folder / "model.safetensors").unlink()
    names, parts = sorted(weights), {}
    for name in names:
        parts.setdefault(f"model-0000{1 + (name > names[len(names) // 2])}-of-00002.safetensors", {})[name] = weights[
            name
        ]
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("key", "name", "dtype", "value"),
    [
        ("llama_path", "model.layers.0.self_attn.q_proj.weight", torch.float16, float("nan")),
        ("llama_path", "model.norm.weight", torch.bfloat16, float("inf")),
        ("whisper_path", "encoder.conv1.bias", torch.float32, -float("inf")),
    ],
)
def test_weights_that_are_no_numbers_are_told_with_tensor_and_file(tmp_path, key, name, dtype, value):
    folder = shutil.copytree(LLM if key == "llama_path" else WHISPER, tmp_path / "it")
    weights, file = weights_of(folder)
    name = next(stored for stored in weights if stored.endswith(name))
    weights = {stored: tensor.to(dtype) for stored, tensor in weights.items()}
    weights[name].view(-1)[1] = value
    save_file(weights, file, metadata={"format": "pt"})
    message = message_of(SALMONN.from_config, **{key: str(folder)})
    assert f"model.{key} = {folder}: {file} holds NaN or infinite values in 1 tensors, e.g. {name}: " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "quantization"), [("shards", "none"), ("pickled", "8bit"), ("pickled before 1.6", "none"), ("", "nf4")]
)
def test_the_file_among_several_is_named_and_quantising_hides_nothing(tmp_path, kind, quantization):
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    folder = shutil.copytree(LLM, tmp_path / "it")
    weights, file = weights_of(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][2, 1] = float("nan")
    if kind == "shards":
        in_shards(folder, weights)
        file = next(part for part in folder.glob("model-*-of-*s") if name in load_file(part))
    elif not kind:
        save_file(weights, file, metadata={"format": "pt"})
    else:
        file.unlink()
        file = folder / "pytorch_model.bin"
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "pickled")
    message = message_of(SALMONN.from_config, llama_path=str(folder), llm_quantization=quantization)
    assert f"{file} holds NaN or infinite values in 1 tensors, e.g. {name}: " in message


def test_weights_that_are_not_used_may_be_anything(tmp_path):
    llm, whisper = shutil.copytree(LLM, tmp_path / "llm"), shutil.copytree(WHISPER, tmp_path / "whisper")
    weights, file = weights_of(whisper)
    next(value for name, value in weights.items() if "decoder." in name).fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    SALMONN.from_config(section(whisper_path=str(whisper)))
    weights, file = weights_of(llm)
    weights["model.layers.0.self_attn.q_proj.weight"].fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    Aligner.from_config(section(llama_path=str(llm)))  # of the LLM it reads the embeddings
    weights["model.embed_tokens.weight"].fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    assert "e.g. model.embed_tokens.weight: " in message_of(Aligner.from_config, llama_path=str(llm))


def test_weights_of_a_name_on_the_hub_are_looked_at_in_its_cache(tmp_path, monkeypatch):
    torch.save({"a.weight": torch.tensor([torch.nan])}, tmp_path / "pytorch_model.bin")
    cached = {"org/name": str(tmp_path / "config.json")}
    monkeypatch.setattr(model_folders, "try_to_load_from_cache", lambda name, _: cached.get(name))
    with pytest.raises(UserError, match=rf"org/name: {tmp_path}/pytorch_model\.bin holds NaN"):
        model_folders.require_finite_weights("llama_path", section(llama_path="org/name"))
    model_folders.require_finite_weights("llama_path", section(llama_path="org/other"))


def test_numbers_that_are_infinite_and_mean_a_mask_are_none_of_the_weights(tmp_path):
    torch.save({"a.masked_bias": torch.tensor(-torch.inf), "a.ids": torch.arange(3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    model_folders.require_finite_weights("llama_path", section(llama_path=str(tmp_path)))


def test_every_kind_of_number_is_looked_at():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        value = torch.ones(300, dtype=torch.float32)
        assert checkpoint.is_finite(value.to(dtype))
        value[[7, 299]] = float("nan")
        assert not checkpoint.is_finite(value.to(dtype))
    assert checkpoint.is_finite(torch.zeros(0))
    assert checkpoint.is_finite(torch.arange(3))
    assert checkpoint.is_finite(torch.full((2,), torch.nan, device="meta"))


# ---- checkpoints


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["ln_speech.weight", "speech_query_tokens"])
def test_a_checkpoint_with_values_that_are_no_numbers_is_refused(tmp_path, name, value):
    content = torch.load(GOLDEN / "base/salmonn.pth", weights_only=True)
    content["model"][name].view(-1)[3] = value
    torch.save(content, tmp_path / "broken.pth")
    told = rf"broken\.pth holds NaN or infinite values in 1 of \d+ tensors, e\.g\. {name}"
    with pytest.raises(UserError, match=told):
        SALMONN.from_config(section(ckpt=str(tmp_path / "broken.pth")))
    with pytest.raises(UserError, match=told):
        require_checkpoint_fits(build_meta_model(section()), tmp_path / "broken.pth")


def test_a_beats_file_with_values_that_are_no_numbers_is_refused(tmp_path):
    content = torch.load(GOLDEN / "base/beats.pt", weights_only=True)
    next(iter(content["model"].values())).view(-1)[0] = float("nan")
    torch.save(content, tmp_path / "beats.pt")
    for load in LOADERS:
        assert "beats.pt holds NaN" in message_of(load, beats_path=str(tmp_path / "beats.pt"))


def test_a_folder_in_the_place_of_a_checkpoint_is_named_with_the_files_in_it(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: name the file, of which none is in it"):
        checkpoint.read(tmp_path)
    (tmp_path / "checkpoint_best.pth").touch()
    with pytest.raises(UserError, match=f"is a folder: name the file, {tmp_path}/checkpoint_best.pth"):
        SALMONN.from_config(section(ckpt=str(tmp_path)))
    with pytest.raises(UserError, match=r"BEATs checkpoint .* is a folder: name the file"):
        SALMONN.from_config(section(beats_path=str(tmp_path)))


# ---- the LLM's version


@pytest.mark.parametrize(
    ("width", "positions", "other"),
    [(5120, 4096, "vicuna-13b-v1.1"), (4096, 2048, "vicuna-7b-v1.5"), (5120, 2048, ""), (4096, 4096, ""), (48, 9, "")],
)
def test_another_vicuna_than_that_of_the_released_checkpoint_is_told_once(caplog, width, positions, other):
    model = build_meta_model(section(ckpt=str(GOLDEN / "base/salmonn.pth")))
    model.llama_model.config.update({"hidden_size": width, "max_position_embeddings": positions})
    checkpoint.tell_other_vicuna.cache_clear()
    content = checkpoint.read(model.config.ckpt, lazily=True)
    with caplog.at_level(logging.WARNING):
        model.tell_other_vicuna(content, model.config.ckpt)
        model.tell_other_vicuna(content, model.config.ckpt)
    assert caplog.text.count("answers nonsense") == bool(other)
    assert other in caplog.text
    model.llama_model.config.update({"vocab_size": 128_256, "max_position_embeddings": 131_072})
    caplog.clear()
    model.tell_other_vicuna(content, model.config.ckpt)
    assert caplog.text == ""


# ---- what configurations say


@pytest.mark.parametrize("template", [r"USER: {}\nASSISTANT:", r"{}\n\n", r"a\t{}"])
def test_escapes_that_yaml_has_not_read_are_refused(template):
    with pytest.raises(UserError, match=r"model.prompt_template holds \\[nt] as two characters each"):
        section(prompt_template=template)
    assert section(prompt_template="USER: {}\nA\\B:").prompt_template


def test_files_of_the_miniature_world_are_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = section(
        llama_path="output/mini/no_world/llama", whisper_path="./weights/whisper", beats_path="salmonn/model/beats.py",
        ckpt="", prompt_path="configs/prompts/train_prompt.json", test_prompt_path="",
    )  # fmt: skip
    llama, whisper, beats = missing_model_files(config)  # the prompts are inside the package, too
    assert "make quickstart" in llama
    assert "lmsys" not in llama
    assert "openai/whisper-large-v2" in whisper
    assert f"is not in {tmp_path}, but in " in beats  # the command was started in another folder
    assert "run the command there" in beats
    assert "get it" not in beats


# ---- code in the files of others


class _Runs:
    """Runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_folder_brings_along_is_never_run_whatever_is_typed(tmp_path, monkeypatch, file):
    shutil.copytree(LLM, tmp_path / "llm")
    content = json.loads((tmp_path / "llm" / file).read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}}
    content["tokenizer_class"] = "Own"
    (tmp_path / "llm" / file).write_text(json.dumps(content))
    (tmp_path / "llm" / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in LOADERS:
        message = message_of(load, llama_path=str(tmp_path / "llm"))
        assert "it asks to run code of its own (auto_map" in message
        assert "trust_remote_code" not in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["llama_path", "whisper_path"])
@pytest.mark.parametrize("kind", ["today", "before 1.6"])
def test_pickled_weights_that_hold_more_than_tensors_are_one_message(tmp_path, key, kind):
    folder = tmp_path / "it"
    shutil.copytree(LLM if key == "llama_path" else WHISPER, folder)
    (folder / "model.safetensors").unlink()
    is_zip = kind == "today"
    code = {"weight": _Runs(tmp_path / "ran")}
    torch.save(code, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    message = message_of(SALMONN.from_config, **{key: str(folder)})
    assert f"model.{key} = {folder} cannot be loaded: its weights are a pickle (pytorch_model.bin)" in message
    assert "weights_only" not in message
    assert not (tmp_path / "ran").exists()


def test_every_place_that_lets_the_library_choose_a_class_forbids_code():
    for file in (path for folder in ("salmonn", "util", "experiments") for path in (ROOT / folder).rglob("*.py")):
        for call in re.findall(
            r"\bAuto\w+\.from_(?:pretrained|config)\([^()]*(?:\([^()]*\)[^()]*)*\)", file.read_text()
        ):
            assert "trust_remote_code=False" in call, f"{file}: {call}"
