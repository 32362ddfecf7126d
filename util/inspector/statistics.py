"""How long texts and clips are: per task and corpus, as tables and as histograms."""

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from salmonn.audio.decode import AudioError
from salmonn.common.charts import BLUE, ORANGE, new_figure, write_png
from salmonn.common.errors import UserError
from salmonn.common.files import make_folder
from salmonn.data.annotation_scan import DEFAULT_TASK
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache, corpus_of
from salmonn.data.unreadable import corpora_root
from util.inspector.duplicates import TEXTS_AT_ONCE, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = (5, 25, 50, 75, 95, 99)  # percent
Groups = dict[str, np.ndarray]  # values by task or corpus

# Han and kana stand without spaces, each is a word; CJK punctuation is none
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+")


def count_words(text: str) -> int:
    """Words between spaces; a Chinese or Japanese character counts as a word, its punctuation does not."""
    return len(text.split()) if text.isascii() else len(_WORD.findall(text))


def text_lengths(annotations: Annotations, tokenizer: "PreTrainedTokenizerBase | None" = None) -> dict[str, Groups]:
    """Words, characters and, with a tokenizer, tokens of each text: {quantity: {task: [texts]}}.

    Entries without a text do not count. Tokens are counted as in training, without special tokens.
    """
    lengths: dict[str, dict[str, array]] = {}
    entries = ((entry, entry.text) for entry in annotations.entries() if entry.text is not None)
    while batch := list(islice(entries, TEXTS_AT_ONCE)):
        texts = [text for _, text in batch]
        counts: dict[str, Iterable[int]] = {"words": map(count_words, texts), "characters": map(len, texts)}
        if tokenizer:
            counts["tokens"] = map(len, token_ids(tokenizer, texts))
        for quantity, values in counts.items():
            for (entry, _), value in zip(batch, values, strict=True):
                lengths.setdefault(quantity, {}).setdefault(entry.task or DEFAULT_TASK, array("I")).append(value)
    return {q: {task: np.array(groups[task]) for task in sorted(groups)} for q, groups in lengths.items()}


def text_statistics(lengths: Mapping[str, Groups]) -> list[dict[str, Any]]:
    """A row per task and quantity of `text_lengths`: entries, mean, min, p5 ... p99, max."""
    return [
        {"task": task, "quantity": quantity, "entries": len(groups[task]), **summarise(groups[task])}
        for task in lengths.get("words", ())
        for quantity, groups in lengths.items()
    ]


def summarise(values: np.ndarray) -> dict[str, float]:
    """Mean, least, quantiles (p5 is the 5 % quantile) and largest of some values."""
    quantiles = np.percentile(values, QUANTILES)
    return {
        "mean": float(values.mean()),
        "min": values.min().item(),
        **{f"p{percent}": float(value) for percent, value in zip(QUANTILES, quantiles, strict=True)},
        "max": values.max().item(),
    }


def clip_values(annotations: Annotations, clip_paths: ClipPaths, value_of: Mapping[str, float]) -> dict[str, Groups]:
    """A value of each distinct clip, NaN where it is not known: {"task" | "corpus": {group: [clips]}}.

    `value_of`: by file, such as the seconds of verdicts; 0 is not known. The clips of expand_wav
    belong to the corpus of their entry. Clips are told apart by 64-bit hashes.
    """
    exists, root = FolderCache().exists, corpora_root(annotations, clip_paths)
    found: dict[str, dict[str, tuple[array, array]]] = {"task": {}, "corpus": {}}
    for entry in annotations.entries():
        try:
            files = clip_paths.of(entry.path, entry.expand_wav, exists)
        except AudioError:  # leads out of the prefix
            continue
        for kind, group in (("task", entry.task or DEFAULT_TASK), ("corpus", corpus_of(entry.path, root))):
            hashes, values = found[kind].setdefault(group, (array("q"), array("d")))
            hashes.extend(map(hash, files))
            values.extend(value_of.get(file) or math.nan for file in files)

    def distinct(hashes: array, values: array) -> np.ndarray:
        return np.array(values)[np.unique(np.array(hashes), return_index=True)[1]]

    return {kind: {group: distinct(*groups[group]) for group in sorted(groups)} for kind, groups in found.items()}


def duration_statistics(seconds: Mapping[str, Groups]) -> list[dict[str, Any]]:
    """A row per task, then per corpus, of the seconds in `clip_values`.

    Distinct clips, those of unknown length, hours, mean, min, p5 ... max [s].
    """
    rows = []
    for kind, groups in seconds.items():
        for group, values in groups.items():
            known = values[~np.isnan(values)]
            row = {"by": kind, "group": group, "clips": len(known), "unknown": len(values) - len(known)}
            rows.append(row | ({"hours": float(known.sum()) / 3600, **summarise(known)} if len(known) else {}))
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text, a column per key: numbers to the right, with two digits where they are no integers."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = ([row.get(key, "") for key in keys] for row in rows)
    lines = [keys, *([f"{v:.2f}" if isinstance(v, float) else str(v) for v in line] for line in values)]
    columns = []
    for key, cells in zip(keys, zip(*lines, strict=True), strict=True):
        place = str.ljust if all(isinstance(row.get(key), str) for row in rows) else str.rjust
        columns.append([place(cell, max(map(len, cells))) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def plot_histograms(quantities: Mapping[str, Groups], folder: Path) -> list[Path]:
    """Write a picture per quantity ({"words": {task: [texts]}, "seconds": ...}), a panel per task."""
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"pictures cannot be written to {folder}: {error}") from error
    written = []
    for quantity, groups in quantities.items():
        groups = {task: values[~np.isnan(values)] for task, values in groups.items()}
        if groups := {task: values for task, values in groups.items() if len(values)}:
            written.append(folder / f"{quantity}.png")
            _plot(quantity, groups, written[-1])
    return written


def _plot(quantity: str, groups: Groups, file: Path) -> None:
    """Panels share neither axis: tasks differ by orders of magnitude. The last bin takes what is beyond 99 %."""
    columns = min(4, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = new_figure(3.4 * columns, 0.4 + 2.3 * rows)
    for place, (task, values) in enumerate(groups.items(), 1):
        panel = figure.add_subplot(rows, columns, place)
        end = max(float(np.percentile(values, 99)), 1.0)
        edges = np.linspace(0, end, 41)
        if values.dtype.kind in "iu":  # bins of whole numbers
            step = math.ceil((end + 1) / 40)
            edges = np.arange(0, end + 1 + step, step) - 0.5
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.hist(np.minimum(values, edges[-1] - 1e-6), edges.tolist(), color=BLUE)
        panel.axvline(float(np.median(values)), color=ORANGE, linewidth=1.2)
        panel.set_title(f"{task} ({len(values):,}; median {np.median(values):.1f})", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    what = f"{quantity} per {'clip' if quantity == 'seconds' else 'text'}"
    figure.supxlabel(f"{what} (orange: median; the last bar holds all that is beyond the 99 % quantile)", fontsize=9)
    figure.supylabel(f"{'clips' if quantity == 'seconds' else 'texts'}", fontsize=9)
    write_png(figure, file)
