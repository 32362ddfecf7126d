"""The LLM's tokenizer: whole, with the ids that the LLM was trained on."""

from pathlib import Path

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
_KNOWN_SHARE = 0.75  # of the LLM's tokens that its tokenizer has at least; the rest is padding, a few in a hundred
_REACHED_SHARE = 0.95
_TEXT = "A dog barks at 25 people, isn't it?\nYes: the 3rd time."  # of which every kind of tokenizer makes much
_TRIED = 1000  # tokens of vocab.json; of whole files all, but for a few in a thousand, are reached by merges.txt


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
    _require_merges(tokenizer, path)
    _require_stored_tokens(tokenizer, path)
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


def _require_merges(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise UserError where merges.txt does not lead to the tokens of vocab.json, as one that was cut: words break."""
    file = Path(path) / "merges.txt"
    if not file.is_file() or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    special = tokenizer.get_added_vocab()
    tokens = sorted(token for token in tokenizer.get_vocab() if len(token) > 1 and token not in special)
    tried = tokens[:: max(1, len(tokens) // _TRIED)]
    whole = sum(len(tokenizer.backend_tokenizer.model.tokenize(token)) == 1 for token in tried)
    if whole < _REACHED_SHARE * len(tried):
        raise UserError(
            f"model.llama_path = {path}: merges.txt leads to {whole} of {len(tried)} tokens of the vocabulary that "
            f"were tried: it is cut or another model's; {_REMEDY}"
        )


def _require_stored_tokens(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise UserError where tokenizer_config.json names a class that does not do as tokenizer.json says."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        return
    with loading("model.llama_path", path):
        stored = Tokenizer.from_file(str(file)).encode(_TEXT, add_special_tokens=False).ids
        ids = tokenizer(_TEXT, add_special_tokens=False).input_ids
    if ids != stored:
        raise UserError(
            f"model.llama_path = {path}: {type(tokenizer).__name__}, as its tokenizer_config.json has it, makes other "
            f"tokens of a text than its tokenizer.json: the two are of different models; {_REMEDY}, or write "
            '"tokenizer_class": "TokenizersBackend" there if tokenizer.json is right'
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
