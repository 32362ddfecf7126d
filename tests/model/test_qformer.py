"""The connector: from what the encoders say to audio tokens, and its place in the model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.model import qformer
from salmonn.model.encoders import EncoderOutputs
from salmonn.model.qformer import Connector, MultiHeadAttention, is_cheaper_by_queries
from tests.fixtures.golden import golden_config

SIZES = {
    "qformer_hidden_size": 16, "qformer_num_layers": 1, "qformer_num_heads": 2, "qformer_intermediate_size": 32,
    "num_speech_query_token": 2,
}  # fmt: skip
WHISPER, BEATS, LLM, FRAMES = 6, 4, 10, 40
PARTS = {"ln_speech", "ln_audio", "speech_Qformer", "speech_llama_proj"}


def make(audio_width: int = BEATS, **changes) -> Connector:
    torch.manual_seed(0)
    return Connector(model_config({**SIZES, **changes}), WHISPER, audio_width, LLM, FRAMES).eval()


def encoded(speech_frames: int = FRAMES, patches: int = FRAMES, valid: int | None = None) -> EncoderOutputs:
    """Two clips; of the second the patches from `valid` on are padding."""
    generator = torch.Generator().manual_seed(1)
    speech, audio = (
        torch.randn(2, n, width, generator=generator) for n, width in ((speech_frames, WHISPER), (patches, BEATS))
    )
    padding = torch.zeros(2, patches, dtype=torch.bool)
    padding[1, patches if valid is None else valid :] = True
    return EncoderOutputs(speech, audio.masked_fill(padding[..., None], 0.0), padding)


@pytest.fixture
def model() -> SALMONN:
    """A model of one's own, which may be changed."""
    return SALMONN.from_config({**OmegaConf.to_container(golden_config("base")), "ckpt": ""}).eval()


def is_shared(model: SALMONN) -> bool:
    """Whether the connector's parts are those that the model registers: the same objects, not equal ones."""
    connector = model.connector
    modules = all(getattr(model, name) is module for name, module in connector.named_children())
    theirs = dict(connector.named_parameters())
    ours = {name: p for name, p in model.named_parameters() if name in theirs}
    return modules and ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in theirs)


# ---- what it computes


def test_audio_tokens_are_what_is_fused_embedded():
    connector, outputs = make(), encoded()
    with torch.no_grad():
        embeds = connector(outputs)
        assert torch.equal(embeds, connector.embed(connector.fuse(outputs)))
    assert embeds.shape == (2, 2 * 2, LLM)  # two windows of 17 frames in 40, two queries each


@pytest.mark.parametrize(("speech_frames", "patches"), [(40, 24), (24, 40), (30, 30)])
def test_the_shorter_encoder_is_padded_with_zeros_in_time(speech_frames: int, patches: int):
    connector, outputs = make(), encoded(speech_frames, patches)
    with torch.no_grad():
        fused = connector.fuse(outputs)
        speech, audio = connector.ln_speech(outputs.speech), connector.ln_audio(outputs.audio)
    assert fused.shape == (2, max(speech_frames, patches), WHISPER + BEATS)
    assert torch.equal(fused[:, :speech_frames, :WHISPER], speech)
    assert torch.equal(fused[:, :patches, WHISPER:], audio)
    assert not fused[:, speech_frames:, :WHISPER].any()
    assert not fused[:, patches:, WHISPER:].any()


def test_padding_stays_zero_behind_a_norm_that_has_a_bias():
    connector, outputs = make(), encoded(valid=25)
    torch.nn.init.ones_(connector.ln_audio.bias)
    with torch.no_grad():
        fused = connector.fuse(outputs)
    assert not fused[1, 25:, WHISPER:].any()
    assert fused[0, 25:, WHISPER:].all(dim=-1).any()


def test_without_beats_speech_alone_is_normalised():
    connector, outputs = make(audio_width=0), encoded()
    assert not hasattr(connector, "ln_audio")
    with torch.no_grad():
        assert torch.equal(connector.fuse(EncoderOutputs(outputs.speech)), connector.ln_speech(outputs.speech))


def test_each_window_is_seen_alone_and_an_incomplete_one_is_dropped():
    connector, outputs = make(), encoded()
    with torch.no_grad():
        features = connector.fuse(outputs)
        whole = connector.embed(features)
        for window in range(2):
            part = features[:, 17 * window : 17 * (window + 1)]
            torch.testing.assert_close(connector.embed(part), whole[:, 2 * window : 2 * window + 2])
        features[:, 34:] = 9.0
        assert torch.equal(connector.embed(features), whole)


def test_one_window_over_the_clip_gives_as_many_tokens_as_queries():
    connector = make(window_level_Qformer=False)
    with torch.no_grad():
        assert connector(encoded()).shape == (2, 2, LLM)
    make(window_level_Qformer=False, second_per_window=30.0)  # its length does not count then
    with pytest.raises(UserError, match=r"model\.second_per_window = 1\.0: 50 frames, but this Whisper hears 40"):
        make(second_per_window=1.0)


