"""Entries that stand twice, and texts that cannot be learned from: empty, or longer than a target may be."""

from array import array
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from salmonn.data.annotation_scan import DEFAULT_TASK, Entry
from salmonn.data.annotations import Annotations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 10  # examples of each kind, and entries of an example
TEXTS_AT_ONCE = 1000  # texts that are tokenised together

Key = tuple[str | None, tuple[str, ...], str, str]  # path, expand_wav, task, Q


def duplicate_report(annotations: Annotations) -> dict[str, Any]:
    """Entries with the same path, expand_wav, task and Q: how many groups, and how many entries are surplus.

    `same_text`: the same for entries that have the same text, too. Others are not wrong as such:
    caption data has several texts for a clip. `examples`: the first groups, each with its entries
    (the first of `n`) and whether all of these have one text. Entries are compared by 64-bit
    hashes; the examples are looked up.
    """
    keys, with_text = array("q"), array("q")
    for entry in annotations.entries():
        keys.append(hash(key := _key(entry)))
        with_text.append(hash((key, entry.text or "")))
    _, firsts, group_of, sizes = np.unique(np.array(keys), return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(sizes > 1)
    repeated = repeated[np.argsort(firsts[repeated])]
    text_sizes = np.unique(np.array(with_text), return_counts=True)[1]
    examples = (_example(annotations, np.flatnonzero(group_of == group)) for group in repeated)
    return {
        "entries": len(annotations),
        **_count(sizes),
        "same_text": _count(text_sizes),
        "examples": list(islice((example for example in examples if example), _SHOWN)),
    }


def _key(entry: Entry) -> Key:
    return entry.path, tuple(entry.expand_wav or ()), entry.task or DEFAULT_TASK, entry.Q or ""


def _count(sizes: np.ndarray) -> dict[str, int]:
    return {"groups": int((sizes > 1).sum()), "surplus": int((sizes - 1).sum())}


def _example(annotations: Annotations, numbers: np.ndarray) -> dict[str, Any] | None:
    """What the entries of a group have in common; None where only their hashes are equal."""
    entries = {i: msgspec.convert(annotations.as_written(i), Entry) for i in numbers[:_SHOWN].tolist()}
    key = _key(entries[int(numbers[0])])
    entries = {i: entry for i, entry in entries.items() if _key(entry) == key}
    if len(entries) < 2:
        return None
    path, clips, task, question = key
    return {
        "path": path, "expand_wav": list(clips), "task": task, "Q": question, "n": len(numbers),
        "entries": list(entries), "same_text": len({entry.text or "" for entry in entries.values()}) == 1,
    }  # fmt: skip


def text_report(
    annotations: Annotations,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_txt_len: int = 300,
    end_sym: str = "</s>",
) -> dict[str, Any]:
    """Texts that are empty, blank or absent, and with a tokenizer those that training would cut.

    Training cuts a text that has more than `max_txt_len` tokens with `end_sym` and without special
    tokens. Each: {"n", "tasks": {task: n}, "examples": the first entry numbers}; "too_long" is None
    without a tokenizer.
    """
    room = max_txt_len - len(end_sym) - 1  # a token of plain ASCII has a character at least; one may mark the begin
    empty: dict[str, Any] = {"n": 0, "tasks": {}, "examples": []}
    too_long: dict[str, Any] = {"n": 0, "tasks": {}, "examples": []}
    entries = enumerate(annotations.entries())
    while batch := list(islice(entries, TEXTS_AT_ONCE)):
        for i, entry in batch:
            if not (entry.text or "").strip():
                _note(empty, i, entry)
        if tokenizer:
            long = [(i, e, e.text) for i, e in batch if e.text and (len(e.text) > room or not e.text.isascii())]
            rows = token_ids(tokenizer, [text + end_sym for *_, text in long]) if long else []
            for (i, entry, _), ids in zip(long, rows, strict=True):
                if len(ids) > max_txt_len:
                    _note(too_long, i, entry)
    return {"empty": empty, "too_long": too_long if tokenizer else None}


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids as in training, without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids


def _note(found: dict[str, Any], i: int, entry: Entry) -> None:
    task = entry.task or DEFAULT_TASK
    found["n"] += 1
    found["tasks"][task] = found["tasks"].get(task, 0) + 1
    if len(found["examples"]) < _SHOWN:
        found["examples"].append(i)
