"""Structure of the model: published names and sizes, frozen parts, windows, LoRA, settings that vary."""

import copy
import json
import logging
import shutil
import warnings

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from salmonn import SALMONN
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.config.schema import RunConfig
from salmonn.model.beats import PUBLISHED_SIZES, load_beats
from salmonn.model.lora import lora_layers
from salmonn.model.qformer import split_windows, window_frames
from salmonn.model.random_model import VICUNA_7B, VICUNA_13B, WHISPER_LARGE, random_llm, random_model
from tests.fixtures.golden import golden_config, golden_sample
from tests.fixtures.paths import GOLDEN
from util.benchmarks.sizes import build, make_batch

FULL = json.loads((GOLDEN / "full_size_keys.json").read_text())


@pytest.mark.parametrize(("size", "llm"), [("13b", VICUNA_13B), ("7b", VICUNA_7B)])
def test_full_size_names_and_shapes_are_the_published(size, llm):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "base/llama")
    with torch.device("meta"):
        model = random_model(model_config({}), random_llm(llm), WHISPER_LARGE, PUBLISHED_SIZES, tokenizer)
    shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert shapes == FULL[f"salmonn_{size}"]
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        == FULL["num_trainable_parameters"][f"salmonn_{size}"]
    )


def test_windows_follow_pythons_rounding_and_drop_the_incomplete_tail():
    assert (window_frames(0.333333), window_frames(0.666666)) == (17, 33)
    frames = torch.arange(1500.0)[None, :, None].expand(2, -1, 3)
    windows = split_windows(frames, 17, 17)
    assert windows.shape == (2 * 88, 17, 3)
    assert windows[1, :, 0].tolist() == list(range(17, 34))
    assert split_windows(frames, 33, 17).shape == (2 * 87, 33, 3)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"num_speech_query_token": 3}, 3 * 88),
        ({"second_per_window": 0.666666}, 87),
        ({"window_level_Qformer": False, "num_speech_query_token": 4}, 4),
    ],
)
def test_audio_tokens_follow_queries_windows_and_strides(changes, tokens):
    model = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "ckpt": "", **changes}).eval()
    embeds, atts = model.encode_speech(torch.randn(2, 20_000))
    assert embeds.shape == (2, tokens, 48)
    assert atts.shape == (2, tokens)


def test_frozen_parts_stay_in_eval_mode_when_the_model_trains(golden):
    model = golden("base").model
    model.train()
    frozen = [m for part in (model.speech_encoder, model.beats) for m in part.modules()]
    assert not any(m.training for m in frozen)
    dropouts = [m for name, m in model.llama_model.named_modules() if "lora_dropout.default" in name]
    assert dropouts
    assert all(m.training for m in dropouts)
    assert model.speech_Qformer.training
    model.eval()
    assert not any(m.training for m in model.modules())


def test_training_changes_only_what_is_trainable(golden):
    model = golden("base").model
    model.zero_grad(set_to_none=True)
    model(golden_sample(golden("base"), 0))["loss"].backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def test_freezing_switches_take_parts_out_of_training():
    config = {
        **OmegaConf.to_container(golden_config("base")),
        "freeze_speech_QFormer": True,
        "freeze_speech_llama_proj": True,
        "freeze_whisper": False,
        "ckpt": "",
    }
    model = SALMONN.from_config(config).train()
    trainable = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"ln_speech", "ln_audio", "speech_encoder", "llama_model"}
    assert model.speech_encoder.training
    assert not model.speech_Qformer.training


def test_lora_scaling_is_exact_and_needs_no_reloading(golden):
    case = golden("base")
    sample = golden_sample(case, 0)
    reloaded = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "lora_alpha": 16}).eval()
    plain = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "lora": False, "ckpt": ""}).eval()
    plain.load_state_dict({k: v for k, v in case.model.state_dict().items() if not k.startswith("llama")}, strict=False)
    assert case.model.lora_scaling == 4.0
    try:
        case.model.lora_scaling = 2.0
        with torch.no_grad():
            assert torch.equal(case.model(sample)["loss"], reloaded(sample)["loss"])
            case.model.lora_scaling = 0.0
            torch.testing.assert_close(case.model(sample)["loss"], plain(sample)["loss"])
    finally:
        case.model.lora_scaling = 4.0
    with pytest.raises(UserError, match="no LoRA"):
        plain.lora_scaling = 1.0


