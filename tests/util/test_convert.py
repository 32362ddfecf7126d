"""Checkpoints become folders and back bit for bit; adapters leave in PEFT's format or inside their LLM."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from peft.config import PeftConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from salmonn import SALMONN
from salmonn.common.cli import run_cli
from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.model import checkpoint, pretrained
from salmonn.model.model_folders import require_model_folder
from salmonn.model.tokenizer import load_tokenizer
from tests.fixtures.checkpoints import write_weights_without_values
from tests.fixtures.convert import GOLDEN_PTH, written
from tests.fixtures.ctranslate2 import tiny_whisper, write_ctranslate2
from tests.fixtures.golden import golden_config, golden_sample
from tests.fixtures.paths import GOLDEN
from util import convert, jobs
from util.conversion import from_ctranslate2
from util.conversion.from_ctranslate2 import _values

IDS = torch.arange(3, 40)[None]  # [1, 37]


def logits(llm, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return llm(ids).logits


# ---- folders


def test_the_golden_checkpoint_comes_back_bit_identical(command, config_file, tmp_path):
    assert "73 tensors" in command("to-folder", GOLDEN_PTH, tmp_path / "folder", "--cfg-path", config_file)
    command("to-pth", tmp_path / "folder", tmp_path / "back.pth")
    before, after = checkpoint.read(GOLDEN_PTH), checkpoint.read(tmp_path / "back.pth")
    check_same_tensors(after["model"], before["model"])
    assert after["epoch"] == before["epoch"]


def test_every_precision_and_every_bit_survive(command, config_file, tmp_path):
    parameters = dict(checkpoint.read(GOLDEN_PTH)["model"])
    names = iter(sorted(name for name in parameters if "Qformer" in name and name.endswith(".weight")))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        name = next(names)
        parameters[name] = parameters[name].to(dtype)
    odd = parameters[next(names)]
    odd.view(-1)[:4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    transposed = next(names)
    parameters[transposed] = parameters[transposed].T.contiguous().T  # not contiguous
    source = written(tmp_path / "odd.pth", parameters)
    command("to-folder", source, tmp_path / "folder", "--cfg-path", config_file)
    command("to-pth", tmp_path / "folder", tmp_path / "back.pth")
    check_same_tensors(checkpoint.read(tmp_path / "back.pth")["model"], parameters)


def check_same_tensors(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (found[name], value)]
        assert torch.equal(*bits), name


def test_a_trained_checkpoint_keeps_its_configuration_and_drops_what_only_a_run_needs(command, trained_pth, tmp_path):
    output = command("to-folder", trained_pth, tmp_path / "folder")
    assert "left out: optimizer, progress, scaler" in output
    assert "hf_secret" not in (tmp_path / "folder" / "config.json").read_text()
    command("to-pth", tmp_path / "folder", tmp_path / "back.pth")
    before, after = checkpoint.read(trained_pth), checkpoint.read(tmp_path / "back.pth")
    check_same_tensors(after["model"], before["model"])
    assert after.keys() == {"model", "config", "epoch", "step"}
    assert (after["epoch"], after["step"]) == (3, 900)
    assert after["config"]["run"] == {"exp_name": "stage2"}
    changed = {key for key, value in before["config"]["model"].items() if after["config"]["model"][key] != value}
    assert changed == {"token", "ckpt"}


def test_what_only_spells_is_left_out_of_folders_and_exports(command, trained_pth, spelling_pth, tmp_path):
    output = command("to-folder", spelling_pth, tmp_path / "folder")
    assert "69 tensors; left out: ctc_blank, ctc_log_scale, optimizer, progress, scaler" in output
    check_same_tensors(load_file(tmp_path / "folder/model.safetensors"), checkpoint.read(trained_pth)["model"])
    for export in ("export-lora", "export-merged"):
        command(export, spelling_pth, tmp_path / export)
        command(export, trained_pth, tmp_path / "plain" / export)
        one, other = (next((folder / export).glob("*.safetensors")) for folder in (tmp_path, tmp_path / "plain"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("made", ["to-folder", "export-lora", "export-merged"])
def test_nothing_to_use_is_made_of_stage_0(command, stage0_pth, tmp_path, made):
    with pytest.raises(UserError, match=r"stage0\.pth is of stage 0: a connector without LoRA, .* model\.ckpt="):
        command(made, stage0_pth, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_connector_that_has_no_lora_by_its_configuration_is_a_model(command, stage0_pth, tmp_path):
    content = checkpoint.read(stage0_pth)
    content["config"]["model"]["lora"] = False
    torch.save(content, stage0_pth)
    command("to-folder", stage0_pth, tmp_path / "folder")
    model = SALMONN.from_pretrained(tmp_path / "folder")
    expected = {name: value for name, value in content["model"].items() if not name.startswith("ctc_")}
    check_same_tensors({name: p.detach() for name, p in checkpoint.own_parameters(model).items()}, expected)


def test_a_folder_gives_the_same_answers_as_its_checkpoint(golden, command, config_file, tmp_path):
    command("to-folder", GOLDEN_PTH, tmp_path / "folder", "--cfg-path", config_file)
    model, case = SALMONN.from_pretrained(tmp_path / "folder").eval(), golden("base")
    for i in range(2):
        sample, settings = golden_sample(case, i), {"num_beams": 1, "max_new_tokens": 20}
        assert model.generate(sample, settings) == case.model.generate(sample, settings)


def test_save_pretrained_keeps_parameters_and_the_present_lora_scaling(golden, tmp_path):
    case = golden("base")
    try:
        case.model.lora_scaling = 1.5
        case.model.save_pretrained(tmp_path / "folder")
    finally:
        case.model.lora_scaling = 4.0
    model = SALMONN.from_pretrained(tmp_path / "folder")
    assert model.lora_scaling == 1.5
    check_same_tensors(
        {name: p.detach() for name, p in checkpoint.own_parameters(model).items()},
        {name: p.detach() for name, p in checkpoint.own_parameters(case.model).items()},
    )
    model.lora_scaling = 4.0
    model.save_pretrained(tmp_path / "folder")  # replaces its own kind
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model"]["lora_scaling"] is None


def test_files_that_are_elsewhere_are_all_named_and_can_be_given(golden, tmp_path):
    golden("base").model.save_pretrained(tmp_path / "folder")
    real = golden_config("base")
    moved = {"llama_path": "/no/llm", "whisper_path": "/no/whisper", "prompt_path": "/no/prompts.json"}
    with pytest.raises(UserError) as error:
        SALMONN.from_pretrained(tmp_path / "folder", **moved)
    assert all(f"model.{key}: {path} does not exist" in str(error.value) for key, path in moved.items())
    assert "llama_path=" in str(error.value)
    model = SALMONN.from_pretrained(tmp_path / "folder", llama_path=real.llama_path, lora_scaling=2.0)
    assert model.lora_scaling == 2.0
    with pytest.raises(UserError, match=r"llama_pth \(did you mean model\.llama_path\?\)"):
        SALMONN.from_pretrained(tmp_path / "folder", llama_pth="x")


def test_a_folder_of_another_kind_is_neither_read_nor_replaced(golden, tmp_path):
    llm = golden_config("base").llama_path
    with pytest.raises(UserError, match="model_type 'llama'"):
        SALMONN.from_pretrained(llm)
    with pytest.raises(UserError, match=r"no config\.json"):
        SALMONN.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="model_type 'llama'"):
        golden("base").model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_damaged_folder_is_refused(golden, tmp_path):
    golden("base").model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is not a SALMONN checkpoint, or damaged"):
        SALMONN.from_pretrained(tmp_path)


# ---- exports


@pytest.mark.parametrize("scaling", [None, 1.5])
def test_peft_loads_the_exported_adapter_with_the_same_logits(golden, command, config_file, tmp_path, scaling):
    options = [] if scaling is None else ["--lora-scaling", scaling]
    command("export-lora", GOLDEN_PTH, tmp_path / "adapter", "--cfg-path", config_file, *options)
    base = AutoModelForCausalLM.from_pretrained(golden_config("base").llama_path, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), expected_logits(golden, scaling), rtol=0, atol=1e-6)


def test_the_exported_adapter_is_what_peft_itself_writes(golden, command, config_file, tmp_path):
    command("export-lora", GOLDEN_PTH, tmp_path / "adapter", "--cfg-path", config_file)
    golden("base").model.llama_model.save_pretrained(tmp_path / "peft")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "peft"))
    check_same_tensors(ours, theirs)
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "peft"))
    assert {key for key in theirs if ours[key] != theirs[key] and key != "target_modules"} <= {"auto_mapping"}
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


@pytest.mark.parametrize("scaling", [None, 1.5, 0.0])
def test_the_merged_llm_equals_base_and_lora(golden, command, config_file, tmp_path, scaling):
    options = [] if scaling is None else ["--lora-scaling", scaling]
    command("export-merged", GOLDEN_PTH, tmp_path / "merged", "--cfg-path", config_file, *options)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    # In float32 arithmetic base and LoRA are themselves 1e-5 off their exact result (logits up to 10),
    # so the merged weights are held to 1e-5 in exact arithmetic, and both to the sum of the two.
    exact = expected_logits(golden, scaling, torch.float64)
    torch.testing.assert_close(logits(merged), expected_logits(golden, scaling), rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(merged.double()), exact, rtol=0, atol=1e-5)


def test_the_merged_folder_is_whole(command, trained_pth, tmp_path):
    command("export-merged", trained_pth, tmp_path / "merged")
    base = golden_config("base").llama_path
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.use_cache
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", base)]
    texts = "USER: <Speech></Speech> What is said?\nASSISTANT: it rains.</s>"
    assert tokenizers[0](texts).input_ids == tokenizers[1](texts).input_ids


def expected_logits(golden, scaling: float | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits of the golden LLM with its adapters, as SALMONN itself runs it."""
    model = golden("base").model
    try:
        model.lora_scaling = 4.0 if scaling is None else scaling
        return logits(model.llama_model.to(dtype))
    finally:
        model.lora_scaling = 4.0
        model.llama_model.to(torch.float32)


