"""util/inspector/statistics.py: lengths of texts and clips per task and corpus, tables and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from tests.fixtures.paths import ROOT
from util.inspector.statistics import (
    clip_values,
    count_words,
    duration_statistics,
    format_table,
    plot_histograms,
    text_lengths,
    text_statistics,
)


def annotate(folder: Path, *entries: dict) -> Annotations:
    (folder / "a.json").write_text(json.dumps({"annotation": list(entries)}), encoding="utf-8")
    return Annotations(folder / "a.json", need_text=False)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "tests/golden/base/llama")


@pytest.mark.parametrize(
    ("text", "n"),
    [("", 0), (" a  dog barks ", 3), ("红羊在塔后面坐着。", 8), ("我爱 New York，真的！", 6), ("où est-il ?", 3)],
)
def test_a_chinese_character_counts_as_a_word(text: str, n: int):
    assert count_words(text) == n


def test_text_rows_per_task_and_quantity(tmp_path, tokenizer):
    annotations = annotate(
        tmp_path,
        *({"path": f"{i}.wav", "text": "a " * i} for i in range(101)),
        {"path": "x.wav", "text": "八二九", "task": "translation_ec"},
        {"path": "y.wav", "task": "translation_ec"},
    )
    rows = text_statistics(text_lengths(annotations, tokenizer))
    assert [(row["task"], row["quantity"], row["entries"]) for row in rows] == [
        (task, quantity, n)
        for task, n in (("asr", 101), ("translation_ec", 1))
        for quantity in ("words", "characters", "tokens")
    ]
    assert rows[0] == {
        "task": "asr", "quantity": "words", "entries": 101, "mean": 50.0, "min": 0, "p5": 5.0, "p25": 25.0,
        "p50": 50.0, "p75": 75.0, "p95": 95.0, "p99": 99.0, "max": 100,
    }  # fmt: skip
    assert rows[3]["max"] == 3
    assert rows[2]["max"] == len(tokenizer("a " * 100, add_special_tokens=False).input_ids)
    json.dumps(rows)


def clips(folder: Path) -> tuple[Annotations, ClipPaths]:
    annotations = annotate(
        folder,
        {"path": "/A/1.wav"},
        {"path": "/A/1.wav", "task": "QA"},
        {"path": "/A/2.wav", "expand_wav": ["/mnt/bn/audio-visual-llm-data/datasets/A/1.wav"]},
        {"path": "/B/3.wav", "task": "QA"},
        {"path": "/../out.wav", "task": "QA"},
    )
    return annotations, ClipPaths("/d")


def test_a_clip_counts_once_however_many_entries_have_it(tmp_path):
    rows = duration_statistics(clip_values(*clips(tmp_path), {"/d/A/1.wav": 1800.0, "/d/A/2.wav": 5400.0}))
    assert [tuple(row.values())[:5] for row in rows[:3]] == [
        ("task", "QA", 1, 1, 0.5),
        ("task", "asr", 2, 0, 2.0),
        ("corpus", "A", 2, 0, 2.0),
    ]
    assert rows[1]["p50"] == 3600.0
    assert rows[3] == {"by": "corpus", "group": "B", "clips": 0, "unknown": 1}
    assert len(format_table(rows).splitlines()) == 5


def test_columns_of_a_table_are_aligned():
    table = format_table([{"task": "asr", "n": 5, "mean": 2.5}, {"task": "speaker", "n": 12345}])
    assert table.splitlines() == ["task         n  mean", "asr          5  2.50", "speaker  12345"]
    assert format_table([]) == ""


def test_pictures_per_quantity_that_has_values(tmp_path, tokenizer):
    texts = ({"path": "a", "text": "a " * i} for i in range(50))
    quantities = text_lengths(annotate(tmp_path, *texts), tokenizer)
    quantities["seconds"] = clip_values(*clips(tmp_path), {"/d/A/1.wav": 2.5})["task"]
    quantities["nothing"] = {"asr": np.array([np.nan])}
    written = plot_histograms(quantities, tmp_path / "plots")
    assert [file.name for file in written] == ["words.png", "characters.png", "tokens.png", "seconds.png"]
    assert sorted(tmp_path.glob("plots/*")) == sorted(written)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)
