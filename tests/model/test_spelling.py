"""`model.spelled_tokens`: the LLM reads what the connector spells, in its own words."""

from contextlib import nullcontext

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.inference.engine import InferenceEngine, Question, join_encoded
from salmonn.inference.long_audio import Span
from salmonn.model import checkpoint
from salmonn.model.alignment import Aligner
from salmonn.model.attention_maps import encode_with_attention, windows_of_tokens
from salmonn.model.hearing import require_same_hearing
from salmonn.model.meta_model import build_meta_model
from salmonn.model.sound_tokens import sound_tokens
from tests.fixtures.checkpoints import save_checkpoint as save
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import samples_of, write_llm
from util.attention_picture import look
from util.conversion.fit import read_fitting

PROMPT = "USER: <Speech><SpeechHere></Speech> What is said?\nASSISTANT:"


def save_checkpoint(path, model):
    """As a run writes it: with the `model` section."""
    save(path, model, config={"model": OmegaConf.to_container(model.config)})


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A `model` section whose stage 0 is done."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("spelling")
    llm = write_llm(folder / "llm", "llama3.2")
    windows = {
        "second_per_window": 0.04,
        "second_stride": 0.04,
        "lora": True,
        "lora_dropout": 0.0,
        "only_filled_windows": True,
    }
    of_all = {**OmegaConf.to_container(golden_config("base")), **llm, **windows, "ckpt": ""}
    aligner = Aligner.from_config(of_all)
    torch.nn.init.normal_(aligner.ctc_blank, std=0.3)
    save_checkpoint(folder / "stage0.pth", aligner)
    return OmegaConf.create({**of_all, "spelled_tokens": True, "ckpt": str(folder / "stage0.pth")})


@pytest.fixture(scope="module")
def model(section):
    """Stage 1 as it begins."""
    return SALMONN.from_config(section).eval()


def test_a_run_becomes_one_expected_word_and_blanks_nothing(model):
    blank, words = torch.eye(6, model.ctc_blank.numel()).split([1, 5])
    other = SALMONN.from_config(model.config)
    with torch.no_grad():
        other.ctc_blank.copy_(blank[0])
        other.embedding_norm.fill_(1.0)
        embeddings = other.llama_model.get_input_embeddings().weight
        embeddings.fill_(-100.0)  # all other words are like nothing
        embeddings[:5] = words
        sure = 100 * torch.cat([blank, words[[2, 2]], blank, words[[2, 4]], blank])
        torch.testing.assert_close(other.spelled([sure])[0], words[[2, 2, 4]])
        unsure = torch.stack([2 * words[3] + words[1], 2 * words[3] + 1.5 * words[1]])  # one run
        shares = other.log_probs(unsure, words)[:, :-1].exp()
        expected = (shares / shares.sum(dim=1, keepdim=True)) @ words
        torch.testing.assert_close(other.spelled([sure, unsure])[1], expected.mean(dim=0, keepdim=True))
        (silence,) = other.spelled([torch.cat([100 * blank, 6 * blank + 4 * words[1:2]])])
    torch.testing.assert_close(silence, words[1:2], atol=1e-5, rtol=0)  # never without a token: the least blank one


def test_words_that_the_llm_s_precision_cannot_tell_apart_are_told_apart(model):
    other = SALMONN.from_config(model.config)
    other.llama_model.to(torch.bfloat16)
    with torch.no_grad():
        other.embedding_norm.fill_(1.0)
        embeddings = other.llama_model.get_input_embeddings().weight
        embeddings.fill_(-100.0)
        embeddings[:2, 0] = 256.0
        embeddings[:2, 1:] = 0.0
        embeddings[1, 1] = 0.5  # 256.5 in all: in bfloat16 the same
        heard = torch.zeros(1, embeddings.shape[1])
        heard[0, :2] = 1.0
        said = other.spelled([100 * heard])[0]
    torch.testing.assert_close(said, embeddings[1:2].float())


