"""Where the model looks: weights that are those of the model's own forward pass, at the places of the audio."""

import sys

import numpy as np
import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.common.letters import show_letters
from salmonn.config.loading import load_config
from salmonn.inference.engine import InferenceEngine
from salmonn.model.attention_maps import (
    answer_attention,
    eager_attention,
    encode_with_attention,
    loudest_heads,
    split_words,
)
from salmonn.model.llm_input import build_llm_inputs, tokenize
from salmonn.model.qformer import MultiHeadAttention
from tests.fixtures.golden import golden_sample
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from util import plot_attention
from util.attention_picture import Attention, draw, look


def test_the_weights_times_the_values_are_what_the_qformer_goes_on_with():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, 5).eval()
    x, context = torch.randn(3, 2, 8), torch.randn(3, 7, 5)  # [W, Q, D], [W, K, C]
    weights = attention.weights(x, context)
    values = attention.value(context).unflatten(-1, (2, 4)).transpose(1, 2)  # [W, H, K, D / H]
    assert weights.shape == (3, 2, 2, 7)
    torch.testing.assert_close((weights @ values).transpose(1, 2).flatten(2), attention(x, context))


@pytest.mark.parametrize("case", ["base", "no_beats"])
def test_every_window_shares_its_attention_among_its_frames(golden, case):
    case = golden(case)
    wav = golden_sample(case, 0)["raw_wav"]
    embeds, weights, spelling = encode_with_attention(case.model, wav)
    assert spelling == []
    with torch.no_grad():
        torch.testing.assert_close(embeds, case.model.encode_speech(wav)[0])
    n_queries = case.model.config.num_speech_query_token
    assert weights.shape == (case.model.config.qformer_num_layers, embeds.shape[1] // n_queries, n_queries, 17)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert (weights >= 0).all()
    assert not case.model.speech_Qformer.bert.encoder.layer[0].crossattention.self._forward_hooks


def test_the_attention_of_an_answer_is_that_to_the_audios_columns_from_the_token_before(golden):
    case = golden("base")
    sample = golden_sample(case, 0)
    with torch.no_grad():
        embeds, _ = case.model.encode_speech(sample["raw_wav"])
    [prompt], ids = sample["prompts"], tokenize(case.model.tokenizer, sample["text"])[0]
    found = answer_attention(case.model, embeds, prompt, ids)

    before, after = prompt.split("<SpeechHere>")
    before, after = tokenize(case.model.tokenizer, [before, after])
    first = 1 + len(before)  # behind BOS
    end = first + embeds.shape[1] + len(after)
    embed = case.model.llama_model.get_input_embeddings()
    text = [embed(torch.tensor([part])) for part in ([case.model.tokenizer.bos_token_id, *before], [*after, *ids])]
    llm = case.model._causal_lm()
    with eager_attention(llm), torch.no_grad():
        output = llm(inputs_embeds=torch.cat([text[0], embeds, text[1]], dim=1), output_attentions=True)
    expected = torch.stack(output.attentions)[:, 0]  # [layers, heads, L, L]
    torch.testing.assert_close(expected.sum(dim=-1), torch.ones(expected.shape[:-1]))
    expected = expected[:, :, end - 1 : end - 1 + len(ids), first : first + embeds.shape[1]]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)


def test_the_plain_attention_gives_the_usual_logits_and_is_put_away_again(golden):
    case = golden("base")
    sample = golden_sample(case, 0)
    model, llm = case.model, case.model._causal_lm()
    with torch.no_grad():
        embeds, _ = model.encode_speech(sample["raw_wav"])
        llm_inputs = build_llm_inputs(
            model.tokenizer,
            [embeds.shape[1]] * len(embeds),
            sample["prompts"],
            tokenize(model.tokenizer, sample["text"]),
        )
        inputs = model._embed(llm_inputs, embeds)
        usual, name = llm(inputs_embeds=inputs).logits, llm.config._attn_implementation
        with eager_attention(llm):
            assert llm.config._attn_implementation == "eager"
            torch.testing.assert_close(llm(inputs_embeds=inputs).logits, usual, rtol=0, atol=1e-4)
    assert llm.config._attn_implementation == name == "sdpa"


