"""A sample's result is that of a batch of one, whatever else the batch holds."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.fixtures.golden import CASES

# task, prompt, text, seconds: other lengths, prompts and tasks in one batch
SAMPLES = [
    ("asr", "USER: <Speech><SpeechHere></Speech> Write it down.\nASSISTANT:", "the weather is warm", 1.0),
    ("QA", "USER: <Speech><SpeechHere></Speech> How many people talk in this long recording?\nASSISTANT:", "two", 2.7),
    ("audiocaption", "USER: <Speech><SpeechHere></Speech> Describe.\nASSISTANT:", "a bell rings " * 6, 0.4),
    ("asr", "USER: Now <Speech><SpeechHere></Speech>\nASSISTANT:", "x", 7.9),
    ("asr", "USER: <Speech><SpeechHere></Speech> Please transcribe.\nASSISTANT:", "fourteen songs were sung", 3.33),
]


def make_batch(rows: list[int]) -> dict:
    wavs = []
    for i in rows:
        generator = torch.Generator().manual_seed(i)
        wavs.append(0.1 * torch.randn(int(16_000 * SAMPLES[i][3]), generator=generator))
    raw_wav = pad_sequence(wavs, batch_first=True)
    mask = torch.arange(raw_wav.shape[1])[None] >= torch.tensor([len(w) for w in wavs])[:, None]
    return {
        "raw_wav": raw_wav.masked_fill(mask, 0.5),  # what stands in the padding must not matter
        "padding_mask": mask,
        "text": [SAMPLES[i][2] for i in rows],
        "task": [SAMPLES[i][0] for i in rows],
        "prompts": [SAMPLES[i][1] for i in rows],
    }


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_loss_are_those_of_a_batch_of_one(golden, name):
    model = golden(name).model
    together = make_batch([0, 1, 2, 3, 4])
    with torch.no_grad():
        embeds = model.encode_speech(together["raw_wav"], together["padding_mask"])[0]
        losses = model(together, verbose=True)["sample_loss"]
        for i in range(5):
            alone = make_batch([i])
            torch.testing.assert_close(
                embeds[i], model.encode_speech(alone["raw_wav"], alone["padding_mask"])[0][0], rtol=0, atol=1e-4
            )
            torch.testing.assert_close(losses[i], model(alone)["loss"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_generated_ids_are_those_of_a_batch_of_one(golden, name, num_beams):
    model, settings = golden(name).model, {"num_beams": num_beams, "max_new_tokens": 12}
    together = model.generate(make_batch([0, 1, 2, 3, 4]), settings, return_details=True)
    for i in range(5):
        assert model.generate(make_batch([i]), settings, return_details=True) == [together[i]]


def test_loss_of_a_batch_is_the_mean_over_its_target_tokens(golden):
    model = golden("base").model
    with torch.no_grad():
        out = model(make_batch([0, 1, 2, 3, 4]), verbose=True)
    weighted = (out["sample_loss"] * out["sample_total"]).sum() / out["sample_total"].sum()
    torch.testing.assert_close(out["loss"], weighted)
    assert out["total"].item() == out["sample_total"].sum().item()


def test_each_row_ends_by_itself(golden):
    """The published stopping rule ends the batch with its first finished row."""
    model = golden("base").model
    details = model.generate(make_batch([0, 1, 2, 3, 4]), {"num_beams": 1, "max_new_tokens": 30}, return_details=True)
    lengths = {len(d["token_ids"]) for d in details}
    assert len(lengths) > 1
    for detail in details:
        assert detail["finished"] == (detail["token_ids"][-1] == model.end_id)
        assert detail["finished"] or len(detail["token_ids"]) == 30


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.5}, {"min_length": 9}])
def test_penalties_and_minimum_lengths_do_not_depend_on_the_batch(golden, settings):
    model, settings = golden("base").model, {"num_beams": 1, "max_new_tokens": 12, **settings}
    together = model.generate(make_batch([0, 1, 2, 3, 4]), settings, return_details=True)
    for i in range(5):
        assert model.generate(make_batch([i]), settings, return_details=True) == [together[i]]


def test_the_minimum_length_counts_bos_as_published(golden):
    model = golden("base").model
    for minimum in (1, 5, 9):
        settings = {"num_beams": 1, "max_new_tokens": 12, "min_length": minimum}
        lengths = [len(d["token_ids"]) for d in model.generate(make_batch([0, 1, 3]), settings, return_details=True)]
        assert min(lengths) >= minimum
    assert max(lengths) > 1


def test_the_repetition_penalty_changes_the_answer(golden):
    model = golden("base").model
    plain, punished = (
        model.generate(make_batch([3]), {"num_beams": 1, "max_new_tokens": 20, "repetition_penalty": p})
        for p in (1.0, 5.0)
    )
    assert plain != punished


def test_decoding_settings_of_the_llm_folder_do_not_leak_in(golden):
    model = golden("base").model
    settings = {"num_beams": 1, "max_new_tokens": 8}
    before = model.generate(make_batch([0]), settings, return_details=True)
    assert model._causal_lm().generation_config.to_diff_dict().keys() <= {"transformers_version", "_from_model_config"}
    assert before == model.generate(make_batch([0]), settings, return_details=True)


def test_beats_gives_clip_by_clip_what_it_gives_at_once(golden, monkeypatch):
    encoder = golden("base").model.beats.encoder
    x, padding = torch.randn(3, 40, encoder.layer_norm.normalized_shape[0]), torch.zeros(3, 40, dtype=torch.bool)
    padding[1, 24:] = padding[2, 8:] = True
    x = x.masked_fill(padding[..., None], 0.0)
    with torch.no_grad():
        at_once = encoder(x, padding)
        monkeypatch.setattr("salmonn.model.beats.WIDE", 0)
        by_clip = encoder(x, padding)
        assert encoder(x[2:], padding[2:]).shape == x[2:].shape  # as long as the batch, also where no clip is
    torch.testing.assert_close(by_clip[~padding], at_once[~padding], rtol=1e-4, atol=1e-4)