def test_a_clip_is_spelled_as_alone_and_everything_trained_learns(model):
    samples = samples_of(model, [0, 1])
    with torch.no_grad():
        together = model.encode_clips(samples["raw_wav"], samples["padding_mask"])
        for i, clip in enumerate(together):
            alone = samples_of(model, [i])
            torch.testing.assert_close(model.encode_clips(alone["raw_wav"], alone["padding_mask"])[0], clip)
    most = model.n_audio_tokens((~samples["padding_mask"]).sum(dim=1).tolist())
    assert all(1 <= len(clip) <= n for clip, n in zip(together, most, strict=True))
    model.zero_grad()
    model(samples)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # DDP would wait for it
    frozen = [n for n, p in checkpoint.own_parameters(model).items() if not p.requires_grad]
    assert {"ctc_blank", "ctc_log_scale", "ln_speech.weight", "speech_query_tokens", "speech_llama_proj.bias"} <= {
        *frozen
    }
    assert not model.train().connector.speech_Qformer.training  # no dropout: training reads what a test will
    model.eval()


def test_sound_tokens_stand_in_front_of_the_words(model, section, tmp_path):
    torch.manual_seed(1)
    hearing = SALMONN.from_config(OmegaConf.merge(section, {"sound_seconds": 0.5})).eval()
    samples = samples_of(model, [0, 1])
    n_samples = (~samples["padding_mask"]).sum(dim=1).tolist()
    n_sounds = [max(1, round(n / 16000 / 0.5)) for n in n_samples]
    with torch.no_grad():
        both = hearing.encode_clips(samples["raw_wav"], samples["padding_mask"])
        words = model.encode_clips(samples["raw_wav"], samples["padding_mask"])
        for clip, spelled, n in zip(both, words, n_sounds, strict=True):
            torch.testing.assert_close(clip[n:], spelled)
            assert len(clip) == n + len(spelled)
            # of the size of the LLM's own embeddings before anything is trained, and not all the same
            assert 0 < clip[:n].norm(dim=1).max() < 2 * hearing.embedding_norm
        alone = samples_of(model, [1])
        torch.testing.assert_close(hearing.encode_clips(alone["raw_wav"], alone["padding_mask"])[0], both[1])
    assert all(len(clip) <= n for clip, n in zip(both, hearing.n_audio_tokens(n_samples), strict=True))
    hearing(samples)["loss"].backward()
    assert hearing.sound_proj.weight.grad.any()
    save_checkpoint(tmp_path / "sound.pth", hearing)
    again = SALMONN.from_config(OmegaConf.merge(hearing.config, {"ckpt": str(tmp_path / "sound.pth")}))
    assert torch.equal(again.sound_proj.weight, hearing.sound_proj.weight)
    with pytest.raises(UserError, match=r"sound_seconds: 0\.5 in the file, null here[\s\S]*sound_seconds=0\.5"):
        SALMONN.from_config(OmegaConf.merge(section, {"ckpt": str(tmp_path / "sound.pth")}))


def test_a_sound_token_is_the_mean_of_its_stretch():
    clips = [torch.arange(100.0)[:, None].expand(-1, 3), torch.ones(4, 3)]
    projection = torch.nn.Linear(3, 3)
    torch.nn.init.eye_(projection.weight)
    torch.nn.init.zeros_(projection.bias)
    long, short = sound_tokens(clips, 0.66, projection)  # 33 frames
    torch.testing.assert_close(long[:, 0], torch.tensor([16.5, 50.0, 83.0]))  # 34, 33 and 33 frames
    torch.testing.assert_close(short, torch.ones(1, 3))


def test_it_answers(model):
    samples = samples_of(model, [0, 1])
    together = model.generate(samples, {"num_beams": 2, "max_new_tokens": 5}, [PROMPT, PROMPT])
    alone = [model.generate(samples_of(model, [i]), {"num_beams": 2, "max_new_tokens": 5}, [PROMPT])[0] for i in (0, 1)]
    assert together == alone


