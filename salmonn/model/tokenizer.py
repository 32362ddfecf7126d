"""The LLM's tokenizer: whole, with the ids that the LLM was trained on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from salmonn.common.errors import UserError
from salmonn.model.llm import stored_config
from salmonn.model.model_folders import loading

SPACE = "\u2581"  # how SentencePiece writes one
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_WHOLE_VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab.txt")
_REMEDY = "get them from where the weights are from"
# Ends of a text, of families whose instructed models have another end symbol for a turn of a conversation: with these
# checkpoints are trained.
_ENDS_OF_TEXT = ("<|end_of_text|>", "<eos>")
_KNOWN_SHARE = 0.9  # of the LLM's tokens that its tokenizer has at least; the rest is padding, up to 3 in a hundred
_REACHED_SHARE = 0.95  # of the tokens that merges lead to; of LLaMA's, Qwen's, Gemma's and others' own files to all
_BYTE = "<0x"  # how a token for a byte begins, to which no merge leads
_TEXT = "A dog barks at 25 people, isn't it?\nYes: the 3rd time."  # of which every kind of tokenizer makes much


def load_tokenizer(config: DictConfig) -> PreTrainedTokenizerBase:
    """Load the LLM's tokenizer.

    Raises UserError where files of it are missing, and unless `end_sym` is one of its tokens and the first BOS is ours.
    """
    path, n_llm = config.llama_path, stored_config(config).get_text_config().vocab_size
    _require_files(Path(path))
    with loading("model.llama_path", path):
        tokenizer = AutoTokenizer.from_pretrained(path, token=config.token or None, trust_remote_code=False)
    if not _KNOWN_SHARE * n_llm <= len(tokenizer) or tokenizer.vocab_size > n_llm:
        raise UserError(
            f"model.llama_path = {path}: its tokenizer has {len(tokenizer)} tokens, its config.json says {n_llm}: "
            f"files of the tokenizer ({', '.join(_FILES)}) are missing or another model's; {_REMEDY}"
        )
    _require_read_merges(tokenizer, Path(path))
    _require_stored_tokens(tokenizer, Path(path))
    _require_special_tokens(tokenizer, Path(path))
    tokenize_as_sentencepiece(tokenizer)
    end_id = tokenizer.get_vocab().get(config.end_sym)
    last_id = tokenizer(f"a{config.end_sym}", add_special_tokens=False).input_ids[-1]
    if end_id is None or end_id >= n_llm or last_id != end_id:
        known = next((sym for sym in _ENDS_OF_TEXT if sym in tokenizer.get_vocab()), tokenizer.eos_token)
        raise UserError(
            f"model.end_sym = {config.end_sym!r} is not a token of {path}; write model.end_sym: {known!r} "
            f"(its own end symbol is {tokenizer.eos_token!r})"
        )
    if tokenizer.bos_token and config.prompt_template.startswith(tokenizer.bos_token):
        raise UserError(
            f"model.prompt_template begins with {tokenizer.bos_token!r}, which is put in front by itself: leave it out "
            "there (further on it may stand)"
        )
    return tokenizer


def _require_files(folder: Path) -> None:
    """Raise UserError where a folder lacks its vocabulary: the library makes a tokenizer of a few symbols then."""
    if not folder.is_dir() or any(any(folder.glob(name)) for name in _WHOLE_VOCABULARIES):
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if len(missing) == 2:
        missing = ["tokenizer.json or tokenizer.model (or vocab.json and merges.txt)"]
    if missing:
        raise UserError(f"model.llama_path = {folder} lacks its tokenizer's vocabulary, {missing[0]}; {_REMEDY}")


def _require_read_merges(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise UserError where merges.txt is cut."""
    file = folder / "merges.txt"
    if not file.is_file() or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    with loading("model.llama_path", str(folder)):
        lines = file.read_text(encoding="utf-8").split("\n")
    vocabulary = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab()
    _require_merges(folder, "merges.txt leads", (line.split(" ") for line in lines), vocabulary)


class _Tokens(msgspec.Struct):
    """A part of tokenizer.json: what makes tokens of words. `vocab` of some kinds is a list."""

    vocab: dict[str, int] | list[Any] = {}
    merges: list[str | list[str]] | None = None


