"""Annotation files and samples: defaults, checks, broken clips, collation."""

import gzip
import json

import numpy as np
import pytest
import soundfile
import torch

from salmonn.annotations import Annotations
from salmonn.dataset import SALMONNDataset, collate
from salmonn.errors import UserError


def write_annotations(path, entries):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        json.dump({"annotation": entries}, file)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Six clips of 1.0, 1.1, ... 1.5 s; numbers 2 and 4 are not audio."""
    (tmp_path / "audio").mkdir()
    entries = []
    for i in range(6):
        wav = np.full(16_000 + 1_600 * i, 0.01 * (i + 1))
        soundfile.write(tmp_path / "audio" / f"{i}.wav", wav, 16_000, subtype="FLOAT")
        entries.append({"path": f"/{i}.wav", "text": f"text {i}", "task": "asr" if i % 2 else "QA", "Q": f"q{i}"})
    for i in (2, 4):
        (tmp_path / "audio" / f"{i}.wav").write_text("no audio")
    return write_annotations(tmp_path / "ann.json", entries), str(tmp_path / "audio")


def test_entries_come_back_with_defaults(tmp_path):
    for name in ("a.json", "a.json.gz"):
        path = write_annotations(
            tmp_path / name, [{"path": "/a.wav", "text": "ä 你好", "testset_id": "7"}, {"path": "b", "text": ""}]
        )
        annotations = Annotations(path)
        assert len(annotations) == 2
        assert annotations[0] == {
            "path": "/a.wav", "text": "ä 你好", "task": "asr", "Q": "", "expand_wav": [], "testset_id": "7",
        }  # fmt: skip
        with pytest.raises(IndexError):
            annotations[2]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"text": "x"}, "entry 1: no 'path'"),
        ({"path": "x"}, "entry 1: no 'text'"),
        ({"path": "x", "text": 3}, "entry 1: 'text' must be a string, got int"),
        ({"path": "", "text": "x"}, "entry 1: 'path' is empty"),
        ({"path": "x", "text": "x", "expand_wav": "y"}, "entry 1: 'expand_wav' must be a list"),
        ("x", "entry 1: expected an object"),
    ],
)
def test_a_bad_entry_is_named_with_file_number_and_field(tmp_path, entry, what):
    path = write_annotations(tmp_path / "a.json", [{"path": "a", "text": "b"}, entry])
    with pytest.raises(UserError) as error:
        Annotations(path)
    assert str(path) in str(error.value)
    assert what in str(error.value)


def test_many_bad_entries_are_counted_not_listed(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"text": "x"}] * 1000)
    with pytest.raises(UserError, match="1000 problems in all") as error:
        Annotations(path)
    assert len(str(error.value).splitlines()) < 10


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": []}', '{"annotation": {}}', '{"annotation": []}'])
def test_foreign_json_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        Annotations(path)


def test_text_may_be_absent_where_it_is_not_needed(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"path": "a.wav"}])
    assert Annotations(path, need_text=False)[0]["text"] == ""


def test_a_broken_clip_is_replaced_the_same_way_each_time_and_reported(corpus):
    dataset = SALMONNDataset(*corpus, seed=1)
    first, second = dataset[2], dataset[2]
    assert first["index"] == second["index"]
    assert first["index"] not in (2, 4)
    assert torch.equal(first["raw_wav"], second["raw_wav"])
    assert first["text"] == f"text {first['index']}"  # audio and text stay together
    assert first["broken"][0]["path"].endswith("2.wav")
    assert first["broken"][0]["reason"]


def test_in_evaluation_a_broken_clip_is_reported_and_left_out(corpus):
    dataset = SALMONNDataset(*corpus, replace_broken=False)
    samples = collate([dataset[i] for i in range(6)])
    assert samples["index"] == [0, 1, 3, 5]
    assert samples["raw_wav"].shape[0] == 4
    assert sorted(report["index"] for report in samples["broken"]) == [2, 4]


def test_a_data_set_of_broken_clips_ends_instead_of_looping(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"path": "absent.wav", "text": "x"}])
    item = SALMONNDataset(path)[0]
    assert item["raw_wav"] is None
    assert collate([item])["raw_wav"].shape == (0, 0)


def test_collate_pads_with_zeros_and_masks_the_padding(corpus):
    dataset = SALMONNDataset(*corpus)
    samples = collate([dataset[0], dataset[5], dataset[1]])
    assert samples["raw_wav"].shape == (3, 24_000)
    assert (~samples["padding_mask"]).sum(1).tolist() == [16_000, 24_000, 17_600]
    assert not samples["raw_wav"][samples["padding_mask"]].any()
    assert samples["text"] == ["text 0", "text 5", "text 1"]
    assert samples["Q"] == ["q0", "q5", "q1"]
    assert samples["task"] == ["QA", "asr", "asr"]