def test_scalings_and_dtypes_change_what_is_exported(golden, command, trained_pth, tmp_path):
    assert not torch.allclose(expected_logits(golden, 4.0), expected_logits(golden, 1.5), atol=1e-3)
    command("export-merged", trained_pth, tmp_path / "half", "--dtype", "float16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.float16


def test_an_export_needs_neither_whisper_nor_beats(command, trained_pth, tmp_path):
    content = checkpoint.read(trained_pth)
    content["config"]["model"] |= {"whisper_path": "/no/whisper", "beats_path": "/no/beats.pt"}
    torch.save(content, trained_pth)
    command("export-merged", trained_pth, tmp_path / "merged")
    command("export-lora", trained_pth, tmp_path / "adapter")


def test_a_published_generation_config_that_the_library_calls_invalid_can_be_merged(command, trained_pth, tmp_path):
    llm = copy_of_llm(tmp_path / "vicuna")
    (llm / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1}')  # as v1.5 has
    command("export-merged", trained_pth, tmp_path / "merged", "--llama-path", llm)
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["top_p"] == 0.6


def test_an_llm_of_another_size_is_refused_before_its_weights_are_read(command, trained_pth, tmp_path):
    llm = copy_of_llm(tmp_path / "wider")
    config = AutoConfig.from_pretrained(llm, hidden_size=96)
    config.save_pretrained(llm)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    write_weights_without_values(llm / "model.safetensors", weights)
    with pytest.raises(UserError, match=r"lora_A\.default\.weight: \[8, 48\] in the file, \[8, 96\] in the model"):
        command("export-merged", trained_pth, tmp_path / "merged", "--llama-path", llm)


def copy_of_llm(folder: Path) -> Path:
    return Path(shutil.copytree(golden_config("base").llama_path, folder))


# ---- others' models


@pytest.mark.parametrize("kind", [{}, {"vocabulary": 51_866, "decoder_layers": 1}])
def test_a_whisper_of_ctranslate2_says_the_same_as_a_hugging_face_folder(command, tmp_path, kind):
    model = tiny_whisper(**kind)
    write_ctranslate2(tmp_path / "ct2", model)
    assert "for model.whisper_path" in command("ctranslate2", tmp_path / "ct2", tmp_path / "hf")
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "hf").feature_size == 80
    mel, ids = torch.randn(1, 80, 3000), torch.tensor([[50257, 50362, 400, 500]])
    with torch.no_grad():
        expected, got = (m(input_features=mel, decoder_input_ids=ids).logits for m in (model, converted))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-2)  # the weights were float16
    generation = converted.generation_config
    assert generation.suppress_tokens == [1, 2]
    if kind:
        assert (generation.lang_to_id, generation.decoder_start_token_id) == ({"<|en|>": 50259, "<|de|>": 50260}, 50258)
        assert generation.task_to_id == {"transcribe": 50261, "translate": 50262}
    assert generation.is_multilingual == bool(kind)
    require_model_folder("whisper_path", OmegaConf.create({"whisper_path": str(tmp_path / "hf")}))