def test_outputs_in_half_precision_are_normalised_in_float32():
    connector, outputs = make(), encoded()
    halves = EncoderOutputs(outputs.speech.half(), outputs.audio.half(), outputs.padding)
    with torch.no_grad():
        fused, exact = connector.fuse(halves), connector.fuse(outputs)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, exact, atol=5e-3, rtol=0)


# ---- its place in the model


def test_its_parameters_have_the_published_names_and_are_there_once(model: SALMONN):
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert not [name for name in (*names, *model.state_dict()) if name.startswith("connector")]
    assert {name for name, _ in model.connector.named_parameters()} <= set(names)
    assert {name.partition(".")[0] for name, _ in model.connector.named_parameters()} == PARTS | {"speech_query_tokens"}
    assert {name for name, _ in model.named_children()} >= PARTS
    assert "connector" not in dict(model.named_children())
    assert len(names) == len(set(names))


def test_its_parts_are_the_models_own(model: SALMONN):
    assert is_shared(model)


def test_they_stay_so_in_another_precision(model: SALMONN):
    model.to(torch.float64)
    assert is_shared(model)
    assert {p.dtype for p in model.connector.parameters()} == {torch.float64}


def test_they_stay_so_in_a_copy_which_is_one_of_its_own(model: SALMONN):
    other = copy.deepcopy(model)
    assert is_shared(other)
    assert other.connector is not model.connector
    with torch.no_grad():
        other.speech_query_tokens.add_(1.0)
    assert not torch.equal(other.connector.speech_query_tokens, model.connector.speech_query_tokens)


def test_they_stay_so_when_a_state_is_loaded_and_compute_with_it(model: SALMONN):
    def audio_tokens() -> Tensor:
        with torch.no_grad():
            return model.encode_speech(torch.ones(1, 16_000))[0]

    before = audio_tokens()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["speech_llama_proj.weight"] *= 2.0
    state["speech_query_tokens"] += 1.0
    model.load_state_dict(state)
    assert is_shared(model)
    assert torch.equal(model.connector.speech_query_tokens, state["speech_query_tokens"])
    assert not torch.equal(audio_tokens(), before)


def test_it_is_trained_and_evaluated_with_the_model(model: SALMONN):
    for mode in (True, False):
        model.train(mode)
        assert all(part.training == mode for part in model.connector.children())


# ---- one key


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_with_one_query_self_attention_has_no_gradient_for_queries_and_keys(training, precision, n_layers):
    """Of rounding errors Adam would make whole steps. They have a gradient, 0, as published: their weights decay."""
    connector = make(num_speech_query_token=1, qformer_num_layers=n_layers).train(training)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        connector(encoded()).float().square().sum().backward()
    for layer in connector.speech_Qformer.bert.encoder.layer:
        attention, cross = layer.attention.self, layer.crossattention.self
        for parameter in (*attention.query.parameters(), *attention.key.parameters()):
            assert parameter.grad.count_nonzero() == 0
        assert attention.value.weight.grad.count_nonzero() > 0
        assert cross.query.weight.grad.count_nonzero() > 0


def test_with_several_queries_self_attention_has_gradients():
    connector = make(num_speech_query_token=2)
    connector(encoded()).square().sum().backward()
    assert connector.speech_Qformer.bert.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 1e-9


@pytest.mark.parametrize("training", [False, True])
def test_with_one_key_the_result_is_that_of_the_kernel(training):
    """A window of one frame, too, and the same random numbers are left out."""
    attention = make().speech_Qformer.bert.encoder.layer[0].crossattention.self.train(training)
    x, context = torch.randn(5, 2, 16), torch.randn(5, 1, WHISPER + BEATS)
    torch.manual_seed(3)
    found = attention(x, context)
    sources = ((attention.query, x), (attention.key, context), (attention.value, context))
    q, k, v = (attention._heads(projection, source) for projection, source in sources)
    torch.manual_seed(3)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if training else 0.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("queries", "frames", "heads"), [(1, 17, 2), (2, 17, 1), (1, 2, 1)])
def test_few_queries_get_from_raw_frames_what_keys_and_values_of_each_give(queries, frames, heads, monkeypatch):
    """With the same dropout, and all gradients; weights of frames of another width than the queries'."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, heads, 6).double()
    inputs = [
        torch.randn(5, n, width, dtype=torch.float64, requires_grad=True) for n, width in ((queries, 8), (frames, 6))
    ]
    found = []
    assert is_cheaper_by_queries(queries, frames, heads, hidden=8)
    for cheaper in (True, False):
        monkeypatch.setattr(qformer, "is_cheaper_by_queries", lambda *_, cheaper=cheaper: cheaper)
        torch.manual_seed(1)
        y = attention(*inputs)
        found.append([y, *torch.autograd.grad(y.square().sum(), [*inputs, *attention.parameters()])])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_keys_and_values_of_each_frame_are_made_where_the_queries_are_many():
    assert is_cheaper_by_queries(queries=1, frames=17, heads=12, hidden=768)  # as published
    assert not is_cheaper_by_queries(queries=17, frames=17, heads=12, hidden=768)
    assert not is_cheaper_by_queries(queries=1, frames=1, heads=12, hidden=768)
