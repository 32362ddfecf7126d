"""util/inspector/duplicates.py: repeated entries, empty texts and texts that training would cut."""

import json
from pathlib import Path

import pytest

from salmonn.data.annotations import Annotations
from tests.fixtures.paths import ROOT
from util.inspector.duplicates import duplicate_report, text_report


def annotate(folder: Path, *entries: dict) -> Annotations:
    (folder / "a.json").write_text(json.dumps({"annotation": list(entries)}), encoding="utf-8")
    return Annotations(folder / "a.json", need_text=False)


def test_entries_with_the_same_clips_task_and_question_are_repeated(tmp_path):
    report = duplicate_report(
        annotate(
            tmp_path,
            {"path": "a", "text": "one"},
            {"path": "b", "text": "x", "Q": "why?", "expand_wav": ["c"]},
            {"path": "a", "text": "two", "task": "asr", "expand_wav": [], "Q": ""},  # the defaults, spelled out
            {"path": "b", "text": "x", "Q": "why?", "expand_wav": ["c"]},
            {"path": "a", "text": "one"},
            {"path": "a", "text": "one", "task": "QA"},
            {"path": "b", "text": "x", "Q": "who?", "expand_wav": ["c"]},
            {"path": "b", "text": "x", "Q": "why?"},
        )
    )
    assert report == {
        "entries": 8,
        "groups": 2,
        "surplus": 3,
        "same_text": {"groups": 2, "surplus": 2},
        "examples": [
            {"path": "a", "expand_wav": [], "task": "asr", "Q": "", "n": 3, "entries": [0, 2, 4], "same_text": False},
            {
                "path": "b", "expand_wav": ["c"], "task": "asr", "Q": "why?", "n": 2, "entries": [1, 3],
                "same_text": True,
            },
        ],
    }  # fmt: skip


def test_only_the_first_examples_are_listed(tmp_path):
    entries = [{"path": f"{i % 25}.wav", "text": "t"} for i in range(500)]
    report = duplicate_report(annotate(tmp_path, *entries))
    assert (report["groups"], report["surplus"]) == (25, 475)
    assert [example["path"] for example in report["examples"]] == [f"{i}.wav" for i in range(10)]
    assert report["examples"][0]["entries"] == list(range(0, 250, 25))
    assert report["examples"][0]["n"] == 20


def test_empty_blank_and_absent_texts_are_found(tmp_path):
    annotations = annotate(
        tmp_path,
        {"path": "a", "text": ""},
        {"path": "a", "text": " \n\u3000"},
        {"path": "a", "text": "x"},
        {"path": "a", "task": "QA"},
    )
    assert text_report(annotations) == {
        "empty": {"n": 3, "tasks": {"QA": 1, "asr": 2}, "examples": [0, 1, 3]},
        "too_long": None,
    }


@pytest.mark.parametrize("unit", ["a ", "ab", "红", "🦁", "ﷺ"])
def test_texts_are_too_long_exactly_where_training_cuts_them(tmp_path, unit):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests/golden/base/llama")
    texts = [unit * n for n in range(60)]
    annotations = annotate(tmp_path, *({"path": "a", "text": text} for text in texts))
    lengths = [len(ids) for ids in tokenizer([text + "</s>" for text in texts], add_special_tokens=False).input_ids]
    expected = [i for i, n in enumerate(lengths) if n > 20]
    assert expected
    found = text_report(annotations, tokenizer, max_txt_len=20, end_sym="</s>")["too_long"]
    assert found == {"n": len(expected), "tasks": {"asr": len(expected)}, "examples": expected[:10]}
