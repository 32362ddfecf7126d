"""What the system could not read now is no verdict on a file: told by its name, counted, and looked at again.

The suite may run as root, whom permissions do not keep out: EACCES, EIO, ESTALE and ENOMEM are raised in the
system's place; EMFILE is real.
"""

import builtins
import errno
import io
import json
import os
import resource
import signal
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonn.audio.decode import AudioError
from salmonn.config.loading import load_config
from salmonn.data import dataset as dataset_module
from salmonn.data import integrity
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache, may_exist
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.filtering import usable_entries
from salmonn.data.integrity import Verdict, VerdictList, check_file, check_files, write_verdicts
from salmonn.data.quarantine import MIN_TRIED, Quarantine
from salmonn.data.unreadable import NOT_VERIFIED, quarantined_files, unverified_files
from tests.fixtures.commands import json_lines
from tests.fixtures.deadly import check_or_be_killed
from util.inspector.check import check_integrity

TROUBLES = [errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENFILE, errno.ETIMEDOUT]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """0.flac and 1.flac are whole, 2.flac is cut."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.flac", noise, 16_000)
    whole = (tmp_path / "2.flac").read_bytes()
    (tmp_path / "2.flac").write_bytes(whole[: len(whole) // 2])
    entries = [{"path": f"/{i}.flac", "text": str(i)} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": entries}))
    return tmp_path


@pytest.fixture
def refuse():
    """Makes the system refuse to open a file, for this reason; with None it does not any more."""
    patches = pytest.MonkeyPatch()

    def begin(path: Path, number: int | None) -> None:
        patches.undo()
        if number is None:
            return

        def refusing(real):
            def call(file, *args, **kwargs):
                if str(file) == str(path):
                    raise OSError(number, os.strerror(number), str(file))
                return real(file, *args, **kwargs)

            return call

        real = soundfile.SoundFile.__init__

        def open_sound(self, file, *args, **kwargs):
            if str(file) == str(path):
                raise soundfile.LibsndfileError(2, "Error opening")  # all that libsndfile says
            real(self, file, *args, **kwargs)

        patches.setattr(soundfile.SoundFile, "__init__", open_sound)
        for module in (builtins, io, os):
            patches.setattr(module, "open", refusing(module.open))

    yield begin
    patches.undo()


@pytest.mark.parametrize("number", TROUBLES, ids=errno.errorcode.get)
def test_what_the_system_refuses_is_no_verdict_and_is_looked_at_again(clips, refuse, number):
    files, verdicts = [str(clips / f"{i}.flac") for i in range(3)], clips / "v.jsonl"
    refuse(clips / "1.flac", number)
    found = [check_file(file, "decode") for file in files]
    assert [verdict.is_passing for verdict in found] == [False, True, False]
    assert found[1].reason == f"unreadable: {os.strerror(number)}"
    with verdicts.open("ab") as file:
        write_verdicts(file, found)  # as earlier versions did
    assert unverified_files(files, verdicts)[files[1]] == NOT_VERIFIED
    refuse(clips / "1.flac", None)
    made, passing = check_integrity(files, verdicts, jobs=1)
    assert (made, passing) == (1, {})
    assert list(unverified_files(files, verdicts)) == [files[2]]


@pytest.mark.parametrize("reason", ["undecodable: System error", "unreadable: Permission denied"])
def test_troubles_that_earlier_versions_wrote_down_are_looked_at_again(clips, reason):
    file, listed = str(clips / "0.flac"), clips / "v.jsonl"
    with listed.open("ab") as out:
        write_verdicts(out, [Verdict(file, False, reason, *integrity.version_of(file)[1:])])
    assert quarantined_files([file], listed) == {}
    assert check_integrity([file], listed, jobs=1) == (1, {})
    assert unverified_files([file], listed) == {}


@pytest.mark.parametrize("kind", ["loop", "dangling", "long", "below a file", "absent", "folder"])
def test_a_path_that_leads_nowhere_is_no_passing_trouble(clips, kind):
    paths = {"long": clips / ("x" * 300), "below a file": clips / "0.flac/1.flac"}
    path = paths.get(kind, clips / kind)
    if kind in ("loop", "dangling"):
        path.symlink_to(path if kind == "loop" else clips / "none")
    elif kind == "folder":
        path.mkdir()
    for how in ("header", "decode"):
        verdict = check_file(str(path), how)
        assert not verdict.ok
        assert not verdict.is_passing
    assert may_exist(str(path)) == (kind in ("loop", "dangling", "folder"))  # as os.path.lexists


def test_a_check_without_open_files_left_writes_no_verdicts(clips):
    """Really: this process may open no more."""
    file = str(clips / "0.flac")
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            taken.extend(os.open(file, os.O_RDONLY) for _ in count())
        verdict = check_file(file, "decode")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
    assert verdict.is_passing
    assert verdict.reason == "unreadable: Too many open files"
    assert check_file(file, "decode").ok


@pytest.mark.parametrize("error", [MemoryError(), soundfile.LibsndfileError(17), soundfile.LibsndfileError(2)])
def test_want_of_memory_and_troubles_that_pass_at_once_are_no_verdicts(clips, monkeypatch, error):
    real, calls = integrity.decode_all, []

    def decode_all(path, times):
        calls.append(path)
        if len(calls) <= times:
            raise AudioError(path, error) from error
        return real(path)

    monkeypatch.setattr(integrity, "decode_all", lambda path: decode_all(path, times=9))
    verdict = check_file(str(clips / "0.flac"), "decode")
    assert verdict.is_passing
    assert verdict.reason.startswith("unreadable: ")
    calls.clear()
    monkeypatch.setattr(integrity, "decode_all", lambda path: decode_all(path, times=1))
    assert check_file(str(clips / "0.flac"), "decode").ok


def test_a_read_error_that_a_decoder_takes_for_damage_is_told_as_what_it_is(clips, monkeypatch):
    def decode_all(path):
        raise AudioError(path, "undecodable: flac decoder lost sync")

    def pread(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(integrity, "decode_all", decode_all)
    assert not check_file(str(clips / "0.flac"), "decode").is_passing
    monkeypatch.setattr(os, "read", pread)
    verdict = check_file(str(clips / "0.flac"), "decode")
    assert verdict.reason == "unreadable: Input/output error"
    assert verdict.is_passing


def test_a_process_that_somebody_killed_says_nothing_about_its_file(monkeypatch):
    monkeypatch.setattr(integrity, "_check_batch", check_or_be_killed)
    verdicts = {verdict.path: verdict for verdict in check_files(["/killed", "/crash", "/other"], "decode", 1)}
    assert verdicts["/killed"].is_passing
    assert "SIGKILL" in verdicts["/killed"].reason
    assert verdicts["/crash"].reason == "crashes the decoder"
    assert not verdicts["/crash"].is_passing
    assert signal.SIGKILL  # sent by `check_or_be_killed`


def test_the_inspector_tells_and_counts_them_and_writes_no_verdict(clips, refuse, capsys, monkeypatch):
    from util import anns_inspector

    monkeypatch.chdir(clips)
    refuse(clips / "1.flac", errno.EACCES)
    monkeypatch.setattr("util.inspector.check.check_files", lambda files, how, _: (check_file(f, how) for f in files))
    arguments = ["--ann", "a.json", "--prefix", str(clips), "--check-integrity", "--verdicts", "v.jsonl", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", ["anns_inspector.py", *arguments])
    anns_inspector.main()
    told = capsys.readouterr().out
    assert "1 clips could not be read now: Permission denied (1)" in told
    assert "unreadable: Permission denied" in told
    assert sorted(Path(line["path"]).name for line in json_lines(clips / "v.jsonl")) == ["0.flac", "2.flac"]


# ---- training


def test_training_replaces_what_it_cannot_read_now_and_quarantines_nothing_for_it(clips, refuse, caplog):
    caplog.set_level("INFO")
    dataset = SALMONNDataset(Annotations(clips / "a.json"), ClipPaths(str(clips)), max_seconds=30.0)
    refuse(clips / "1.flac", errno.ESTALE)
    items = [dataset[i] for i in range(3)]
    refuse(clips / "1.flac", None)
    assert all(item["raw_wav"] is not None for item in items)
    quarantine = Quarantine(clips / "run")
    for item in items:
        quarantine.add({"tried": item["tried"], "unreadable": item["unreadable"]})
    counters = quarantine.sync()
    assert counters["bad"] == sum(len(item["unreadable"]) for item in items) >= 2
    assert (counters["bad_files"], counters["passing_files"]) == (1, 1)
    assert [line["path"] for line in json_lines(clips / "run/quarantine.jsonl")] == [str(clips / "2.flac")]
    assert "1.flac: unreadable: Stale file handle" in caplog.text


def test_a_clip_that_can_be_read_at_the_second_try_is_heard(clips, monkeypatch):
    real, failed = dataset_module.load_clip, []

    def load_clip(paths, *args):
        if not failed:
            failed.append(paths)
            raise AudioError(paths[0], "unreadable: Stale file handle")
        return real(paths, *args)

    monkeypatch.setattr(dataset_module, "load_clip", load_clip)
    item = SALMONNDataset(Annotations(clips / "a.json"), ClipPaths(str(clips)), max_seconds=30.0)[0]
    assert (item["index"], item["unreadable"], item["tried"]) == (0, [], 1)


def test_too_many_of_them_end_a_run_with_their_name_and_another_remedy(tmp_path):
    quarantine = Quarantine(tmp_path, max_bad_fraction=0.05)
    verdicts = [Verdict(f"{i}.wav", False, "unreadable: Permission denied") for i in range(100)]
    quarantine.add({"tried": MIN_TRIED, "unreadable": verdicts})
    quarantine.sync()
    for part in ("0.wav: unreadable: Permission denied", "permissions", "are in no list"):
        assert part in quarantine.too_many()
    assert json_lines(tmp_path / "quarantine.jsonl") == []


@pytest.mark.parametrize("how", ["header", "decode"])
def test_before_training_they_are_told_by_name(clips, refuse, caplog, monkeypatch, how):
    caplog.set_level("INFO")
    monkeypatch.setattr("salmonn.data.filtering.check_files", lambda files, how, _: (check_file(f, how) for f in files))
    (clips / "c.yaml").write_text("run: {device: cpu}")
    datasets = load_config(clips / "c.yaml").datasets
    datasets.prefix, datasets.integrity = str(clips), how
    refuse(clips / "1.flac", errno.EACCES)
    monkeypatch.setattr("salmonn.data.filtering.check_files", lambda files, how, _: (check_file(f, how) for f in files))
    assert 1 not in usable_entries(Annotations(clips / "a.json"), datasets)
    assert "left out [(no folder)] unreadable: Permission denied: 1" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_folder_that_cannot_be_looked_into_is_not_told_as_absent_files(tmp_path, monkeypatch, number):
    def refused(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    clip = f"{tmp_path}/closed/1.wav"
    monkeypatch.setattr(os, "listdir", refused)
    monkeypatch.setattr(os, "lstat", refused)
    assert FolderCache().exists(clip)
    assert ClipPaths(str(tmp_path)).of("/closed/1.wav") == [clip]


# ---- files repaired with their old size and time


def damaged_then_repaired(folder: Path) -> tuple[str, Path]:
    """A file, and a list with the verdict on it from before it was repaired as rsync -a does."""
    good, file, listed = folder / "0.flac", folder / "x.flac", folder / "v.jsonl"
    data = good.read_bytes()
    file.write_bytes(data[:200] + bytes(len(data) - 200))
    status = file.stat()
    verdict = check_file(str(file), "decode")
    assert not verdict.ok
    with VerdictList(listed).append_to() as out:
        write_verdicts(out, [verdict])
    copy = folder / ".x.flac.tmp"
    copy.write_bytes(data)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    return str(file), listed


def test_a_file_repaired_with_its_old_size_and_time_is_looked_at_again(clips):
    file, listed = damaged_then_repaired(clips)
    assert unverified_files([file], listed) == {file: NOT_VERIFIED}
    assert quarantined_files([file], listed) == {}
    assert check_integrity([file], listed, jobs=1) == (1, {})
    assert unverified_files([file], listed) == {}


def test_a_good_verdict_outlives_a_copy_of_the_corpus(clips):
    """Whose files have their old sizes and times, and new inodes: millions would have to be decoded anew."""
    file, listed = clips / "0.flac", clips / "v.jsonl"
    check_integrity([str(file)], listed, jobs=1)
    status, data = file.stat(), file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert unverified_files([str(file)], listed) == {}


def test_bad_verdicts_of_earlier_versions_still_hold(clips):
    """They do not know when a file's name or rights were changed last."""
    file, listed = str(clips / "2.flac"), clips / "v.jsonl"
    with listed.open("ab") as out:
        write_verdicts(out, [Verdict(file, False, "undecodable: lost sync", *integrity.version_of(file)[1:])])
    assert unverified_files([file], listed) == {file: "undecodable: lost sync"}
    assert quarantined_files([file], listed) == {file: "quarantined: undecodable: lost sync"}
