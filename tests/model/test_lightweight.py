"""Other LLMs than Vicuna, less precision: the families of tests/fixtures/lightweight.py, tiny and random."""

import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.model import llm as llm_module
from salmonn.model.generation import BeamsLayer
from salmonn.model.llm import CAUSAL_SDPA
from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.meta_model import build_meta_model
from salmonn.model.prompts import split_prompt
from salmonn.model.random_model import shrink_llm
from tests.fixtures.checkpoints import write_weights_without_values
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import FAMILIES, samples_of, write_llm

GREEDY = {"num_beams": 1, "max_new_tokens": 12}
CHAT = {
    "llama3.2": "<|start_header_id|>system<|end_header_id|>\n\nListen.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma2": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "qwen2.5": FAMILIES["qwen2.5"].prompt_template,
}


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """Maker of the `model` section of a family: its tiny LLM with the golden Whisper and BEATs."""
    folder, made = tmp_path_factory.mktemp("llms"), {}

    def make(name: str, **changes) -> dict:
        if name not in made:
            torch.manual_seed(0)
            made[name] = write_llm(folder / name, name)
        return {**OmegaConf.to_container(golden_config("base")), "ckpt": "", **made[name], **changes}

    return make


@pytest.fixture(scope="module")
def build(section):
    """Loader of a family's model, each once, with adapters that change what the LLM says."""
    loaded = {}

    def load(name: str) -> SALMONN:
        if name not in loaded:
            torch.manual_seed(1)
            loaded[name] = SALMONN.from_config(section(name)).eval()
            for parameter_name, parameter in loaded[name].named_parameters():
                if "lora_B" in parameter_name:  # zero as it begins
                    torch.nn.init.normal_(parameter.data, std=0.05)
        return loaded[name]

    return load


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_that_of_the_llms_own_forward_with_labels(build, name):
    model = build(name)
    samples = samples_of(model, [1])
    before, after = split_prompt(samples["prompts"][0])
    tokenizer, llm = model.tokenizer, model.llama_model
    bos = tokenizer.bos_token or ""
    prefix, suffix, target = (
        tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        for text in (bos + before, after, samples["text"][0] + FAMILIES[name].end_sym)
    )
    with torch.no_grad():
        audio = model.encode_speech(samples["raw_wav"], samples["padding_mask"])[0]
        words = llm.get_input_embeddings()
        embeds = torch.cat([words(prefix), audio, words(suffix), words(target)], dim=1)
        labels = F.pad(target, (embeds.shape[1] - target.shape[1], 0), value=-100)
        expected = llm(inputs_embeds=embeds, labels=labels).loss
        torch.testing.assert_close(model(samples)["loss"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_moves_every_trainable_parameter(section, name):
    model = SALMONN.from_config(section(name)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):  # lora_A has a gradient once lora_B is not zero any more
        optimiser.zero_grad()
        loss = model(samples_of(model, [0, 1]))["loss"]
        loss.backward()
        optimiser.step()
    assert torch.isfinite(loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in gradients) == 2 * 2 * 2  # A and B of q and v in two layers
    for parameter_name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), parameter_name
        one_query = "attention.self.query" in parameter_name or "attention.self.key" in parameter_name
        assert gradient.abs().max() > 0 or one_query, parameter_name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_what_it_is_alone(build, name):
    """Left padding, sliding windows, rope scaling: none of it may let a neighbour in."""
    model = build(name)
    together = samples_of(model, [0, 1])
    with torch.no_grad():
        losses = model(together, verbose=True)["sample_loss"]
        settings = {**GREEDY, "repetition_penalty": 3.0}  # else a random model says one word only
        answers = model.generate(together, settings, return_details=True)
        assert answers[0]["token_ids"] != answers[1]["token_ids"]
        for row in range(2):
            alone = samples_of(model, [row])
            torch.testing.assert_close(losses[row], model(alone)["loss"], rtol=0, atol=1e-4)
            assert model.generate(alone, settings, return_details=True) == [answers[row]]


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_that_share_their_prompt_find_what_the_library_finds(build, name, monkeypatch):
    """Also with a sliding window that is shorter than the prompt (gemma2), and answers that need more room."""
    monkeypatch.setattr("salmonn.model.generation.ROOM", 4)
    model, settings = build(name), {"num_beams": 3, "max_new_tokens": 10, "min_length": 11}
    llm, rows = model.llama_model.get_base_model(), []
    hook = llm.get_decoder().register_forward_pre_hook(
        lambda _module, _args, inputs: rows.append(inputs["inputs_embeds"]), with_kwargs=True
    )  # fmt: skip
    samples = samples_of(model, [0, 1])
    shared = model.generate(samples, settings, return_details=True)
    hook.remove()
    assert len(rows[0]) == 2  # each prompt is read once, all but its last position
    assert rows[1].shape[:2] == (2 * 3, 1)
    monkeypatch.setattr("salmonn.model.salmonn.prefill", lambda *_: None)
    assert model.generate(samples, settings, return_details=True) == shared


def test_a_further_token_copies_neither_the_others_nor_the_prompts():
    usual = DynamicLayer()
    usual.update(torch.randn(2, 1, 7, 4), torch.randn(2, 1, 7, 4))
    layer = BeamsLayer(usual, 2)
    usual.batch_repeat_interleave(2)
    seen = []
    for _ in range(5):
        new, among_its_row = torch.randn(2, 4, 1, 1, 4), torch.tensor([1, 1, 3, 2])
        assert all(map(torch.equal, layer.update(*new), usual.update(*new)))
        layer.reorder_cache(among_its_row)
        usual.reorder_cache(among_its_row)
        assert torch.equal(layer.keys, usual.keys)
        assert torch.equal(layer.values, usual.values)
        seen.append(layer.keys.data_ptr())
    assert len({*seen}) == 1
    assert layer.get_seq_length() == 12


@pytest.mark.parametrize("name", FAMILIES)
def test_a_learned_sentence_ends_at_end_sym(section, name):
    torch.manual_seed(0)
    model = SALMONN.from_config(section(name, lora_dropout=0.0)).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    samples = samples_of(model, [0])
    for _ in range(40):
        optimiser.zero_grad()
        model(samples)["loss"].backward()
        optimiser.step()
    [answer] = model.eval().generate(samples, GREEDY, return_details=True)
    assert answer["text"] == "a red dog"
    assert answer["finished"]
    assert model.tokenizer.decode(answer["token_ids"]) == f"a red dog{FAMILIES[name].end_sym}"


def first_layer_input(model: SALMONN, **inputs) -> torch.Tensor:
    seen = []
    layer = model._causal_lm().get_decoder().layers[0]
    hook = layer.register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    with torch.no_grad():
        model._causal_lm()(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_reaches_the_first_layer_as_without_audio(build, name):
    """Whether a family scales its embeddings inside or outside of its embedding module, text is scaled once."""
    model = build(name)
    ids = model.tokenizer("the rain falls", add_special_tokens=False, return_tensors="pt").input_ids
    embeds = model.llama_model.get_input_embeddings()(ids)
    torch.testing.assert_close(first_layer_input(model, inputs_embeds=embeds), first_layer_input(model, input_ids=ids))


def test_gemma_scales_its_words_and_not_the_audio(build):
    model, audio = build("gemma2"), torch.randn(1, 5, 64)
    assert torch.equal(first_layer_input(model, inputs_embeds=audio), audio)
    words = model.llama_model.get_input_embeddings()
    torch.testing.assert_close(words(torch.tensor([7])), 8.0 * words.weight[[7]])  # sqrt(64)


@pytest.mark.parametrize("name", CHAT)
def test_special_tokens_of_a_chat_template_are_single_tokens(section, name):
    model = SALMONN.from_config(section(name, prompt_template=CHAT[name])).eval()
    samples, tokenizer = samples_of(model, [0]), model.tokenizer
    pieces = [tokenizer.tokenize(half) for half in split_prompt(samples["prompts"][0])]
    specials = set(tokenizer.get_added_vocab()) - {tokenizer.bos_token}
    used = [token for token in specials if token in CHAT[name]]
    assert len(used) >= 2
    for token in used:
        assert sum(piece.count(token) for piece in pieces) == CHAT[name].count(token)
    assert model.generate(samples, {**GREEDY, "max_new_tokens": 2})
    assert torch.isfinite(model(samples)["loss"])


def test_a_template_that_begins_with_bos_is_refused_since_it_would_come_twice(section):
    with pytest.raises(UserError, match=r"model.prompt_template begins with '<\|begin_of_text\|>'"):
        build_meta_model(model_config(section("llama3.2", prompt_template="<|begin_of_text|>{}")))


@pytest.mark.parametrize("template", ["user\n{}<|im_end|>\n<|im_start|>assistant\n", "a<|im_start|>{}"])
def test_a_turn_further_on_may_begin_with_bos(section, tmp_path, template):
    """SmolLM2's BOS begins every turn of its chat."""
    folder = tmp_path / "llm"
    shutil.copytree(section("qwen2.5")["llama_path"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|im_start|>"}))
    model = SALMONN.from_config(section("qwen2.5", llama_path=str(folder), prompt_template=template)).eval()
    bos, samples = model.tokenizer.bos_token_id, samples_of(model, [0, 1])
    laid_out = build_llm_inputs(model.tokenizer, [3, 3], samples["prompts"], [[], []])
    assert [row.tolist().count(bos) for row in laid_out.token_ids] == [2, 2]
    assert laid_out.token_ids[:, 0].tolist() == [bos, bos]
    assert torch.isfinite(model(samples)["loss"])
    with pytest.raises(UserError, match="begins with"):
        build_meta_model(model_config({**model.config, "prompt_template": f"<|im_start|>{template}"}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_llm_attends_as_the_key_says_with_the_same_result(section, name):
    losses, used = {}, {}
    if name == "gemma2":  # which caps its scores, in eager attention alone
        for load in (build_meta_model, SALMONN.from_config):
            with pytest.raises(UserError, match=r"^model.llm_attention = sdpa, but Gemma2ForCausalLM .*=auto$"):
                load(model_config(section(name, llm_attention="sdpa")))
    for how in ("auto", "eager") if name == "gemma2" else ("auto", "sdpa", "eager"):
        keys = section(name, llm_attention=how)  # which draws the LLM, the first time
        torch.manual_seed(1)
        model = SALMONN.from_config(keys).eval()
        used[how] = model.llama_model.config._attn_implementation
        samples = samples_of(model, [0, 1])
        losses[how] = model(samples)["loss"]
        losses[how].backward()
        assert build_meta_model(model.config).llama_model.config._attn_implementation == used[how]
    assert all(used[how] == how for how in used if how != "auto")
    torch.testing.assert_close(losses["eager"], losses["auto"])


def test_left_to_itself_the_llm_attends_by_plain_matrices_in_short_rows_of_bfloat16_on_a_cpu(build, monkeypatch):
    """There SDPA's backward pass takes longer; a sample's float32 loss stays that of any batch."""
    monkeypatch.setattr(llm_module, "_SHORT", 1000)
    model, used = build("llama3.2"), []
    samples, decoder = samples_of(model, [0, 1]), model._causal_lm().get_decoder()
    hook = decoder.register_forward_pre_hook(lambda module, _: used.append(module.config._attn_implementation))

    def attends(dtype: torch.dtype = torch.bfloat16, grad: bool = True, **keys: object) -> tuple[str, torch.Tensor]:
        before = {key: model.config[key] for key in keys}
        model.config.update(keys)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), torch.set_grad_enabled(grad):
            loss = model(samples)["loss"].detach()
        model.config.update(before)
        assert decoder.config._attn_implementation == "sdpa"
        return used[-1], loss

    eager, loss = attends()
    assert eager == "eager"
    sdpa, other_loss = attends(llm_attention="sdpa")
    torch.testing.assert_close(loss, other_loss, rtol=0.01, atol=0)
    assert sdpa == CAUSAL_SDPA
    assert attends(gradient_checkpointing=True)[0] == CAUSAL_SDPA  # made again later, when the setting is back
    assert attends(torch.float32)[0] == attends(grad=False)[0] == CAUSAL_SDPA
    monkeypatch.setattr(llm_module, "_SHORT", 3)
    assert attends()[0] == CAUSAL_SDPA
    hook.remove()


@pytest.mark.parametrize(("name", "end_sym"), [("llama3.2", "</s>"), ("qwen2.5", "<eos>"), ("gemma2", "<|im_end|>")])
def test_the_end_symbol_of_another_family_is_refused_and_the_right_one_told(section, name, end_sym):
    right = re.escape(FAMILIES[name].end_sym)
    with pytest.raises(UserError, match=rf"model\.end_sym = .* is not a token of .*; write model\.end_sym: '{right}' "):
        build_meta_model(model_config(section(name, end_sym=end_sym)))


def test_an_end_symbol_that_merges_with_the_text_is_refused(section, build):
    """In the vocabulary, but never seen behind a text: such a model would not stop."""
    assert {"t", "at"} < build("gemma2").tokenizer.get_vocab().keys()
    with pytest.raises(UserError, match=r"model\.end_sym = 't' is not a token"):
        build_meta_model(model_config(section("gemma2", end_sym="t")))


def test_an_end_symbol_that_is_no_special_token_is_not_part_of_the_text(build):
    """Gemma has `</s>` as an ordinary token."""
    from salmonn.model.generation import answer

    tokenizer = build("gemma2").tokenizer
    ids = tokenizer("a red dog</s>", add_special_tokens=False).input_ids
    assert ids[-1] == tokenizer.get_vocab()["</s>"] not in tokenizer.all_special_ids
    found = answer([*ids, 0, 0], tokenizer, ids[-1])
    assert found == {"text": "a red dog", "token_ids": ids, "finished": True}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_meta_model_has_the_real_models_names_and_shapes(section, build, name):
    meta_model = build_meta_model(model_config(section(name)))
    shapes = [{key: p.shape for key, p in model.named_parameters()} for model in (meta_model, build(name))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("quantization", ["8bit", "nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_quantised_llms_run_and_train(section, name, quantization):
    model = SALMONN.from_config(section(name, llm_quantization=quantization)).train()
    samples = samples_of(model, [0, 1])
    loss = model(samples)["loss"]
    loss.backward()
    gradients = [p.grad for key, p in model.named_parameters() if "lora_B" in key]
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    meta_model = build_meta_model(model_config(section(name, llm_quantization=quantization)))
    trainable = [{k: p.shape for k, p in m.named_parameters() if p.requires_grad} for m in (meta_model, model)]
    assert trainable[0] == trainable[1]
    assert len(model.eval().generate(samples, GREEDY)) == 2


# ---- already quantised


def say_quantised(source, target, **how):
    """Copy an LLM's folder and let its config.json say that it is quantised."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": how}))


@pytest.mark.parametrize("load", [build_meta_model, SALMONN.from_config])
@pytest.mark.parametrize(("method", "packages"), [("gptq", "optimum gptqmodel"), ("awq", "gptqmodel")])
def test_a_quantised_checkpoint_without_its_library_names_the_command(
    section, tmp_path, monkeypatch, load, method, packages
):
    source = section("llama3.2")["llama_path"]
    say_quantised(source, tmp_path / "llm", quant_method=method, bits=4, group_size=32)
    monkeypatch.setattr("salmonn.model.llm.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"is quantised by {method}, which needs: pip install {packages}$"):
        load(model_config(section("llama3.2", llama_path=str(tmp_path / "llm"))))


@pytest.mark.parametrize("load", [build_meta_model, SALMONN.from_config])
@pytest.mark.parametrize(
    ("changes", "key"),
    [({"llm_quantization": "nf4"}, "llm_quantization = nf4"), ({"low_resource": True}, "low_resource = True")],
)
def test_quantising_twice_is_refused_naming_both(section, tmp_path, load, changes, key):
    say_quantised(section("llama3.2")["llama_path"], tmp_path / "llm", quant_method="gptq", bits=4)
    with pytest.raises(UserError, match=f"model.{key}, but model.llama_path = .*quant_method gptq"):
        load(model_config(section("llama3.2", llama_path=str(tmp_path / "llm"), **changes)))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_checkpoint_gets_kernels_that_have_gradients(section, tmp_path, monkeypatch, method):
    say_quantised(section("llama3.2")["llama_path"], tmp_path / "llm", quant_method=method, bits=4)
    asked = {}

    def from_pretrained(_path, **kwargs):
        asked.update(kwargs)
        raise OSError("read no further")

    monkeypatch.setattr("salmonn.model.llm.find_spec", lambda _: "installed")
    monkeypatch.setattr("salmonn.model.llm.AutoModelForCausalLM.from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="read no further"):
        SALMONN.from_config(section("llama3.2", llama_path=str(tmp_path / "llm")))
    assert asked["config"].quantization_config["backend"] == "auto_trainable"
    assert "quantization_config" not in asked  # ours would win over the checkpoint's
    assert asked["device_map"] == {"": torch.device("cpu")}


def test_a_checkpoint_quantised_by_bitsandbytes_loads_as_it_is(section, tmp_path):
    """The one method whose library is always there: what was written from nf4 answers as the nf4 model."""
    quantised = SALMONN.from_config(section("qwen3", llm_quantization="nf4", lora=False)).eval()
    quantised.llama_model.save_pretrained(tmp_path / "llm")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{section('qwen3')['llama_path']}/{file}", tmp_path / "llm")
    stored = section("qwen3", llama_path=str(tmp_path / "llm"), lora=False)
    loaded = SALMONN.from_config(stored).eval()
    loaded.load_state_dict({k: v for k, v in quantised.state_dict().items() if not k.startswith("llama")}, strict=False)
    samples = samples_of(loaded, [0, 1])
    with torch.no_grad():
        torch.testing.assert_close(loaded(samples)["loss"], quantised(samples)["loss"])
    assert "quantization_config" not in shrink_llm(AutoConfig.from_pretrained(tmp_path / "llm")).to_dict()


# ---- the two setups of the hackathon


SETUPS = {"llama3.2-3b": "llama3.2", "gemma2-2b-nf4": "gemma2"}


def setup_options(section, name: str) -> list[str]:
    parts = section(SETUPS[name])
    tiny = [f"model.{key}={parts[key]}" for key in ("llama_path", "whisper_path", "beats_path")]
    return [*tiny, "model.qformer_hidden_size=48", "model.qformer_num_heads=4", "run.device=cpu"]


@pytest.mark.parametrize("name", SETUPS)
def test_a_setup_of_the_hackathon_trains_and_answers(section, name):
    config = load_config(f"configs/lightweight/{name}.yaml", setup_options(section, name))
    assert config.model.end_sym == FAMILIES[SETUPS[name]].end_sym
    model = SALMONN.from_config(config.model).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.speech_encoder.dtype == model.beats.dtype == torch.bfloat16
    assert model.llama_model.get_input_embeddings().weight.dtype == torch.bfloat16
    packed = {type(m).__name__ for key, m in model.llama_model.named_modules() if key.endswith("k_proj")}
    assert packed == ({"Linear4bit"} if name.endswith("nf4") else {"Linear"})
    samples = {**samples_of(model, [0, 1]), "prompts": None}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(samples)["loss"]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(model.eval().generate(samples, {**GREEDY, "max_new_tokens": 3})) == 2
    meta_model = build_meta_model(config.model)
    trainable = [{k: p.shape for k, p in m.named_parameters() if p.requires_grad} for m in (meta_model, model)]
    assert trainable[0] == trainable[1]


@pytest.mark.parametrize(
    ("name", "hidden", "query", "value", "layers"),
    [("llama3.2-3b", 3072, 3072, 1024, 28), ("gemma2-2b-nf4", 2304, 2048, 1024, 26)],
)
def test_a_setup_has_the_published_sizes(section, tmp_path, name, hidden, query, value, layers):
    """From config files alone: projection into the LLM's width, LoRA on projections of unequal width."""
    family = FAMILIES[SETUPS[name]]
    shutil.copytree(section(SETUPS[name])["llama_path"], tmp_path / "llm")
    n_tokens = AutoConfig.from_pretrained(tmp_path / "llm").vocab_size
    config = family.config(**{**family.published, "vocab_size": n_tokens})
    config.save_pretrained(tmp_path / "llm")
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    write_weights_without_values(tmp_path / "llm/model.safetensors", llm.state_dict())
    options = [*setup_options(section, name), f"model.llama_path={tmp_path}/llm"]
    meta_model = build_meta_model(load_config(f"configs/lightweight/{name}.yaml", options).model)
    shapes = {key: tuple(p.shape) for key, p in meta_model.named_parameters() if p.requires_grad}
    assert shapes["speech_llama_proj.weight"] == (hidden, 48)
    lora = {key.split("self_attn.")[1]: shape for key, shape in shapes.items() if "lora_" in key}
    assert lora == {
        "q_proj.lora_A.default.weight": (8, hidden),
        "q_proj.lora_B.default.weight": (query, 8),
        "v_proj.lora_A.default.weight": (8, hidden),
        "v_proj.lora_B.default.weight": (value, 8),
    }
    assert sum("lora_" in key for key in shapes) == 4 * layers


def test_setups_keep_their_runs_and_results_apart():
    configs = [load_config(f"configs/lightweight/{name}.yaml") for name in SETUPS]
    assert len({(config.run.output_dir, config.run.exp_name) for config in configs}) == 2
    assert len({config.evaluate.results_dir for config in configs}) == 2