def test_the_heads_that_attend_most_to_the_audio_are_averaged():
    weights = torch.zeros(2, 2, 1, 3)
    weights[0, 1], weights[1, 0], weights[1, 1] = 0.3, 0.2, 0.1
    assert loudest_heads(weights, 0.5).tolist() == [[pytest.approx(0.25)] * 3]
    assert loudest_heads(weights, 0.01).tolist() == [[pytest.approx(0.3)] * 3]


def test_an_answer_is_split_at_its_spaces_whatever_its_tokens_are(golden):
    tokenizer = golden("base").model.tokenizer
    ids = [*tokenize(tokenizer, ["a caption, café"])[0], tokenizer.eos_token_id]
    words = split_words(tokenizer, ids)
    assert [word for word, _ in words] == ["a", "caption,", "café"]
    assert [place for _, places in words for place in places] == list(range(len(ids) - 1))
    assert split_words(tokenizer, [tokenizer.eos_token_id]) == []


class Pieces:
    """A tokenizer whose tokens are these bytes; the last one is special."""

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.all_special_ids = [len(pieces)]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:  # noqa: ARG002
        text = b"".join(self.pieces[i] for i in ids if i not in self.all_special_ids)
        return text.decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["你好", "世界", "。"], ["你好", "世界", "。"]),
        (["雨", b"\xe3\x81", b"\x8c", "降る"], ["雨", "が", "降る"]),  # が in two tokens
        ([b"\xe4", b"\xbd", b"\xa0", b"\xe5", b"\xa5", b"\xbd"], ["你", "好"]),
        (["배", "는", " 파란", "색"], ["배는", "파란색"]),  # Korean has spaces
        (["a", " d", "og", " 狗", "叫", " runs"], ["a", "dog", "狗", "叫", "runs"]),
        (["GPU", "很", "快"], ["GPU", "很", "快"]),
        (["สวัสดี", "ครับ"], ["สวัสดี", "ครับ"]),
        (["caf", b"\xc3", b"\xa9", " noir"], ["café", "noir"]),
        (["half", b"\xe4"], ["half\ufffd"]),
    ],
)
def test_scripts_without_spaces_have_a_row_for_each_token(pieces, words):
    tokenizer, n = Pieces(*pieces), len(pieces)
    found = split_words(tokenizer, [*range(n), n])
    assert [word for word, _ in found] == words
    assert [place for _, places in found for place in places] == list(range(n))


def test_the_picture_has_every_weight_over_its_seconds():
    frames, windows = np.full((6, 17), 1 / 17), np.eye(2, 6)
    attention = Attention(
        seconds=1.1, log_mel=np.zeros((80, 200)), log_mel_seconds=2.04, window=0.34, stride=0.34,
        frames=frames, words=["a", "dog"], windows=windows, band_hertz=np.linspace(0, 8000, 80),
    )  # fmt: skip
    figure = draw(attention, "title")
    figure.draw_without_rendering()
    mel, inside, words = figure.axes[:3]
    [cells] = words.collections
    assert cells.get_array().tolist() == windows.tolist()
    assert cells.get_coordinates()[0, :, 0].tolist() == pytest.approx([0.34 * i for i in range(7)])
    assert [label.get_text() for label in words.get_yticklabels()] == ["a", "dog"]
    assert words.yaxis_inverted()
    assert mel.get_ylabel() == "Hz"
    assert {panel.get_xlim() for panel in (mel, inside, words)} == {(0, 1.1)}
    assert "0% behind" in words.get_title("left")
    late = Attention(**{**vars(attention), "windows": np.eye(2, 6, k=3)})  # the second word's begins at 1.36 s
    assert "50% behind" in draw(late, "").axes[2].get_title("left")


