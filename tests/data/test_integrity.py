"""Verdicts on media files: written safely, believed only for the version they are about, used before training."""

import dataclasses
import json
import os
from functools import partial

import numpy as np
import pytest
import soundfile

from salmonn.common import processes
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.data import filtering, integrity
from salmonn.data.annotations import Annotations
from salmonn.data.filtering import usable_entries
from salmonn.data.integrity import Verdict, VerdictList, check_file, check_files, unreadable_verdict, write_verdicts
from tests.fixtures.deadly import check_or_die


@pytest.fixture
def media(tmp_path):
    """Good: 0, 1. Bad: 2 (cut, which only decoding shows), 3 (no audio), 4 (absent), 5 (with a cut expand_wav)."""
    folder = tmp_path / "media/A"
    folder.mkdir(parents=True)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    for i in (0, 1, 2, 5):
        soundfile.write(folder / f"{i}.flac", noise, 16_000)
    whole = (folder / "2.flac").read_bytes()
    (folder / "2.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "3.flac").write_text("no audio " * 20)
    entries = [{"path": f"/A/{i}.flac", "text": "t"} for i in range(6)]
    entries[5]["expand_wav"] = ["/mnt/bn/audio-visual-llm-data/datasets/A/2.flac"]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": entries}))
    return tmp_path


def usable(media, caplog=None, tasks=None, **datasets):
    (media / "c.yaml").write_text("run: {device: cpu}")
    config = load_config(media / "c.yaml").datasets
    config.prefix, config.verdicts = str(media / "media"), str(media / "verdicts.jsonl")
    for key, value in datasets.items():
        config[key] = value
    if caplog:
        caplog.set_level("INFO")
    return usable_entries(Annotations(media / "a.json"), config, tasks).tolist()


@pytest.mark.parametrize(("how", "kept"), [("off", [0, 1, 2, 3, 4, 5]), ("header", [0, 1, 2, 5]), ("decode", [0, 1])])
def test_each_level_leaves_out_what_it_can_see(media, how, kept):
    assert usable(media, integrity=how) == kept


def test_what_is_left_out_is_counted_by_corpus_and_reason(media, caplog):
    usable(media, caplog, integrity="decode")
    assert "2 of 6 entries are usable (datasets.integrity: decode)" in caplog.text
    assert "left out [A] undecodable: 3" in caplog.text
    assert "left out [A] file does not exist: 1" in caplog.text


def write_list(path, verdicts):
    with VerdictList(path).append_to() as file:
        write_verdicts(file, verdicts)


def verify(media):
    files = [str(media / f"media/A/{i}.flac") for i in (0, 1, 2, 3, 5)]
    write_list(media / "verdicts.jsonl", check_files(files, "decode", 1))


def test_verified_believes_the_verdict_file_and_decodes_nothing(media, monkeypatch):
    verify(media)
    monkeypatch.setattr(integrity, "decode_all", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(integrity, "inspect_header", lambda _: pytest.fail("opened"))
    assert usable(media, integrity="verified") == [0, 1]


def test_a_verdict_holds_for_one_version_of_a_file_only(media):
    verify(media)
    mended, changed = media / "media/A/2.flac", media / "media/A/1.flac"
    mended.write_bytes((media / "media/A/0.flac").read_bytes())
    os.utime(changed, ns=(1, 1))
    assert usable(media, integrity="verified") == [0]  # both have to be looked at again
    write_list(media / "verdicts.jsonl", check_files([str(mended), str(changed)], "decode", 1))
    assert usable(media, integrity="verified") == [0, 1, 2, 5]


def test_verified_without_verdicts_says_how_to_get_them(media):
    with pytest.raises(UserError, match=r"anns_inspector\.py --check-integrity"):
        usable(media, integrity="verified")


def test_a_quarantine_list_is_fed_back_until_the_file_changes(media):
    listed = media / "media/A/0.flac"
    write_list(media / "quarantine.jsonl", [unreadable_verdict(str(listed), "undecodable: lost sync")])
    quarantine = str(media / "quarantine.jsonl")
    assert usable(media, integrity="off", quarantine=quarantine) == [1, 2, 3, 4, 5]
    os.utime(listed, ns=(1, 1))
    assert usable(media, integrity="off", quarantine=quarantine) == [0, 1, 2, 3, 4, 5]


def test_nothing_usable_is_an_error_that_names_file_prefix_and_reason(media):
    with pytest.raises(UserError) as error:
        usable(media, integrity="header", prefix="/nowhere")
    for part in ("a.json", "none of the 6 entries", "file does not exist", "'/nowhere'", "anns_inspector.py"):
        assert part in str(error.value)


def test_a_verdict_tells_what_the_file_is_like(media):
    verdict = check_file(str(media / "media/A/0.flac"), "decode")
    assert (verdict.ok, verdict.rate, verdict.channels, verdict.seconds) == (True, 16_000, 1, 1.0)
    assert verdict.size == os.path.getsize(verdict.path)
    assert check_file(str(media / "media/A/2.flac"), "header").ok
    assert check_file(str(media / "media/A/2.flac"), "decode").kind == "undecodable"


def test_a_list_that_was_cut_while_it_was_written_goes_on_after_its_last_whole_line(tmp_path):
    path = tmp_path / "v.jsonl"
    first, second = Verdict("a", True, size=1), Verdict("b", False, "cut", size=2)
    write_list(path, [first, second])
    path.write_bytes(path.read_bytes()[:-7])
    assert list(VerdictList(path).read()) == [first]
    write_list(path, [second])
    assert list(VerdictList(path).read()) == [first, second]


def test_damaged_verdicts_are_looked_for_again_and_no_others_are_lost(tmp_path, caplog):
    path = tmp_path / "v.jsonl"
    verdicts = [Verdict(name, True, size=i) for i, name in enumerate("abcd")]
    write_list(path, verdicts)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"path":"b","ok":true', b'"path":"b","ok":true,').replace(b'"c"', b'"e"'))
    assert list(VerdictList(path).read()) == [verdicts[0], verdicts[3]]
    assert len(caplog.records) == 1
    assert f"{path}: 2 of 4 lines are damaged" in caplog.text


@pytest.mark.parametrize("content", ['{"annotation": [\n{"path": "a"}]}\n', "a.wav\nb.wav\n", '{"path":1}\n'])
def test_a_file_of_something_else_is_no_list_of_verdicts(tmp_path, content):
    path = tmp_path / "v.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"v\.jsonl holds no line that is a verdict \(line 1: "):
        list(VerdictList(path).read())


def test_a_file_that_takes_its_process_down_gets_a_verdict_and_no_other_is_lost(monkeypatch):
    paths = [f"/{i}" for i in range(200)]
    paths[50], paths[51], paths[150] = deadly = ("/crash1", "/crash2", "/crash3")
    monkeypatch.setattr(integrity, "_check_batch", partial(check_or_die, deadly))
    verdicts = {verdict.path: verdict for verdict in check_files(paths, "decode", 2)}
    assert sorted(verdicts) == sorted(paths)
    died = [path for path, verdict in verdicts.items() if verdict.reason == "crashes the decoder"]
    assert sorted(died) == sorted(deadly)


def test_parallel_calls_all_come_back_with_their_arguments():
    squares = processes.in_processes(pow, ((i, 2) for i in range(50)), jobs=2)
    assert sorted((args[0], result) for args, result in squares) == [(i, i * i) for i in range(50)]


@pytest.mark.parametrize("spelling", ["{}/media/", "{}/./media", "{}/media/../media"])
def test_a_verdict_holds_however_the_prefix_is_written(media, spelling):
    verify(media)
    prefix = spelling.format(media)
    assert usable(media, integrity="verified", prefix=prefix) == [0, 1]
    listed = [unreadable_verdict(str(media / "media/A/0.flac"), "undecodable: x")]
    write_list(media / "quarantine.jsonl", listed)
    quarantine = str(media / "quarantine.jsonl")
    assert usable(media, integrity="off", prefix=prefix, quarantine=quarantine) == [1, 2, 3, 4, 5]


def test_what_is_not_verified_is_told_with_the_remedy(media):
    verify(media)
    for i in range(6):
        if (media / f"media/A/{i}.flac").exists():
            os.utime(media / f"media/A/{i}.flac", ns=(1, 1))
    with pytest.raises(
        UserError, match=r"not verified \(new or changed\): run util/anns_inspector.py --check-integrity"
    ):
        usable(media, integrity="verified")


# ---- stage 0: its tasks alone


@pytest.mark.parametrize("how", ["header", "decode", "verified"])
def test_clips_of_tasks_that_take_no_part_are_not_looked_at(media, caplog, monkeypatch, how):
    entries = json.loads((media / "a.json").read_text())["annotation"]
    for i, entry in enumerate(entries):
        entry["task"] = "asr" if i in (0, 2, 4) else "audiocaption"
    (media / "a.json").write_text(json.dumps({"annotation": entries}))
    verify(media)
    looked_at = []
    real = filtering.check_files
    monkeypatch.setattr(filtering, "check_files", lambda files, *args: looked_at.extend(files) or real(files, *args))
    kept = usable(media, caplog, ["asr"], integrity=how)
    assert kept == ([0, 2] if how == "header" else [0])
    assert {path.rpartition("/")[2] for path in looked_at} == (set() if how == "verified" else {"0.flac", "2.flac"})
    assert "3 of 6 entries have a task of run.ctc_tasks (asr); left out: audiocaption 3" in caplog.text
    assert f"{len(kept)} of 3 entries are usable" in caplog.text
    assert usable(media, tasks=["asr"], integrity="off") == [0, 2, 4]


# ---- clips that are too long


@pytest.fixture
def lengths(tmp_path, monkeypatch):
    """Clips of 1 s to 4 s, the header of 2 does not say how long it is; 5 is no audio. Looked at in this process."""
    folder = tmp_path / "media/A"
    folder.mkdir(parents=True)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", np.zeros((i + 1) * 16_000), 16_000)
    (folder / "5.wav").write_text("no audio")
    entries = [{"path": f"/A/{i}.wav", "text": "t"} for i in range(4)]
    entries += [{"path": "/A/0.wav", "expand_wav": ["/A/3.wav"], "text": "t"}, {"path": "/A/5.wav", "text": "t"}]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": entries}))
    real = integrity.inspect_header

    def inspect_header(path):
        info = real(path)
        return dataclasses.replace(info, frames=0) if path.endswith("2.wav") else info

    monkeypatch.setattr(integrity, "inspect_header", inspect_header)
    monkeypatch.setattr(filtering, "check_files", lambda files, how, _: (check_file(file, how) for file in files))
    return tmp_path


@pytest.mark.parametrize("how", ["off", "header", "decode", "verified"])
@pytest.mark.parametrize(
    ("limit", "kept"), [(0, [0, 1, 2, 3, 4]), (2, [0, 1]), (2.5, [0, 1]), (3.5, [0, 1, 2]), (4, [0, 1, 2, 3, 4])]
)
def test_clips_longer_than_a_limit_are_left_out_told_and_counted(lengths, caplog, how, limit, kept):
    files = [str(path) for path in sorted((lengths / "media/A").iterdir())]
    write_list(lengths / "verdicts.jsonl", [check_file(file, "decode") for file in files])
    unreadable = [5] if how == "off" else []  # met in training
    assert usable(lengths, caplog, integrity=how, max_clip_seconds=limit) == kept + unreadable
    n = 5 - len(kept)
    assert (f"left out [A] longer than datasets.max_clip_seconds = {limit:g}: {n}" in caplog.text) == (n > 0)