@pytest.mark.parametrize("scaling", [0.0, 1.0, 2.0, 3.3])
def test_a_configured_scaling_equals_loading_with_the_alpha_that_gives_it(golden, scaling):
    case, base = golden("base"), OmegaConf.to_container(golden_config("base"))
    scaled = SALMONN.from_config({**base, "lora_scaling": scaling}).eval()
    reloaded = SALMONN.from_config({**base, "lora_alpha": scaling * 8}).eval()
    assert scaled.lora_scaling == scaling
    for i in range(3):
        with torch.no_grad():
            losses = [model(golden_sample(case, i))["loss"] for model in (scaled, reloaded)]
        assert torch.equal(*losses)


def test_recomputed_activations_give_the_same_gradients():
    sample = {"raw_wav": torch.randn(2, 20_000), "text": ["a red dog", "rain"], "task": ["asr"] * 2, "prompts": None}
    config = {**OmegaConf.to_container(golden_config("base")), "prompt_path": "", "lora_dropout": 0.3}
    gradients, calls = [], []
    for recompute in (False, True):
        model = SALMONN.from_config({**config, "gradient_checkpointing": recompute}).train()
        block = next(module for module in model.llama_model.modules() if hasattr(module, "self_attn"))
        count = []
        block.self_attn.register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(0)
        model(sample)["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        calls.append(len(count))
    assert calls == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-9)
    model.eval()
    count.clear()
    with torch.no_grad():
        model(sample)
    assert len(count) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_frozen_encoders_may_be_in_half_precision_what_is_trained_may_not(golden, dtype):
    case = golden("base")
    config = {**OmegaConf.to_container(golden_config("base")), "encoder_dtype": dtype}
    model = SALMONN.from_config(config).eval()
    half = getattr(torch, dtype)
    frozen = [*model.speech_encoder.parameters(), *model.beats.parameters()]
    assert all(p.dtype == half for p in frozen)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    sample = golden_sample(case, 0)
    model(sample)["loss"].backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        precise, rough = (m.encode_speech(sample["raw_wav"])[0] for m in (case.model, model))
    assert 0 < (precise - rough).norm() / precise.norm() < (0.02 if dtype == "bfloat16" else 0.002)
    unfrozen = SALMONN.from_config({**config, "freeze_whisper": False, "ckpt": ""})
    assert unfrozen.speech_encoder.dtype == torch.float32
    assert unfrozen.beats.dtype == half


def test_autocast_leaves_frozen_encoders_in_half_precision_as_they_are(golden):
    case = golden("base")
    model = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "encoder_dtype": "bfloat16"}).eval()
    clips = model._clean_audio(golden_sample(case, 0)["raw_wav"], None)
    with torch.no_grad():
        alone = model.run_encoders(*clips)
        with torch.autocast("cpu", torch.bfloat16):
            under = model.run_encoders(*clips)
    assert under.speech.dtype == under.audio.dtype == torch.bfloat16
    assert torch.equal(alone.speech, under.speech)
    assert torch.equal(alone.audio, under.audio)


@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_encoders_that_are_rounded_once_say_what_they_say_where_autocast_rounds_them_each_time(golden, amp_dtype):
    case, section = golden("base"), OmegaConf.to_container(golden_config("base"))
    model = SALMONN.from_config(section).eval()
    clips = model._clean_audio(golden_sample(case, 0)["raw_wav"], None)
    run = OmegaConf.structured(RunConfig(amp=True, amp_dtype=amp_dtype))

    def heard():
        with torch.no_grad(), autocast(run, model.device):
            return model.run_encoders(*clips)

    def weight_bytes():
        return sum(
            p.numel() * p.element_size() for part in (model.speech_encoder, model.beats) for p in part.parameters()
        )

    before, size = heard(), weight_bytes()
    plain = model.run_encoders(*clips).speech
    model.hold_encoders_rounded(OmegaConf.structured(RunConfig(amp=False)))
    assert torch.equal(model.run_encoders(*clips).speech, plain)  # nothing is rounded without autocast
    model.hold_encoders_rounded(run)
    after = heard()
    assert before.speech.dtype == after.speech.dtype
    assert torch.equal(before.speech, after.speech)
    assert torch.equal(before.audio, after.audio)
    assert weight_bytes() < 0.8 * size
    trained = SALMONN.from_config({**section, "freeze_whisper": False, "freeze_beats": False})
    trained.hold_encoders_rounded(run)
    assert {p.dtype for p in trained.speech_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in trained.beats.parameters()} == {torch.float32}