def test_ctc_has_a_say_in_transcripts_alone(model, monkeypatch):
    ids, words = [7, 7, 9], model.llama_model.get_input_embeddings().weight
    with torch.no_grad():
        spelling = 1000 * torch.stack([words[7], model.ctc_blank, words[7], words[9], model.ctc_blank])
        embeds = model.encode_clips(samples_of(model, [0])["raw_wav"])
    monkeypatch.setattr(model, "test_prompts", {"asr": PROMPT})
    other = PROMPT.replace("said", "heard")

    def answers(weight, n_beams):
        how = {"num_beams": n_beams, "max_new_tokens": 8, "ctc_weight": weight}
        details = model.answer_embeds(2 * embeds, [PROMPT, other], how, 2 * [spelling])
        return [detail["token_ids"] for detail in details]

    with torch.no_grad():
        log_probs = model.log_probs(spelling, model.words(torch.arange(model.vocabulary_size)))
        torch.testing.assert_close(model.all_log_probs([spelling[:2], spelling[2:]])[1], log_probs[2:])
    for n_beams in (1, 3):
        without, joint = answers(0.0, n_beams), answers(1000.0, n_beams)
        assert joint[0] == [*ids, model.end_id] != without[0]  # random weights: the LLM alone says anything
        assert joint[1] == without[1]


def test_a_shortest_length_is_kept_beyond_what_ctc_holds_possible(model, monkeypatch):
    monkeypatch.setattr(model, "test_prompts", {"asr": PROMPT})
    samples = samples_of(model, [0])
    embeds, spelling = model.encode_and_spell(samples["raw_wav"], samples["padding_mask"])
    for n_beams in (1, 4):
        how = {"num_beams": n_beams, "max_new_tokens": 9, "min_length": 8, "ctc_weight": 0.3, "repetition_penalty": 1.1}
        [detail] = model.answer_embeds(embeds, [PROMPT], how, [spelling[0][:3]])
        assert len(detail["token_ids"]) >= 7


def test_what_was_heard_is_kept_with_what_spells_it(model):
    engine = InferenceEngine(model, load_config("configs/mini/decode.yaml", ["run.device=cpu"]))
    wav = samples_of(model, [0])["raw_wav"][0].numpy()
    heard = engine.hear([wav, wav[:20000]])
    parts = [engine.hear_windows([(Span(0, 1), wav)]), engine.hear_windows([(Span(1, 2), wav[:20000])])]
    for clips in (heard, join_encoded(parts)):
        assert [len(clip) for clip in clips.spelling] == [len(clip) for clip in heard.spelling]
        torch.testing.assert_close(model.spelled(clips.spelling), clips.embeds)


@pytest.mark.parametrize("sound_seconds", [None, 0.5])
def test_words_that_are_read_are_drawn_where_they_are_said(section, tmp_path, sound_seconds):
    torch.manual_seed(0)
    hearing = SALMONN.from_config(OmegaConf.merge(section, {"sound_seconds": sound_seconds})).eval()
    wav = samples_of(hearing, [0])["raw_wav"]
    [embeds], weights, spelling = encode_with_attention(hearing, wav)
    windows = windows_of_tokens(hearing, weights.shape[1], spelling)  # [A, W]
    assert windows.shape == (len(embeds), weights.shape[1])
    torch.testing.assert_close(windows.sum(dim=1), torch.ones(len(windows)))
    [words] = hearing.spelled(spelling)
    n_sounds = len(windows) - len(words)
    assert (windows[n_sounds:].argmax(dim=1).diff() > 0).all()  # one after the other
    assert n_sounds == (0 if sound_seconds is None else round(wav.shape[1] / 16000 / sound_seconds))
    if n_sounds:
        assert windows[:n_sounds].sum(dim=0).min() > 0  # no window is without a sound
    soundfile.write(tmp_path / "a.wav", wav[0].numpy(), 16000)
    engine = InferenceEngine(hearing, load_config("configs/mini/decode.yaml", ["run.device=cpu"]))
    found = look(engine, str(tmp_path / "a.wav"), Question(PROMPT))
    np.testing.assert_allclose(found.windows.sum(axis=1), 1, rtol=1e-5)
    assert found.windows.shape[1] == len(found.frames)


