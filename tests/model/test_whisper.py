"""Whispers of other sizes, and of half the precision."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor

from salmonn import SALMONN
from salmonn.model import random_model
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import samples_of
from tests.fixtures.paths import GOLDEN


def write_whisper(folder, n_mels: int, width: int, decoder_layers: int) -> str:
    config = WhisperConfig(
        **random_model.whisper_shape(width, 2, 4, 64), num_mel_bins=n_mels,
        decoder_layers=decoder_layers, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    random_model.write_whisper(folder, config, WhisperFeatureExtractor(feature_size=n_mels))
    return str(folder)


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize(("n_mels", "width", "decoder_layers"), [(128, 40, 4), (80, 24, 1)])
def test_a_whisper_of_another_kind_is_heard(tmp_path, beats, n_mels, width, decoder_layers):
    """128 mel bins and a short decoder as in large-v3-turbo, or a small one."""
    changes = {"whisper_path": write_whisper(tmp_path / "whisper", n_mels, width, decoder_layers), "ckpt": ""}
    if not beats:
        changes["beats_path"] = ""
    model = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), **changes}).train()
    samples = samples_of(model, [0, 1])
    spectrogram = model.log_mel(samples["raw_wav"])
    assert spectrogram.shape == (2, n_mels, 3000)
    expected = WhisperFeatureExtractor.from_pretrained(tmp_path / "whisper")(
        samples["raw_wav"][1].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    torch.testing.assert_close(spectrogram[1:], expected, rtol=0, atol=1e-4)
    loss = model(samples)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert model.ln_speech.weight.grad.abs().max() > 0
    model.eval()
    with torch.no_grad():
        together = model.encode_speech(samples["raw_wav"], samples["padding_mask"])[0]
        alone = model.encode_speech(samples_of(model, [0])["raw_wav"])[0]
    assert together.shape == (2, 88, 48)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)


def test_a_whisper_folder_in_half_precision_runs_in_float32(tmp_path):
    shutil.copytree(GOLDEN / "base/whisper", tmp_path / "whisper")
    weights = load_file(GOLDEN / "base/whisper/model.safetensors")
    half = {k: v.half() for k, v in weights.items()}
    save_file(half, tmp_path / "whisper/model.safetensors", metadata={"format": "pt"})
    config = {**OmegaConf.to_container(golden_config("base")), "whisper_path": str(tmp_path / "whisper")}
    model = SALMONN.from_config(config)
    assert {p.dtype for p in model.speech_encoder.parameters()} == {torch.float32}