def test_adapters_take_half_precision_as_it_is_under_autocast_and_make_the_same_of_it(monkeypatch):
    model = build("mini", torch.device("cpu"), "bfloat16").eval()
    samples, seen = make_batch(model, 2), []
    adapter = lora_layers(model.llama_model)[0].lora_A["default"]
    adapter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))

    def loss():
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            result = model(samples)["loss"]
        result.backward()
        return result, adapter.weight.grad.clone()

    found = loss()
    monkeypatch.setattr("salmonn.model.salmonn.set_adapter_precision", lambda _: None)
    for layer in lora_layers(model.llama_model):
        layer.cast_input_dtype_enabled = True
    expected = loss()
    assert seen == [torch.bfloat16, torch.float32]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_pass_does_not_look_for_its_adapters_among_all_modules(monkeypatch):
    model = build("mini", torch.device("cpu"))
    samples, walks = make_batch(model, 1), []
    modules = type(model.llama_model).modules
    monkeypatch.setattr(type(model.llama_model), "modules", lambda self: walks.append(1) or modules(self))
    model(samples)
    model.answer_embeds(model.encode_speech(samples["raw_wav"])[0], samples["prompts"], {"max_new_tokens": 2})
    assert model.lora_scaling > 0
    assert walks == []
    copied = copy.deepcopy(model)
    copied.lora_scaling = 0.5
    assert copied.lora_scaling == lora_layers(copied.llama_model)[0].scaling["default"] == 0.5
    assert model.lora_scaling != 0.5


def test_after_training_under_autocast_answers_may_come_without_it():
    model = build("mini", torch.device("cpu"), "bfloat16").eval()
    samples = make_batch(model, 1)
    with torch.autocast("cpu", torch.bfloat16):
        model(samples)["loss"].backward()
    assert len(model.generate(samples, {"max_new_tokens": 3, "num_beams": 1})) == 1
    assert model(samples)["loss"].isfinite()


def test_attention_is_sdpa_but_for_the_q_former_whose_one_query_asks_the_raw_frames(golden, monkeypatch):
    case, seen = golden("base"), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        seen.append(query.shape[1])
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        case.model(golden_sample(case, 0))
    config = case.model.llama_model.config
    layers = case.model.speech_encoder.config.encoder_layers, len(case.model.beats.encoder.layers)
    assert case.model.config.num_speech_query_token == 1
    assert len(seen) == sum(layers) + config.num_hidden_layers


def test_a_given_spectrogram_replaces_the_computed_one(golden):
    case = golden("base")
    sample = golden_sample(case, 0)
    spectrogram = case.model.log_mel(sample["raw_wav"])
    with torch.no_grad():
        ours, given = case.model(sample)["loss"], case.model({**sample, "spectrogram": spectrogram})["loss"]
        other = case.model({**sample, "spectrogram": torch.zeros_like(spectrogram)})["loss"]
    assert torch.equal(ours, given)
    assert not torch.equal(ours, other)


def test_targets_that_lose_their_end_to_max_txt_len_are_counted(golden):
    case = golden("base")
    assert [case.model(golden_sample(case, i), verbose=True)["cut"].item() for i in range(4)] == [0, 1, 0, 1]


def test_prompts_are_chosen_from_the_pool_of_each_task(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"asr": ["<SpeechHere> write"], "QA": ["<SpeechHere> {}"]}))
    config = {**OmegaConf.to_container(golden_config("base")), "prompt_path": str(path), "test_prompt_path": str(path)}
    model = SALMONN.from_config(config).eval()
    samples = {"raw_wav": torch.randn(2, 16_000), "task": ["asr", "QA"], "Q": ["", "why?"], "text": ["a", "b"]}
    assert model.choose_prompts(samples) == [
        "USER: <SpeechHere> write\nASSISTANT:",
        "USER: <SpeechHere> why?\nASSISTANT:",
    ]
    chosen = {**samples, "prompts": model.choose_prompts(samples)}
    with torch.no_grad():
        assert torch.equal(model(samples)["loss"], model(chosen)["loss"])
    assert model.generate(samples, {"max_new_tokens": 3}) == model.generate(chosen, {"max_new_tokens": 3})


