"""util/inspector/split.py: no clip in two files, the same membership whatever the order, shares met."""

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from util.inspector.split import SPLITS, assign, clip_name, split

SHARES = (0.8, 0.1, 0.1)


def annotate(path: Path, entries: list[dict]) -> Annotations:
    path.write_text(json.dumps({"annotation": entries}, ensure_ascii=False), encoding="utf-8")
    return Annotations(path, need_text=False)


def entries_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["annotation"]


def chained(n: int, seed: int = 0) -> list[dict]:
    """Entries of which every fifth appends another clip, often one of its neighbours."""
    rng = random.Random(seed)
    entries = []
    for i in range(n):
        entry = {"path": f"/A/{rng.randrange(n)}.wav", "text": f"ä {i}", "task": rng.choice(["asr", "QA"]), "id": i}
        if i % 5 == 0:
            entry["expand_wav"] = [f"/A/{rng.randrange(n)}.wav"]
        entries.append(entry)
    return entries


def split_all(annotations: Annotations, folder: Path, shares=SHARES, stratify=False, force=False) -> dict[str, int]:
    return split(annotations, np.ones(len(annotations), bool), shares, 0, stratify, folder, force)


def test_no_clip_stands_in_two_splits_and_every_entry_in_one(tmp_path):
    source = chained(800)
    counts = split_all(annotate(tmp_path / "all.json", source), tmp_path / "out")
    parts = [entries_of(tmp_path / "out" / f"all_{name}.json") for name in SPLITS]
    assert [len(part) for part in parts] == list(counts.values())
    clips = [{clip for e in part for clip in (e["path"], *e.get("expand_wav", ()))} for part in parts]
    assert sum(map(len, clips)) == len(set.union(*clips))
    assert sorted((e for part in parts for e in part), key=lambda e: e["id"]) == source
    assert all(part == sorted(part, key=lambda e: e["id"]) for part in parts)  # order of the source


def test_a_chain_of_shared_clips_stays_together(tmp_path, caplog):
    chain = [{"path": f"{i}.wav", "expand_wav": [f"{i + 1}.wav"]} for i in range(30)]
    alone = [{"path": f"alone{i}.wav"} for i in range(70)]
    annotations = annotate(tmp_path / "a.json", alone[:35] + chain + alone[35:])
    with caplog.at_level(logging.WARNING):
        membership = assign(annotations, np.ones(100, bool), SHARES, 0, stratify=False)
    assert (membership[35:65] == 0).all()  # larger than validation and test may be: training
    assert np.bincount(membership).tolist() == [80, 10, 10]
    assert "larger than the smallest share" in caplog.text


def test_clips_meet_under_the_released_folder_another_extension_or_slash():
    names = ["/mnt/bn/audio-visual-llm-data/datasets/A/1.wav", "/A/1.wav", "A/1.flac", "/A/./1.wav", "A//1.MP3"]
    assert {clip_name(name) for name in names} == {"A/1"}
    assert clip_name("/A/1.5") == "A/1.5"


def test_membership_does_not_depend_on_the_order_of_the_entries(tmp_path):
    source = chained(500)
    shuffled = random.Random(1).sample(source, len(source))
    for name, entries in (("one", source), ("two", shuffled)):
        split_all(annotate(tmp_path / f"{name}.json", entries), tmp_path, stratify=True)
    for name in SPLITS:
        one, two = ({e["id"] for e in entries_of(tmp_path / f"{stem}_{name}.json")} for stem in ("one", "two"))
        assert one == two


def test_another_seed_gives_another_split(tmp_path):
    annotations = annotate(tmp_path / "a.json", [{"path": f"{i}.wav"} for i in range(200)])
    one, two = (assign(annotations, np.ones(200, bool), SHARES, seed, stratify=False) for seed in (0, 1))
    assert (one != two).any()