def test_bfloat16_of_ctranslate2_is_read():
    values = torch.randn(3, 2).bfloat16()
    read = _values(values.view(torch.int16).numpy().tobytes(), 5)
    assert np.array_equal(read, values.float().numpy().reshape(-1))


@pytest.mark.parametrize("cut", [3, 40, -5])
def test_half_a_file_is_no_model(command, tmp_path, cut):
    write_ctranslate2(tmp_path / "ct2", tiny_whisper())
    whole = (tmp_path / "ct2/model.bin").read_bytes()
    (tmp_path / "ct2/model.bin").write_bytes(whole[:cut])
    with pytest.raises(UserError, match="not a CTranslate2 model, or not a whole one"):
        command("ctranslate2", tmp_path / "ct2", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ct2"]


def test_a_whisper_that_is_not_converted_is_told_why(command, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"model\.bin cannot be read: No such file"):
        command("ctranslate2", tmp_path, tmp_path / "hf")
    write_ctranslate2(tmp_path / "ct2", tiny_whisper())
    (tmp_path / "ct2/tokenizer.json").write_text('{"added_tokens": []}')
    with pytest.raises(UserError, match=r"tokenizer\.json is no Whisper's: it has no <\|endoftext\|>"):
        command("ctranslate2", tmp_path / "ct2", tmp_path / "hf")
    (tmp_path / "ct2/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        command("ctranslate2", tmp_path / "ct2", tmp_path / "hf")
    encoder = {"encoder/conv1/weight": np.zeros((1, 1, 1), np.float32)}
    for variables, told in (
        ({}, "not a Whisper"),
        (encoder | {"encoder/layer_0/ffn/linear_0/weight_scale": np.ones(1, np.float32)}, "in whole numbers"),
        (encoder, "of an unknown kind: its model.bin has no 'decoder/embeddings/weight'"),
    ):
        monkeypatch.setattr(from_ctranslate2, "read_variables", lambda _, variables=variables: variables)
        with pytest.raises(UserError, match=told):
            command("ctranslate2", tmp_path / "ct2", tmp_path / "hf")


def test_a_gguf_says_the_same_as_the_folder_that_is_made_of_it(command, tmp_path):
    pytest.importorskip("gguf")  # of requirements-small.txt
    model = write_gguf(tmp_path / "tiny.gguf")
    assert "for model.llama_path" in command("gguf", tmp_path / "tiny.gguf", tmp_path / "hf")
    section = model_config({"llama_path": str(tmp_path / "hf"), "end_sym": "</s>", "lora": False})
    tokenizer = load_tokenizer(section)
    assert tokenizer.tokenize("abc de</s>") == ["ab", "c", "\u0120", "d", "e", "</s>"]
    assert tokenizer("ab</s>", add_special_tokens=False).input_ids == [3, 2]
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert converted.config.rms_norm_eps == 1e-5
    torch.testing.assert_close(logits(converted), logits(model), rtol=0, atol=1e-5)
    command("gguf", tmp_path / "tiny.gguf", tmp_path / "half", "--dtype", "bfloat16")
    assert load_file(tmp_path / "half/model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    content = (tmp_path / "tiny.gguf").read_bytes()
    for name, damaged in (
        ("short.gguf", content[: len(content) // 2]),
        ("other.gguf", content.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"")),
        ("lacks.gguf", content.replace(b"blk.1.ffn_down", b"blk.7.ffn_down")),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} cannot be converted: "):
            command("gguf", tmp_path / name, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def write_gguf(path: Path) -> LlamaForCausalLM:
    """A tiny random LLaMA as llama.cpp's converter writes it."""
    from gguf import GGUFWriter

    torch.manual_seed(0)
    tokens = ["<unk>", "<s>", "</s>", "ab", *sorted(ByteLevel.alphabet())]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    weights = {"token_embd": model.model.embed_tokens.weight, "output_norm": model.model.norm.weight}
    for i, layer in enumerate(model.model.layers):
        weights |= {f"blk.{i}.{theirs}": layer.get_parameter(f"{ours}.weight") for ours, theirs in names.items()}
    for name, weight in weights.items():
        values = weight.detach().numpy()
        if name.endswith(("attn_q", "attn_k")):  # llama.cpp rotates neighbours, transformers halves
            heads = 4 if name.endswith("q") else 2
            values = values.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(values.shape).copy()
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_that_cannot_be_read_is_told_why(command, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "find_spec", lambda _: None)
    for name, content, told in (
        ("none.gguf", None, "no such file; name the .gguf file itself"),
        ("a.gguf", b"no", "is no GGUF file"),
        ("m-00002-of-00003.gguf", b"GGUF", "is one part of several"),
        ("b.gguf", b"GGUF", r"^gguf: not installed\. pip install -r requirements-small\.txt brings it$"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=told):
            command("gguf", tmp_path / name, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# ---- bad input


def test_tensor_files_of_another_kind_get_one_clear_message(command, tmp_path):
    with pytest.raises(UserError, match="neither a SALMONN checkpoint, nor a folder of save_pretrained, nor a BEATs"):
        command("inspect", golden_config("base").llama_path + "/model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match='has no "model" dictionary'):
        command("inspect", tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"beats\.pt is not a SALMONN checkpoint: it holds \d+ other tensors"):
        command("to-folder", GOLDEN / "base" / "beats.pt", tmp_path / "folder")
    with pytest.raises(UserError, match="does not exist"):
        command("inspect", tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"it has no config\.json"):
        command("to-pth", GOLDEN_PTH, tmp_path / "b.pth")


def test_a_checkpoint_without_a_configuration_asks_for_one(command, tmp_path):
    bare = written(tmp_path / "bare.pth", checkpoint.read(GOLDEN_PTH)["model"])
    with pytest.raises(UserError, match="does not say how its model is built; name its config file: --cfg-path"):
        command("to-folder", bare, tmp_path / "folder")
    assert "48 wide, 2 layers" in command("inspect", bare)


def test_nothing_is_overwritten(command, trained_pth, tmp_path):
    command("to-folder", trained_pth, tmp_path / "folder")
    for name, source, target in (
        ("to-folder", trained_pth, tmp_path / "folder"),
        ("to-pth", tmp_path / "folder", trained_pth),
        ("export-lora", trained_pth, tmp_path / "folder"),
    ):
        with pytest.raises(UserError, match="exists already"):
            command(name, source, target)


FORMS = ("to-folder", "export-lora", "export-merged")


@pytest.mark.parametrize("form", FORMS)
def test_after_a_kill_the_same_command_starts_anew(command, trained_pth, tmp_path, form):
    target = tmp_path / "new"
    left = tmp_path / ".new.4194303.tmp"
    left.mkdir()
    (left / "config.json").write_text("{}")
    command(form, trained_pth, target)
    assert (target / "config.json").exists() or (target / "adapter_config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "trained.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
@pytest.mark.parametrize("form", FORMS)
def test_after_a_full_disk_nothing_is_left_and_the_same_command_starts_anew(
    command, trained_pth, tmp_path, monkeypatch, form, error
):
    """The last that is written meets it."""
    last = {"to-folder": (pretrained, "write_json"), "export-merged": (PreTrainedTokenizerBase, "save_pretrained")}
    place, name = last.get(form, (PeftConfigMixin, "save_pretrained"))
    monkeypatch.setattr(place, name, lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"new could not be written: .*No space left"):
        command(form, trained_pth, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["trained.pth"]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["convert.py", form, str(trained_pth), str(tmp_path / "new")])
    convert.main()
    assert (tmp_path / "new").is_dir()


def test_a_model_without_lora_and_an_impossible_scaling_are_refused(command, trained_pth, tmp_path):
    with pytest.raises(UserError, match="lora_scaling = -1"):
        command("export-lora", trained_pth, tmp_path / "a", "--lora-scaling", -1)
    content = checkpoint.read(trained_pth)
    content["config"]["model"]["lora"] = False
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith("llama_model.")}
    torch.save(content, trained_pth)
    with pytest.raises(UserError, match="no LoRA"):
        command("export-merged", trained_pth, tmp_path / "m")


def test_bad_input_ends_the_command_with_code_2(monkeypatch, capsys, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 half a zip")
    monkeypatch.setattr(sys, "argv", ["convert.py", "inspect", str(tmp_path / "a.pth")])
    with pytest.raises(SystemExit) as end:
        run_cli(convert.main)
    assert end.value.code == 2
    assert "a.pth is not a SALMONN or BEATs checkpoint, or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pth", b"", "it is empty"),
        ("a.pth", b"hello there, this is a text", "it is no whole file of torch.save"),
        ("a.safetensors", b"hello", "it is no whole safetensors file"),
        ("a.pth", torch.nn.Linear(1, 1), "it holds more than tensors and plain values, which is never loaded"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_words(command, tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save({"model": content}, path)
    with pytest.raises(UserError, match=f"{path} is not a SALMONN or BEATs checkpoint, or damaged: {reason}$"):
        command("inspect", path)


def test_a_wrong_argument_shows_the_usage_of_its_subcommand(command, capsys):
    with pytest.raises(SystemExit):
        command("to-pth", "a", "b", "c")
    shown = capsys.readouterr().err
    assert shown.startswith("usage: convert.py to-pth [-h] DIR FILE.pth\n")
    assert "unrecognized arguments: c" in shown


# ---- files of others


@pytest.mark.parametrize("key", ["llama_path", "prompt_template", "lora_target_modules"])
def test_a_foreign_file_is_given_nothing_of_the_readers_environment(command, trained_pth, tmp_path, monkeypatch, key):
    monkeypatch.setenv("READERS_SECRET", "sk_planted")
    content = torch.load(trained_pth, weights_only=True)
    asked = "${oc.env:READERS_SECRET}"
    content["config"]["model"][key] = [asked] if key == "lora_target_modules" else f"USER: {{}} {asked}"
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match=r"foreign\.pth: .*not filled in from the file of others"):
        command("to-folder", tmp_path / "foreign.pth", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()

    command("to-folder", trained_pth, tmp_path / "folder")
    stored = json.loads((tmp_path / "folder/config.json").read_text())
    stored["model"] |= {key: content["config"]["model"][key], "token": asked}
    stored["training"]["config"]["run"]["exp_name"] = asked
    (tmp_path / "folder/config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="not filled in from the file of others"):
        SALMONN.from_pretrained(tmp_path / "folder")
    command("to-pth", tmp_path / "folder", tmp_path / "back.pth")
    assert b"sk_planted" not in (tmp_path / "back.pth").read_bytes()
    assert checkpoint.read(tmp_path / "back.pth")["config"]["model"]["token"] == ""


@pytest.mark.parametrize("wrong", [[], "text", 3, {"run": []}, {"model": "x"}, {"datasets": 1.5}])
def test_a_checkpoint_whose_configuration_is_something_else_is_told(command, trained_pth, tmp_path, wrong):
    content = torch.load(trained_pth, weights_only=True)
    for key in ("config", "progress"):
        if key == "progress" and isinstance(wrong, dict):
            continue
        torch.save(content | {key: wrong}, tmp_path / "odd.pth")
        for arguments in (["inspect"], ["to-folder"]):
            with pytest.raises(UserError, match=rf"odd\.pth is damaged, .*: {key}.* must be a dictionary"):
                command(*arguments, tmp_path / "odd.pth", *([tmp_path / "x"] if arguments == ["to-folder"] else []))