@pytest.mark.parametrize("quantization", ["8bit", "nf4", "int8"])
def test_a_quantised_llm_trains(quantization):
    config = {**OmegaConf.to_container(golden_config("base")), "llm_quantization": quantization}
    model = SALMONN.from_config(config).train()
    loss = model(
        {"raw_wav": torch.randn(1, 16_000), "text": ["hello"], "task": ["asr"], "prompts": ["<SpeechHere> x"]}
    )["loss"]
    loss.backward()
    gradient = dict(model.named_parameters())["speech_llama_proj.weight"].grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"end_sym": "<nope>"}, "model.end_sym"),
        ({"lora_target_modules": ["nope_proj"]}, "model.lora_target_modules"),
        ({"whisper_path": str(GOLDEN)}, "model.whisper_path"),
        ({"llama_path": str(GOLDEN)}, "model.llama_path"),
        ({"beats_path": str(GOLDEN / "base/salmonn.pth")}, "not a BEATs checkpoint"),
        ({"ckpt": str(GOLDEN / "base/beats.pt")}, "is not a SALMONN checkpoint: it holds .* other tensors"),
        ({"ckpt": str(GOLDEN / "no_beats/salmonn.pth")}, "missing: ln_audio.weight"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, what):
    with pytest.raises(UserError, match=what):
        SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), **changes})


def test_a_beats_file_of_another_size_is_refused(tmp_path):
    content = torch.load(GOLDEN / "base/beats.pt", weights_only=True)
    content["cfg"]["encoder_layers"] = 3
    torch.save(content, tmp_path / "beats.pt")
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.2"):
        load_beats(tmp_path / "beats.pt")


def without_one_weight(source, target, name):
    """Copy a model folder, leaving out the first weight whose name ends like `name`."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    del weights[next(key for key in weights if key.endswith(name))]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "key", "name"),
    [
        ("llama", "llama_path", "layers.1.self_attn.v_proj.weight"),
        ("whisper", "whisper_path", "encoder.layers.1.fc1.weight"),
    ],
)
def test_a_folder_that_lacks_a_weight_is_refused(tmp_path, part, key, name):
    """The library would leave it at random values with no more than a warning."""
    without_one_weight(GOLDEN / "base" / part, tmp_path / part, name)
    with pytest.raises(UserError, match=f"model.{key}.*lacks 1 weights"):
        SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), key: str(tmp_path / part)})


def test_a_checkpoint_of_a_frozen_encoder_starts_a_run_that_trains_it(caplog):
    config = {**OmegaConf.to_container(golden_config("base")), "freeze_whisper": False}
    with caplog.at_level("INFO"):
        model = SALMONN.from_config(config)
    assert "no speech_encoder weights" in caplog.text
    assert any(p.requires_grad for p in model.speech_encoder.parameters())


def test_generation_without_any_prompt_is_refused(golden):
    with pytest.raises(UserError, match="needs prompts"):
        golden("base").model.generate({"raw_wav": torch.zeros(1, 16_000)})
    with pytest.raises(UserError, match="2 prompts for 1 clips"):
        golden("base").model.generate({"raw_wav": torch.zeros(1, 16_000)}, prompts=["<SpeechHere>"] * 2)


def test_windows_longer_than_what_whisper_hears_are_refused():
    config = {**OmegaConf.to_container(golden_config("base")), "second_per_window": 31.0}
    with pytest.raises(UserError, match="second_per_window"):
        SALMONN.from_config(config)


def test_of_the_small_talk_of_peft_exactly_what_helps_nobody_is_left_out(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        SALMONN.from_config(golden_config("base"))
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    for message in ("Failed to load CPU gemm_4bit_forward from kernels-community: no kernels", "this one is news"):
        logger.handle(logger.makeRecord(logger.name, logging.WARNING, "", 0, message, (), None))
    assert [r.msg for r in caplog.records if r.levelno >= logging.WARNING] == ["this one is news"]