def test_shares_are_met_and_unusable_entries_stay_out(tmp_path):
    annotations = annotate(tmp_path / "a.json", [{"path": f"{i}.wav"} for i in range(1000)])
    usable = np.arange(1000) % 2 == 0
    assert split(annotations, usable, (0.7, 0.2, 0.1), 3, False, tmp_path, False) == {
        "train": 350, "valid": 100, "test": 50,
    }  # fmt: skip
    assert all(int(e["path"][:-4]) % 2 == 0 for name in SPLITS for e in entries_of(tmp_path / f"a_{name}.json"))


def test_stratified_shares_are_met_within_each_task(tmp_path):
    source = [{"path": f"a{i}.wav"} for i in range(300)]
    source += [{"path": f"q{i}.wav", "task": task} for i in range(20) for task in ("QA", "QA", "asr")]
    membership = assign(annotate(tmp_path / "a.json", source), np.ones(360, bool), SHARES, 0, stratify=True)
    assert np.bincount(membership[:300]).tolist() == [240, 30, 30]
    assert np.bincount(membership[300:]).tolist() == [48, 6, 6]  # of the task that most of a clip's entries have


def test_bytes_of_an_entry_are_kept(tmp_path):
    odd = '{"path":  "\\u0061.wav", "text": "x\\ty",\n "n": 1.50, "none": null}'
    (tmp_path / "a.json").write_text('{"annotation": [' + odd + "]}")
    assert split_all(Annotations(tmp_path / "a.json"), tmp_path, (1, 0, 0)) == {"train": 1, "valid": 0, "test": 0}
    assert odd in (tmp_path / "a_train.json").read_text()
    assert not (tmp_path / "a_valid.json").exists()


def test_it_overwrites_only_when_forced(tmp_path):
    annotations = annotate(tmp_path / "a.json", [{"path": f"{i}.wav"} for i in range(20)])
    (tmp_path / "a_valid.json").write_text("mine")
    with pytest.raises(UserError, match=r"a_valid\.json would be overwritten"):
        split_all(annotations, tmp_path)
    assert not (tmp_path / "a_train.json").exists()
    split_all(annotations, tmp_path, force=True)
    assert len(entries_of(tmp_path / "a_valid.json")) == 2
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("n_renamed", [0, 1, 2, 3])
def test_killed_between_its_files_the_same_command_goes_on(tmp_path, monkeypatch, n_renamed):
    annotations = annotate(tmp_path / "a.json", [{"path": f"{i}.wav"} for i in range(20)])
    whole = tmp_path / "whole"
    counts = split_all(annotations, whole)
    left, replace = [n_renamed], Path.replace

    def killed_after(self, target):
        if self.suffix == ".tmp":
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
        return replace(self, target)

    process = os.fork()  # which leaves what kill -9 leaves
    if not process:
        monkeypatch.setattr(Path, "replace", killed_after)
        split_all(annotations, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == (9 if n_renamed < 3 else 0)
    assert len(list(tmp_path.glob("a_*.json"))) == n_renamed
    assert split_all(annotations, tmp_path) == counts
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in whole.iterdir())
    assert not list(tmp_path.glob(".*.tmp"))


def test_of_another_split_no_file_is_overwritten_and_none_is_added(tmp_path):
    annotations = annotate(tmp_path / "a.json", [{"path": f"{i}.wav"} for i in range(20)])
    split_all(annotations, tmp_path)
    (tmp_path / "a_test.json").unlink()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"a_train\.json, .*a_valid\.json would be overwritten"):
        split_all(annotations, tmp_path, (0.5, 0.3, 0.2))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.2), (1.2, -0.1, -0.1), (1.0,), (float("nan"), 0.5, 0.5)])
def test_bad_shares_are_refused(tmp_path, shares):
    with pytest.raises(UserError, match="sum 1"):
        split_all(annotate(tmp_path / "a.json", [{"path": "a.wav"}]), tmp_path, shares)


def test_a_split_that_would_be_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a_valid\.json would have no entries"):
        split_all(annotate(tmp_path / "a.json", [{"path": "a.wav"}]), tmp_path)
    assert not list(tmp_path.glob("a_*"))
