"""Hearing less than Whisper's 30 s (model.max_seconds), and audio tokens for the clip alone (only_filled_windows)."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.config.schema import RunConfig
from salmonn.model.encoder_cache import EncoderCache, fingerprint, open_cache
from salmonn.model.meta_model import build_meta_model, heard_seconds
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import samples_of
from tests.model.test_batch_invariance import make_batch

SECONDS, FILLED = {"max_seconds": 4.0}, {"only_filled_windows": True}
QUIET = {**FILLED, "whisper_silence": 1.0}


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def give(**settings) -> SALMONN:
        key = str(settings)
        if key not in loaded:
            loaded[key] = SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), **settings}).eval()
        return loaded[key]

    return give


def test_a_shorter_window_gives_fewer_audio_tokens_and_hears_the_same_positions(load):
    whole, short = load(), load(**SECONDS)
    assert short.max_seconds == 4.0
    wav = 0.1 * torch.randn(1, 6 * 16_000)
    with torch.no_grad():
        embeds, mask = short.encode_speech(wav)
        assert embeds.shape[1] == mask.sum() == (200 - 17) // 17 + 1
        assert torch.equal(short.encode_speech(wav[:, : 4 * 16_000])[0], embeds)  # what is over 4 s is not heard
    positions = [model.speech_encoder.embed_positions.weight for model in (whole, short)]
    assert torch.equal(positions[0][:200], positions[1])
    assert not positions[1].requires_grad


def test_settings_weights_and_meta_model_agree_on_what_is_heard():
    config = model_config({**OmegaConf.to_container(golden_config("base")), **SECONDS})
    assert heard_seconds(config) == 4.0
    meta = build_meta_model(config)
    assert meta.max_seconds == 4.0
    names = {name: value.shape for name, value in meta.state_dict().items()}
    assert names == {name: value.shape for name, value in SALMONN.from_config(config).state_dict().items()}


def test_a_part_of_an_encoder_frame_is_not_heard(load):
    model = load(max_seconds=4.013)
    assert model.max_seconds == 4.0
    with torch.no_grad():
        assert len(model.encode_clips(torch.randn(1, 6 * 16_000))[0]) == 11


def test_thirty_seconds_are_whispers_own_window(load):
    assert load(max_seconds=30.0).encode_speech(torch.randn(1, 16_000))[0].shape[1] == 88


def test_windows_behind_the_clip_give_no_audio_tokens(load):
    whole, filled = load(), load(**FILLED)
    batch = make_batch([0, 1, 3])  # 1.0, 2.7 and 7.9 s
    with torch.no_grad():
        clips = filled.encode_clips(batch["raw_wav"], batch["padding_mask"])
        all_windows = whole.encode_clips(batch["raw_wav"], batch["padding_mask"])
        embeds, mask = filled.encode_speech(batch["raw_wav"], batch["padding_mask"])
    assert [len(clip) for clip in clips] == [3, 8, 24] == mask.sum(dim=1).tolist()  # 17 frames of 20 ms each
    assert [len(clip) for clip in all_windows] == [88] * 3
    for clip, every, row in zip(clips, all_windows, embeds, strict=True):
        torch.testing.assert_close(clip, every[: len(clip)], rtol=0, atol=1e-5)
        assert torch.equal(row[: len(clip)], clip)


def test_a_window_of_each_clip_is_that_of_a_model_that_hears_no_more(load):
    """2.7 s and 1 s of silence are heard in 4 s, whoever else is in the batch, and whatever the model hears at most."""
    own, short = load(**QUIET), load(**SECONDS, **FILLED)
    heard, run_layer = [], own.speech_encoder.layers[0].forward
    batch = make_batch([0, 1, 3])  # 1.0, 2.7 and 7.9 s
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        layer = own.speech_encoder.layers[0]
        patch.setattr(
            layer, "forward", lambda x, *rest, **more: heard.append(x.shape[:2]) or run_layer(x, *rest, **more)
        )
        clips = own.encode_clips(batch["raw_wav"], batch["padding_mask"])
    assert sorted(heard) == [(1, 100), (1, 200), (1, 450)]
    with torch.no_grad():
        alone = make_batch([1])
        [expected] = short.encode_clips(alone["raw_wav"], alone["padding_mask"])
    torch.testing.assert_close(clips[1], expected, rtol=0, atol=1e-5)
    assert [len(clip) for clip in clips] == [3, 8, 24]
    # and nothing of the encoder has changed
    assert own.speech_encoder.config.max_source_positions == own.speech_encoder.embed_positions.num_embeddings == 1500
    assert own.state_dict()["speech_encoder.embed_positions.weight"].shape[0] == 1500


def test_what_whisper_hears_behind_a_clip_is_another_entry_of_the_cache(load):
    names = {fingerprint(load(**settings)) for settings in (FILLED, QUIET, {**FILLED, "whisper_silence": 2.0})}
    assert len(names) == 3


@pytest.mark.parametrize("settings", [FILLED, {**SECONDS, **FILLED}, QUIET, {**SECONDS, **QUIET}])
def test_loss_and_answers_are_those_of_a_batch_of_one(load, settings):
    model, search = load(**settings), {"num_beams": 2, "max_new_tokens": 8}
    together = make_batch([0, 1, 2, 3, 4])
    with torch.no_grad():
        losses = model(together, verbose=True)["sample_loss"]
    answers = model.generate(together, search, return_details=True)
    for i in range(5):
        alone = make_batch([i])
        with torch.no_grad():
            torch.testing.assert_close(losses[i], model(alone)["loss"], rtol=0, atol=1e-4)
        assert model.generate(alone, search, return_details=True) == [answers[i]]


def test_the_encoder_cache_keeps_of_whispers_window_only_what_is_heard(load, tmp_path, monkeypatch):
    model, samples = load(**FILLED), make_batch([0, 1, 3])
    with torch.no_grad():
        without = model(samples)["loss"]
    frames_beyond = model.connector.window[0]
    monkeypatch.setattr(model, "encoder_cache", EncoderCache(tmp_path, fingerprint(model), 1e9, 1, frames_beyond))
    with torch.no_grad():
        first, again = model(samples)["loss"], model(samples)["loss"]
        assert torch.equal(without, first)
        assert torch.equal(without, again)
        assert torch.equal(model(make_batch([3]))["loss"], model(make_batch([3]))["loss"])
    sizes = sorted(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert len(sizes) == 3
    assert sizes[0] < 1500 * 4 * model.speech_encoder.config.d_model / 10  # 30 s in float32 would be ten times that


def heard_through_a_cache(model: SALMONN, run: RunConfig, n_samples: int, monkeypatch) -> tuple[int, torch.Tensor]:
    """How many of three clips the encoders hear where a run of so many samples has a cache, and the loss."""
    heard, run_encoders = [], type(model).run_encoders.__get__(model)
    cache = open_cache(OmegaConf.create({"run": run}), model, n_samples)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(model, "encoder_cache", cache)
        patch.setattr(model, "run_encoders", lambda wav, *rest: heard.append(len(wav)) or run_encoders(wav, *rest))
        loss = model(make_batch([0, 1, 3]))["loss"]
    return sum(heard), loss


@pytest.mark.parametrize("sizes", [(1, 10**9), (10**9, 1)], ids=["whole, then clipped", "clipped, then whole"])
def test_a_run_of_another_size_finds_what_the_one_before_has_encoded(load, tmp_path, monkeypatch, sizes):
    model, run = load(**FILLED), RunConfig(encoder_cache=str(tmp_path), encoder_cache_gb=1, amp=False)
    with torch.no_grad():
        without = model(make_batch([0, 1, 3]))["loss"]
    before, after = (heard_through_a_cache(model, run, n, monkeypatch) for n in sizes)
    assert (before[0], after[0]) == (3, 0)
    assert torch.equal(before[1], without)
    assert torch.equal(after[1], without)
    assert len([*tmp_path.rglob("*.safetensors")]) == 3  # none twice


def test_who_uses_all_of_whispers_window_takes_no_clipped_entry(load, tmp_path, monkeypatch):
    run = RunConfig(encoder_cache=str(tmp_path), encoder_cache_gb=1, amp=False)
    assert [heard_through_a_cache(load(**FILLED), run, n, monkeypatch)[0] for n in (10**9, 1)] == [3, 0]
    assert [heard_through_a_cache(load(), run, n, monkeypatch)[0] for n in (1, 1)] == [3, 0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.max_seconds=0"], "at least 1 and at most 30"),
        (["model.max_seconds=31"], "at least 1 and at most 30"),
        (["model.max_seconds=nan"], "at least 1 and at most 30"),
        (["model.only_filled_windows=True", "model.window_level_Qformer=False"], "there are no windows"),
        (["model.whisper_silence=1"], "needs model.only_filled_windows = True"),
        (["model.whisper_silence=1", "model.only_filled_windows=True", "model.freeze_whisper=False"], "freeze_whisper"),
        (["model.whisper_silence=-1", "model.only_filled_windows=True"], "at least 0"),
    ],
)
def test_what_cannot_be_heard_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        load_config(Path("configs/mini/stage1.yaml"), settings)


def test_gradients_reach_the_connector(load):
    model = load(**FILLED)
    model(samples_of(model, [0, 1]))["loss"].backward()
    assert model.speech_llama_proj.weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)
