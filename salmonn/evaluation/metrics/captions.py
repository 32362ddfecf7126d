"""Caption scores by aac-metrics; those that need Java or downloaded models say what is missing."""

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from salmonn.evaluation.metrics.base import Metric, Texts, UnavailableError

DOWNLOAD = "aac-metrics-download"  # command of the package: all Java programs and models
METEOR_FILE = "aac-metrics/meteor/meteor-1.5.jar"
SPICE_FILE = "aac-metrics/spice/lib/stanford-corenlp-3.6.0-models.jar"  # the last one to be put in its place
PTB_FILE = "aac-metrics/stanford_nlp/stanford-corenlp-3.4.1.jar"
SENTENCE_MODEL = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
FLUENCY_FILE = "echecker_clotho_audiocaps_base.ckpt"


def require_java(file: str) -> None:
    """Raise UnavailableError with all that is missing: the Java program `file`, a Java that aac-metrics accepts."""
    from aac_metrics.info import get_java_version
    from aac_metrics.utils.checks import MAX_JAVA_MAJOR_VERSION, MIN_JAVA_MAJOR_VERSION
    from aac_metrics.utils.globals import get_default_cache_path, get_default_java_path

    missing = []
    path = Path(get_default_cache_path()) / file
    if not path.is_file():
        missing.append(f"{path} is not there; get it: {DOWNLOAD}")
    java, found = get_default_java_path(), get_java_version()
    if not _accepted(java):
        wanted = f"a Java that aac-metrics accepts is needed ({MIN_JAVA_MAJOR_VERSION} to {MAX_JAVA_MAJOR_VERSION})"
        has = "is not there" if found == "UNKNOWN" else f"is {found}"
        missing.append(f"{wanted}, {java} {has}; install one and name it: AAC_METRICS_JAVA_PATH=/path/to/bin/java")
    if missing:
        raise UnavailableError("; ".join(missing))


def _accepted(java: str) -> bool:
    from aac_metrics.utils.checks import check_java_path

    logging.getLogger(check_java_path.__module__).setLevel(logging.CRITICAL)  # it would repeat what we say
    try:
        return check_java_path(java)
    except ValueError:  # no such program, or a version it cannot read (1.8.0_292): it would not start METEOR either
        return False


def ptb_tokens(texts: list[str]) -> list[str]:
    """Tokens of each text joined by spaces, by aac-metrics' PTB tokenizer; raises UnavailableError."""
    from aac_metrics.utils.tokenization import preprocess_mono_sents

    require_java(PTB_FILE)
    lines = [" ".join(text.split()) for text in texts]
    filled = [line for line in lines if line]  # the tokenizer counts lines, and loses empty ones at the end
    try:
        tokens = iter(preprocess_mono_sents(filled))
    except Exception as error:  # whatever Java does: the other tokens are there
        raise UnavailableError(f"aac-metrics failed: {type(error).__name__}: {error}") from error
    return [next(tokens) if line else "" for line in lines]


def _require_fense() -> None:
    import torch
    from huggingface_hub import try_to_load_from_cache

    fluency = Path(os.environ.get("FENSE_DATA", f"{torch.hub.get_dir()}/fense_data")) / FLUENCY_FILE
    missing = [] if fluency.is_file() else [str(fluency)]
    if not isinstance(try_to_load_from_cache(SENTENCE_MODEL, "config.json"), str):
        missing.append(f"the model {SENTENCE_MODEL}")
    if missing:
        raise UnavailableError(f"{' and '.join(missing)} not there; get it: {DOWNLOAD}")


def aac_metric(
    name: str, title: str, require: Callable[[], None] = lambda: None, at_least: int = 1, **shown: Any
) -> Metric:
    """The mean over the clips of aac_metrics.functional.<name>; `shown` are fields of Metric."""

    def statistics(texts: Texts) -> list[tuple[float, float]]:
        """(score, 1) per clip."""
        return [(value, 1.0) for value in _scores(name, require, at_least, texts)[1]]

    return Metric(title, statistics, **shown)


def meteor() -> Metric:
    """METEOR of the whole set, as published: not the mean over the clips, as it sums matches before it divides."""

    def require() -> None:
        require_java(METEOR_FILE)

    def corpus(texts: Texts) -> float:
        return _scores("meteor", require, 1, texts)[0]

    return replace(aac_metric("meteor", "METEOR", require), corpus=corpus)


def _scores(name: str, require: Callable[[], None], at_least: int, texts: Texts) -> tuple[float, list[float]]:
    """(score of the set, score per clip); raises UnavailableError."""
    require()
    if len(texts.outputs) < at_least:
        raise UnavailableError(f"needs at least {at_least} clips with a reference: {len(texts.outputs)} here")
    try:
        return _call(name, tuple(texts.outputs), tuple(map(tuple, texts.references)))
    except Exception as error:  # a Java process or a downloaded model that fails must not lose the other scores
        raise UnavailableError(f"aac-metrics failed: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=2)  # METEOR is asked twice for one set, and a Java process takes seconds
def _call(name: str, outputs: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> tuple[float, list[float]]:
    function = getattr(importlib.import_module(f"aac_metrics.functional.{name}"), name)
    options = {"device": "cpu"} if name == "fense" else {}  # the language model may fill the accelerator
    of_set, per_clip = function(list(outputs), [list(candidates) for candidates in references], **options)
    return of_set[name].item(), per_clip[name].tolist()


def _require_spice() -> None:
    require_java(SPICE_FILE)


METRICS = {
    # document frequencies come from the references of the set: one clip has none
    "cider_d": aac_metric("cider_d", "CIDEr-D", at_least=2, percent=False, digits=3),
    "rouge_l": aac_metric("rouge_l", "ROUGE-L"),
    "meteor": meteor(),
    "spice": aac_metric("spice", "SPICE", _require_spice),
    "spider": aac_metric("spider", "SPIDEr", _require_spice, at_least=2),  # mean of SPICE and CIDEr-D: up to 550 %
    "fense": aac_metric("fense", "FENSE", _require_fense),
}