def test_stage_0_gives_the_blank_and_the_scale(model, section):
    stage0 = checkpoint.read(section.ckpt)["model"]
    ours = checkpoint.own_parameters(model)
    assert all(torch.equal(ours[name], value) for name, value in stage0.items())
    assert {*checkpoint.CTC_PARAMETERS} <= ours.keys()
    meta = build_meta_model(model_config(section))  # known before the model is loaded
    checkpoint.require_fit(meta, stage0, section.ckpt)


def test_adapters_that_read_something_else_are_refused(model, section, tmp_path):
    save_checkpoint(tmp_path / "spelled.pth", model)
    raw = OmegaConf.merge(section, {"spelled_tokens": False})
    save_checkpoint(tmp_path / "raw.pth", SALMONN.from_config(raw))
    for name, other in (("spelled", raw), ("raw", section)):
        with pytest.raises(UserError) as error:
            SALMONN.from_config(OmegaConf.merge(other, {"ckpt": str(tmp_path / f"{name}.pth")}))
        assert f"model.spelled_tokens: {name == 'spelled'} in the file" in str(error.value)
        assert f"--options model.spelled_tokens={name == 'spelled'}" in str(error.value)
    parameters = checkpoint.read(tmp_path / "raw.pth")["model"]  # of a file that does not tell
    with pytest.raises(UserError, match="missing: ctc_blank"):
        checkpoint.take_parameters(model, parameters, "x.pth")
    content = {"config": {"model": {"spelled_tokens": False}}, "model": checkpoint.read(section.ckpt)["model"]}
    require_same_hearing(model_config(section), content, "stage0.pth")  # which nobody reads
    for objective, is_read in (("ctc", False), ("answer", True)):  # a stage that is still to be run
        content = {"config": {"model": {"spelled_tokens": False}, "run": {"objective": objective}}}
        with pytest.raises(UserError, match=r"model\.spelled_tokens: False") if is_read else nullcontext():
            require_same_hearing(model_config(section), content, "before.pth")


def test_it_is_saved_and_converted_whole(model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    again = SALMONN.from_pretrained(tmp_path / "folder").eval()
    samples = samples_of(model, [0])
    with torch.no_grad():
        assert torch.equal(again(samples)["loss"], model(samples)["loss"])
    save_checkpoint(tmp_path / "spelled.pth", model)
    source, read = read_fitting(tmp_path / "spelled.pth", None)
    assert read.spelled_tokens
    assert {*checkpoint.CTC_PARAMETERS} <= source.parameters.keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["model.ckpt="], "needs a connector that spells: model.ckpt"),
        (["model.window_level_Qformer=False"], "no order in one window"),
        (["run.ctc_weight=0.3"], "the LLM is not given what CTC wants"),
        (["model.only_filled_windows=False"], "needs model.only_filled_windows = True"),
        (["model.freeze_whisper=False"], "needs model.freeze_whisper = True"),
        (["model.spelled_tokens=False", "model.sound_seconds=1"], "sound_seconds = 1 needs model.spelled_tokens"),
    ],
)
def test_what_cannot_be_read_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        load_config("configs/mini/stage1.yaml", ["model.spelled_tokens=True", "model.ckpt=stage0.pth", *options])


def test_a_model_that_does_not_spell_has_no_ctc_to_ask(section):
    raw = SALMONN.from_config(OmegaConf.merge(section, {"spelled_tokens": False}))
    with pytest.raises(UserError, match=r"generate\.ctc_weight > 0"):
        raw.generate(samples_of(raw, [0]), {"ctc_weight": 0.3}, [PROMPT])
    with pytest.raises(UserError, match=r"generate\.ctc_weight > 0 needs model\.spelled_tokens = True"):
        load_config("configs/mini/decode.yaml", ["generate.ctc_weight=0.3"])
