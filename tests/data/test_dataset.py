"""Annotation files and samples: defaults, checks, broken clips, collation."""

import json

import numpy as np
import pytest
import soundfile

from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.collate import collate
from salmonn.data.dataset import SALMONNDataset


def write_annotations(path, entries):
    path.write_text(json.dumps({"annotation": entries}))
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
    return Annotations(write_annotations(tmp_path / "ann.json", entries)), ClipPaths(str(tmp_path / "audio"))


def test_a_broken_clip_is_replaced_the_same_way_each_time_and_reported(corpus):
    dataset = SALMONNDataset(*corpus, 30.0, seed=1)
    first, second = dataset[2], dataset[2]
    assert first["index"] == second["index"]
    assert first["index"] not in (2, 4)
    assert np.array_equal(first["raw_wav"], second["raw_wav"])
    assert first["text"] == f"text {first['index']}"  # audio and text stay together
    assert first["unreadable"][0].path.endswith("2.wav")
    assert first["unreadable"][0].reason


def test_in_evaluation_a_broken_clip_is_reported_and_left_out(corpus):
    dataset = SALMONNDataset(*corpus, 30.0, replace_unreadable=False)
    samples = collate([dataset[i] for i in range(6)])
    assert samples["index"] == [0, 1, 3, 5]
    assert samples["raw_wav"].shape[0] == 4
    assert sorted(samples["left_out"]) == [2, 4]


def test_a_data_set_of_broken_clips_ends_instead_of_looping(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"path": "absent.wav", "text": "x"}])
    item = SALMONNDataset(Annotations(path), ClipPaths(), 30.0)[0]
    assert item["raw_wav"] is None
    assert collate([item])["raw_wav"].shape == (0, 0)


def test_collate_pads_with_zeros_and_masks_the_padding(corpus):
    dataset = SALMONNDataset(*corpus, 30.0)
    samples = collate([dataset[0], dataset[5], dataset[1]])
    assert samples["raw_wav"].shape == (3, 24_000)
    assert (~samples["padding_mask"]).sum(1).tolist() == [16_000, 24_000, 17_600]
    assert not samples["raw_wav"][samples["padding_mask"]].any()
    assert samples["text"] == ["text 0", "text 5", "text 1"]
    assert samples["Q"] == ["q0", "q5", "q1"]
    assert samples["task"] == ["QA", "asr", "asr"]
