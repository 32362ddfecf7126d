"""The LLM's tokenizer: never one made of nothing, and LLaMA's ids are those of SentencePiece."""

import io
import json
import re
import shutil

import pytest
import sentencepiece
from transformers import AutoTokenizer, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.tokenizer import load_tokenizer
from tests.fixtures.lightweight import write_tokenizer

LINES = [
    "USER: <Speech></Speech> Can you transcribe the speech into a written format?\nASSISTANT:",
    "a red dog runs near the house while the rain falls",
    "  two  spaces, don't speak: it's 25 years!",
    "日本語 und Käse",
]
TEXTS = [
    "a red dog", " a red dog", "  a", "   ", " ", "", "\n", "\nASSISTANT: ", "USER: <Speech>", "</Speech> Can you",
    "</Speech>Can you", "a  b", "a\tb", "日本", " 日本", "🦊 x", "▁a", "a▁b", "▁", " ▁", "a</s>", "a </s>", "  </s>",
    " a red dog</s>", "</s>", "x</s></s> y", "<s>a", "<s> a", "</s>\n", "a<unk>b", "</s", "a.</s>", "2 5</s> 25",
]  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_sentencepiece(folder, adds_space=True):
    """A folder with LLaMA's tokenizer files, tokenizer.model newly trained."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 40), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, add_dummy_prefix=adds_space, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    LlamaConfig(vocab_size=400, pad_token_id=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_sentencepiece(tmp_path_factory.mktemp("sp") / "llama")


def load(folder, **changes):
    return load_tokenizer(model_config({"llama_path": str(folder), **changes}))


def published_ids(folder, text):
    """As the slow tokenizer of the published code: SentencePiece on each piece between special tokens."""
    spoken = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [piece for piece in re.split("(<s>|</s>|<unk>)", text) if piece]
    ids = ([spoken.piece_to_id(piece)] if piece in SPECIAL.values() else spoken.encode(piece) for piece in pieces)
    return [token for piece in ids for token in piece]


def same_ids(tokenizer, folder):
    ids = {text: tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS}
    return ids == {text: published_ids(folder, text) for text in TEXTS}


def test_ids_are_those_of_sentencepiece_for_texts_of_all_shapes(llama):
    assert not same_ids(AutoTokenizer.from_pretrained(llama), llama)  # the library's own, which this is about
    tokenizer = load(llama)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == published_ids(llama, text), text
        assert tokenizer.decode(published_ids(llama, text)) == AutoTokenizer.from_pretrained(llama).decode(
            published_ids(llama, text)
        )


NORMALIZED = {name: {"__type": "AddedToken", "content": token, "normalized": True} for name, token in SPECIAL.items()}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"legacy": True}, LlamaConfig), ({"legacy": False}, LlamaConfig), ({"add_prefix_space": True}, LlamaConfig),
        ({"tokenizer_class": "LlamaTokenizerFast"}, LlamaConfig), (NORMALIZED, LlamaConfig), ({}, MistralConfig),
        ({"pad_token": "<unk>"}, LlamaConfig),
    ],
)  # fmt: skip
def test_ids_do_not_depend_on_what_else_the_folder_says(llama, tmp_path, settings, kind):
    folder = shutil.copytree(llama, tmp_path / "llm")
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**stored, **settings}))
    kind(vocab_size=400).save_pretrained(folder)
    assert same_ids(load(folder), llama)


def test_ids_stay_when_the_tokenizer_is_saved_as_a_tokenizer_json(llama, tmp_path):
    for i, tokenizer in enumerate([load(llama), AutoTokenizer.from_pretrained(llama)]):
        tokenizer.save_pretrained(tmp_path / f"{i}")
        LlamaConfig(vocab_size=400).save_pretrained(tmp_path / f"{i}")
        assert not (tmp_path / f"{i}/tokenizer.model").exists()
        assert same_ids(load(tmp_path / f"{i}"), llama)


def test_a_sentencepiece_model_that_adds_no_space_gets_none(tmp_path):
    folder = write_sentencepiece(tmp_path / "llama", adds_space=False)
    assert same_ids(load(folder), folder)


def test_prompts_and_targets_hold_the_published_ids(llama):
    tokenizer = load(llama)
    prompt = "USER: <Speech><SpeechHere></Speech> Can you\nASSISTANT:"
    target = published_ids(llama, " a red dog</s>")
    inputs = build_llm_inputs(
        tokenizer, [2], [prompt], [tokenizer(" a red dog</s>", add_special_tokens=False).input_ids]
    )
    before, after = (published_ids(llama, half) for half in prompt.split("<SpeechHere>"))
    assert inputs.token_ids[0].tolist() == [1, *before, 0, 0, *after, *target]


# ---- files that are missing


def write_byte_level(folder, kind, config):
    """A tokenizer in its older files: vocab.json and merges.txt."""
    write_tokenizer(folder, kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {str(token["id"]): {**token} for token in content["added_tokens"]}
    settings |= {"tokenizer_class": f"{config.model_type.upper().replace('QWEN', 'Qwen')}Tokenizer"}
    for token in added.values():
        del token["id"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": added}))


KINDS = {
    "llama": (LlamaConfig, "</s>"),
    "llama3": (LlamaConfig, "<|end_of_text|>"),
    "qwen": (Qwen2Config, "<|im_end|>"),
    "gemma": (Gemma2Config, "<eos>"),
    "qwen in older files": (Qwen2Config, "<|im_end|>"),
    "gpt2": (GPT2Config, "<|endoftext|>"),
}


def write_folder(folder, name, llama):
    config, _ = KINDS[name]
    if name == "llama":
        shutil.copytree(llama, folder)
    elif name in ("qwen in older files", "gpt2"):
        write_byte_level(folder, "qwen", config)
        config(vocab_size=350).save_pretrained(folder)  # padded
    else:
        config(vocab_size=write_tokenizer(folder, name)).save_pretrained(folder)
    (folder / "model.safetensors").touch()  # is not read


@pytest.mark.parametrize("name", KINDS)
def test_an_llm_without_a_part_of_its_tokenizer_is_refused_before_weights_are_read(llama, tmp_path, name):
    write_folder(tmp_path / "llm", name, llama)
    section = model_config({"llama_path": str(tmp_path / "llm"), "end_sym": KINDS[name][1]})
    whole = load_tokenizer(section)
    assert len(whole) > 300
    files = {f.name for f in (tmp_path / "llm").iterdir()} - {"config.json", "model.safetensors"}
    needed = files - {"generation_config.json", "special_tokens_map.json"}
    assert len(needed) >= 2
    for file in [*sorted(needed), *(sorted(needed),)]:
        gone = [file] if isinstance(file, str) else file
        broken = shutil.copytree(tmp_path / "llm", tmp_path / f"without {' '.join(gone)}")
        for each in gone:
            (broken / each).unlink()
        with pytest.raises(UserError) as error:
            load_tokenizer(model_config({**section, "llama_path": str(broken)}))
        message = str(error.value)
        assert str(broken) in message
        assert any(each in message for each in gone), message


@pytest.mark.parametrize("name", ["qwen in older files", "gpt2"])
@pytest.mark.parametrize("share", [0, 0.5, 0.8])
def test_merges_that_were_cut_are_refused(llama, tmp_path, name, share):
    write_folder(tmp_path / "llm", name, llama)
    load(tmp_path / "llm", end_sym=KINDS[name][1])
    first, *merges = (tmp_path / "llm/merges.txt").read_text().splitlines()
    (tmp_path / "llm/merges.txt").write_text("\n".join([first, *merges[: int(share * len(merges))]]))
    with pytest.raises(UserError, match=r"merges\.txt leads to \d+ of \d+ tokens of its vocabulary"):
        load(tmp_path / "llm", end_sym=KINDS[name][1])


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["llama3", "qwen", "gemma"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
@pytest.mark.parametrize("ignored", [False, True])  # LLaMA-3: whole words are looked up before merges
def test_merges_of_a_tokenizer_json_that_were_cut_are_refused(llama, tmp_path, name, share, ignored):
    write_folder(tmp_path / "llm", name, llama)

    def cut(content):
        model = content["model"]
        model["merges"] = model["merges"][: int(share * len(model["merges"]))]
        model["ignore_merges"] = ignored

    change_json(tmp_path / "llm/tokenizer.json", cut)
    with pytest.raises(UserError, match=r"merges of tokenizer\.json lead to \d+ of \d+ tokens of its vocabulary"):
        load(tmp_path / "llm", end_sym=KINDS[name][1])


@pytest.mark.parametrize("name", ["llama3", "qwen"])
def test_a_vocabulary_that_was_cut_moves_its_special_tokens_which_is_refused(llama, tmp_path, name):
    write_folder(tmp_path / "llm", name, llama)

    def cut(content):
        model = content["model"]
        special = {token["id"] for token in content["added_tokens"]}
        n = len(model["vocab"]) - len(special) - 10
        model["vocab"] = {token: i for token, i in model["vocab"].items() if i < n}
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]

    change_json(tmp_path / "llm/tokenizer.json", cut)
    with pytest.raises(UserError, match=r"tokenizer\.json says that '<\|.*\|>' is token \d+, and gives it"):
        load(tmp_path / "llm", end_sym=KINDS[name][1])


@pytest.mark.parametrize("settings", [{}, {"model_max_length": 1024}])
def test_a_tokenizer_config_without_special_tokens_that_changes_them_is_told(llama, tmp_path, settings):
    """The library gives LLaMA-3's texts no BOS then; GPT-2's own file names none either, and the library knows."""
    write_folder(tmp_path / "llm", "llama3", llama)
    whole = load(tmp_path / "llm", end_sym="<|end_of_text|>")
    (tmp_path / "llm/tokenizer_config.json").write_text(json.dumps(settings))
    change_json(tmp_path / "llm/config.json", lambda said: said.update(bos_token_id=whole.bos_token_id))
    with pytest.raises(UserError, match=r"tokenizer_config\.json names no special tokens.*'<\|begin_of_text\|>'"):
        load(tmp_path / "llm", end_sym="<|end_of_text|>")
    write_folder(tmp_path / "gpt2", "gpt2", llama)
    end = load(tmp_path / "gpt2", end_sym="<|endoftext|>").convert_tokens_to_ids("<|endoftext|>")
    (tmp_path / "gpt2/tokenizer_config.json").write_text(json.dumps(settings))
    change_json(tmp_path / "gpt2/vocab.json", lambda vocab: vocab.update({"<|endoftext|>": end}))
    change_json(tmp_path / "gpt2/config.json", lambda said: said.update(bos_token_id=end, eos_token_id=end))
    assert load(tmp_path / "gpt2", end_sym="<|endoftext|>").bos_token_id == end


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_the_tokenizer_of_a_smaller_vocabulary_is_another_models(llama, tmp_path, name):
    write_folder(tmp_path / "llm", name, llama)
    config = json.loads((tmp_path / "llm/config.json").read_text())
    for share in (0.5, 0.65, 0.8, 0.89):  # LLaMA's 32,000 beside a vocabulary of 64,000, or 49,152; one that was cut
        grown = int(len(load(tmp_path / "llm", end_sym=KINDS[name][1])) / share)
        (tmp_path / "llm/config.json").write_text(json.dumps({**config, "vocab_size": grown}))
        with pytest.raises(UserError, match=rf"tokens, its config\.json says {grown}"):
            load(tmp_path / "llm", end_sym=KINDS[name][1])
        (tmp_path / "llm/config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_tokenizer_file_is_named(llama, tmp_path, name):
    write_folder(tmp_path / "llm", name, llama)
    for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"):
        if (tmp_path / "llm" / file).exists():
            for content in (b"", (tmp_path / "llm" / file).read_bytes()[:50], b"\x00" * 400):
                broken = tmp_path / "broken"
                shutil.copytree(tmp_path / "llm", broken, dirs_exist_ok=True)
                (broken / file).write_bytes(content)
                with pytest.raises(UserError, match=r"model\.llama_path = .*broken"):
                    load(broken, end_sym=KINDS[name][1])


@pytest.mark.parametrize(
    ("name", "other"), [("llama3", "Bert"), ("gemma", "GPT2"), ("gemma", "Llama"), ("gemma", "Bert")]
)
def test_a_tokenizer_of_another_class_than_its_file_is_told(llama, tmp_path, name, other):
    """The library makes the class's own tokenizer of the file's vocabulary: words break, or it fails at the first."""
    write_folder(tmp_path / "llm", name, llama)
    settings = json.loads((tmp_path / "llm/tokenizer_config.json").read_text())
    (tmp_path / "llm/tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": f"{other}Tokenizer"}))
    with pytest.raises(UserError, match=r"model\.llama_path = .*(makes other tokens of a text than|cannot be loaded)"):
        load(tmp_path / "llm", end_sym=KINDS[name][1])
    told = settings | {"tokenizer_class": "TokenizersBackend"}  # as the message says
    (tmp_path / "llm/tokenizer_config.json").write_text(json.dumps(told))
    load(tmp_path / "llm", end_sym=KINDS[name][1])