@pytest.mark.parametrize("title", ["雨の音が聞こえますか" * 8, "a.wav: " + " U+96E8" * 60, "What do you hear? " * 12])
def test_a_long_title_stays_in_the_picture(title, monkeypatch):
    monkeypatch.setattr("salmonn.common.letters._fonts_here", tuple)  # none that has more letters than matplotlib's
    attention = Attention(
        seconds=1.0, log_mel=np.zeros((80, 100)), log_mel_seconds=1.0, window=0.5, stride=0.5, frames=np.ones((2, 2)),
        words=["a"], windows=np.ones((1, 2)), band_hertz=np.linspace(0, 8000, 80),
    )  # fmt: skip
    figure = draw(attention, title)
    show_letters(figure)
    figure.draw_without_rendering()
    assert 0 <= figure._suptitle.get_window_extent().x0 < figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


@pytest.fixture(scope="module")
def listener(mini_world, tmp_path_factory) -> InferenceEngine:
    options = [o for o in mini_options(mini_world, tmp_path_factory.mktemp("out")) if not o.startswith("datasets.")]
    options += ["model.ckpt=", "generate.max_new_tokens=12", "generate.num_beams=1", "model.second_stride=0.1"]
    torch.manual_seed(0)
    return InferenceEngine.load(load_config(ROOT / "configs/mini/decode.yaml", options))


def test_the_command_draws_the_answer_that_it_prints(listener, mini_world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(InferenceEngine, "load", lambda *_: listener)
    monkeypatch.setattr(plot_attention, "setup_logging", lambda: None)
    clip = next((mini_world / "audio/speech").glob("test_*.wav"))
    out = tmp_path / "new/attention.png"
    monkeypatch.setattr(listener.model, "answer_embeds", lambda *_: [{"token_ids": [300, 301, 2]}])
    config = str(ROOT / "configs/mini/decode.yaml")
    arguments = ["--cfg-path", config, "--audio", str(clip), "--task", "asr", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["plot_attention.py", *arguments])
    plot_attention.main()
    words = split_words(listener.model.tokenizer, [300, 301, 2])
    assert capsys.readouterr().out == f"{' '.join(word for word, _ in words)}\n{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_file_is_named_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(InferenceEngine, "load", lambda *_: pytest.fail("the model is loaded"))
    config = str(ROOT / "configs/mini/decode.yaml")
    monkeypatch.setattr(
        sys, "argv", ["plot_attention.py", "--cfg-path", config, "--audio", "nowhere.wav", "--task", "asr"]
    )
    with pytest.raises(UserError, match=r"^nowhere\.wav: file does not exist$"):
        plot_attention.main()


def test_a_question_without_a_task_is_refused_for_it_would_not_be_asked(monkeypatch):
    words = ["plot_attention.py", "--audio", "nowhere.wav", "--prompt", "Who speaks?", "--question", "What colour?"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UserError, match="--question fills the prompt of --task"):
        plot_attention.main()


@pytest.mark.parametrize("is_amp", [False, True], ids=["plain", "autocast"])
def test_overlapping_windows_and_rows_that_sum_to_one(listener, mini_world, monkeypatch, is_amp):
    clip = str(next((mini_world / "audio/speech").glob("test_*.wav")))
    monkeypatch.setattr(listener.model, "answer_embeds", lambda *_: [{"token_ids": [300, 301, 302]}])
    with torch.autocast("cpu", torch.bfloat16, enabled=is_amp):
        found = look(listener, clip, listener.task_question("asr"))
    assert (found.stride, found.window) == (0.1, 0.34)
    np.testing.assert_allclose(found.windows.sum(axis=1), 1, rtol=1e-5)
    assert len(found.frames) == found.windows.shape[1] == 1 + (250 - 17) // 5


def test_an_answer_without_a_word_and_a_file_that_cannot_be_heard_are_told(listener, mini_world, monkeypatch):
    clip = str(next((mini_world / "audio/speech").glob("test_*.wav")))
    monkeypatch.setattr(listener.model, "answer_embeds", lambda *_: [{"token_ids": [2]}])
    with pytest.raises(UserError, match="nothing to draw"):
        look(listener, clip, listener.task_question("asr"))
    with pytest.raises(UserError, match=r"nowhere\.wav: file does not exist"):
        look(listener, "nowhere.wav", listener.task_question("asr"))
