"""BLEU4 by sacrebleu from its own statistics, with the tokenizer of the language."""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU

from salmonn.evaluation.metrics.base import Metric, Texts

TOKENIZERS = {"": "13a", "zh": "zh", "ja": "ja-mecab"}  # 13a: every language that writes spaces
MECAB_MISSING = (
    "MeCab is not installed, so characters are counted instead of Japanese words: not comparable with BLEU by "
    "ja-mecab; get it: pip install 'sacrebleu[ja]'"
)


def bleu(language: str = "") -> Metric:
    """BLEU4 as sacrebleu's corpus score of 0 to 100 (case kept, exponential smoothing); the title names the tokenizer.

    `language` "" (13a), zh or ja (ja-mecab where it is installed, else char).
    """
    tokenizer = TOKENIZERS[language]
    missing = tokenizer == "ja-mecab" and not (find_spec("MeCab") and find_spec("ipadic"))
    if missing:
        tokenizer = "char"

    def statistics(texts: Texts) -> list[list[int]]:
        """[output length, reference length, 4 matched n-gram counts, 4 n-gram counts] per clip."""
        score = BLEU(tokenize=tokenizer, effective_order=True).sentence_score  # the order changes no count
        scores = [score(output, refs) for output, refs in zip(texts.outputs, texts.references, strict=True)]
        return [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]

    def details(_: np.ndarray) -> Mapping[str, Any]:
        note = f"sacrebleu {version('sacrebleu')}, tok:{tokenizer}, case:mixed, smooth:exp"
        return {"tokenizer": tokenizer, "note": f"{note}; {MECAB_MISSING}" if missing else note}

    title, substitute = f"BLEU4 ({tokenizer})", "no MeCab" if missing else ""
    tool = f"sacrebleu {tokenizer}, case kept"
    return Metric(title, statistics, _corpus_bleu, percent=False, details=details, tool=tool, substitute=substitute)


def _corpus_bleu(sums: np.ndarray) -> np.ndarray:
    """Scores [m] of 0 to 100 from summed statistics [m, 10]; nan without a reference."""
    return np.array([_score(row) if row[1] else np.nan for row in sums.astype(int).tolist()])


def _score(row: list[int]) -> float:
    return BLEU.compute_bleu(row[2:6], row[6:], sys_len=row[0], ref_len=row[1], smooth_method="exp").score


METRICS = {"bleu": bleu(), "bleu_zh": bleu("zh"), "bleu_ja": bleu("ja")}