class _Stored(msgspec.Struct):
    """What is looked at of tokenizer.json."""

    model: _Tokens
    added_tokens: list[dict[str, Any]] = []


def _require_stored_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise UserError where tokenizer.json is cut, or tokenizer_config.json names a class that does otherwise."""
    file, key = folder / "tokenizer.json", "model.llama_path"
    if not file.is_file():
        return
    with loading(key, str(folder)):
        content = file.read_bytes()
        said, stored = msgspec.json.decode(content, type=_Stored), Tokenizer.from_buffer(content)
        ids = stored.encode(_TEXT, add_special_tokens=False).ids
        differs = ids != tokenizer(_TEXT, add_special_tokens=False).input_ids
    for token in said.added_tokens:
        if (given := stored.token_to_id(token["content"])) != token["id"]:
            raise UserError(
                f"{key} = {folder}: tokenizer.json says that {token['content']!r} is token {token['id']}, and gives it "
                f"the number {given}, since tokens before it are missing: it is cut; {_REMEDY}"
            )
    if said.model.merges is not None:
        added = {token["content"] for token in said.added_tokens}
        merges = (merge if isinstance(merge, list) else merge.split(" ") for merge in said.model.merges)
        _require_merges(folder, "the merges of tokenizer.json lead", merges, {*said.model.vocab} - added)
    if differs:
        raise UserError(
            f"{key} = {folder}: {type(tokenizer).__name__}, as its tokenizer_config.json has it, makes other "
            f"tokens of a text than its tokenizer.json: the two are of different models; {_REMEDY}, or write "
            '"tokenizer_class": "TokenizersBackend" there if tokenizer.json is right'
        )


def _require_merges(folder: Path, said: str, merges: Iterable[list[str]], vocabulary: set[str]) -> None:
    """Raise UserError where merges do not lead to the tokens of the vocabulary, as ones that were cut: words break."""
    tokens = {token for token in vocabulary if len(token) > 1 and not token.startswith(_BYTE)}
    reached = len(tokens & {"".join(merge) for merge in merges})
    if reached < _REACHED_SHARE * len(tokens):
        raise UserError(
            f"model.llama_path = {folder}: {said} to {reached} of {len(tokens)} tokens of its vocabulary: it is cut "
            f"or another model's; {_REMEDY}"
        )


def _require_special_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise UserError where tokenizer_config.json names none, and those that it then has are not of config.json."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    with loading("model.llama_path", str(folder)):
        named = json.loads(file.read_text(encoding="utf-8"))
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in () if {"bos_token", "eos_token"} & named.keys() else ("bos", "eos"):
        ids = said.get(f"{name}_token_id")
        ids = [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int) and 0 <= i < len(tokenizer)]
        if ids and getattr(tokenizer, f"{name}_token_id") not in ids:
            raise UserError(
                f"model.llama_path = {folder}: tokenizer_config.json names no special tokens, and config.json has "
                f"{name}_token_id = {ids[0]}, which is {tokenizer.convert_ids_to_tokens(ids[0])!r}: get "
                "tokenizer_config.json from where the weights are from"
            )


def tokenize_as_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer of LLaMA's kind the ids of SentencePiece, piece by piece between special tokens, as published.

    The library takes a space at the beginning for the one that SentencePiece adds, and adds none behind special tokens.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    backend = tokenizer.backend_tokenizer
    file = tokenizer.init_kwargs.get("vocab_file") or ""
    if Path(file).name == "tokenizer.model" and getattr(backend.model, "byte_fallback", False):
        from sentencepiece import SentencePieceProcessor  # only such folders need it

        adds_space = SentencePieceProcessor(model_file=file).encode("a", out_type=str)[0].startswith(SPACE)
    elif isinstance(backend.pre_tokenizer, Metaspace) and getattr(backend.model, "byte_fallback", False):
        adds_space = backend.pre_tokenizer.prepend_scheme != "never"
    else:
        return
    written = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *written] if adds_space else written)
    backend.pre_tokenizer = None
    for token in backend.get_added_tokens_decoder().values():  # to be found before spaces are added
        same = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "special")}
        backend.add_tokens([AddedToken(token.content, normalized=False, **same)])
