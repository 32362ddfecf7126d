"""util/inspector/convert.py: the same audio under new paths, resumable, never in place, never two in one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonn.audio import decode
from salmonn.audio.decode import load_audio, load_clip
from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from tests.fixtures.deadly import convert_or_die, convert_until_full
from util.inspector import convert as module
from util.inspector.convert import convert, convert_file

RELEASED = "/mnt/bn/audio-visual-llm-data/datasets"


def sweep(seconds: float, rate: int, peak: float = 0.5) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return peak * np.sin(2 * np.pi * (50 * t + (7000 - 50) / (2 * seconds) * t**2))


def write(file: Path, wav: np.ndarray, rate: int = 16_000, **how: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, wav, rate, **how)
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """media/ with clips of several formats, and ann/a.json about them."""
    write(tmp_path / "media/A/1.wav", sweep(1.5, 44_100), 44_100)
    write(tmp_path / "media/A/2.flac", sweep(1.2, 16_000))
    write(tmp_path / "media/A/3.mp3", sweep(1.5, 24_000), 24_000)  # annotated as .wav
    write(tmp_path / "media/B/4.wav", sweep(2.0, 8_000, 0.3), 8_000)
    (tmp_path / "media/B/damaged.wav").write_bytes((tmp_path / "media/B/4.wav").read_bytes()[:1000])
    entries = [
        {"path": "/A/1.wav", "text": "ä", "n": 7},
        {"path": "/A/2.flac", "text": "b", "expand_wav": [f"{RELEASED}/A/1.wav", "B/4.wav"], "task": "QA"},
        {"path": "A/3.wav", "text": "c", "expand_wav": []},
        {"path": "/B/damaged.wav", "text": "d"},
        {"path": "/A/1.wav", "text": "e", "expand_wav": ["/B/missing.wav"]},
        {"path": "/../x.wav", "text": "f"},
    ]
    return annotate(tmp_path, entries)


def annotate(folder: Path, entries: list[dict]) -> Path:
    (folder / "ann").mkdir(exist_ok=True)
    (folder / "ann/a.json").write_text(json.dumps({"annotation": entries}, ensure_ascii=False), encoding="utf-8")
    return folder


def run(folder: Path, out: str = "out", path_map: tuple = (), **options) -> module.Conversion:
    annotations = Annotations(folder / "ann/a.json", need_text=False)
    return convert(annotations, ClipPaths(str(folder / "media"), path_map), folder / out, jobs=1, **options)


def test_the_new_annotation_file_opens_and_its_clips_load(source):
    result = run(source)
    assert (result.entries, result.files) == (3, {"converted": 4, "failed": 2})
    assert [i for i, _ in result.left_out] == [3, 4, 5]
    reasons = "\n".join(reason for _, reason in result.left_out)
    assert all(what in reasons for what in ("damaged.wav: truncated", "missing.wav: file does not exist", "leads out"))
    new, old = Annotations(result.annotation), Annotations(source / "ann/a.json")
    assert [new.as_written(i) for i in range(3)] == [
        {"path": "/A/1.flac", "text": "ä", "n": 7},
        {"path": "/A/2.flac", "text": "b", "expand_wav": ["/A/1.flac", "/B/4.flac"], "task": "QA"},
        {"path": "/A/3.flac", "text": "c", "expand_wav": []},
    ]
    for i, entry in enumerate(new.entries()):
        files = ClipPaths(str(source / "out")).of(entry.path, entry.expand_wav)
        assert all(soundfile.info(file).subtype == "PCM_16" for file in files)
        before = old[i]
        expected = load_clip(ClipPaths(str(source / "media")).of(before["path"], before["expand_wav"]))
        np.testing.assert_allclose(load_clip(files), expected, atol=1e-3)
    assert not [file for file in (source / "out").rglob("*") if file.suffix == ".tmp"]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_whole_clips_sound_the_same_across_block_borders(tmp_path, monkeypatch, rate):
    clip = write(tmp_path / "a.wav", np.stack([sweep(35.3, rate), sweep(35.3, rate, 0.1)], 1), rate, subtype="FLOAT")
    for channel in ("first", "mean"):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "_BLOCK_SECONDS", 1)
            assert convert_file(str(clip), f"{tmp_path}/{channel}.flac", channel) == ("converted", "")
        expected, actual = load_audio(clip, 60, channel), load_audio(tmp_path / f"{channel}.flac", 60)
        assert len(actual) == len(expected)
        np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_peaks_are_cut_and_do_not_wrap(tmp_path):
    loud = write(tmp_path / "a.wav", sweep(1.0, 44_100, 1.5), 44_100, subtype="FLOAT")
    assert convert_file(str(loud), f"{tmp_path}/a.flac") == ("clipped", "")
    np.testing.assert_allclose(load_audio(tmp_path / "a.flac"), np.clip(load_audio(loud), -1, 1), atol=1e-3)


def test_a_killed_run_is_continued_and_newer_sources_are_converted_anew(source):
    run(source)
    for name in ("A/1.flac", "B/4.flac", "a.json"):  # as if killed before these
        (source / "out" / name).unlink()
    (source / "out/A/.1.flac.12.tmp").write_bytes(b"half")
    kept = {name: (source / "out" / name).stat().st_mtime_ns for name in ("A/2.flac", "A/3.flac")}
    result = run(source)
    assert (result.entries, result.files) == (3, {"converted": 2, "kept": 2, "failed": 2})
    assert kept == {name: (source / "out" / name).stat().st_mtime_ns for name in kept}
    assert not list((source / "out").rglob("*.tmp"))
    assert not list((source / "out").rglob(".*.tmp"))
    newer = (source / "out/B/4.flac").stat().st_mtime_ns + 10**9
    os.utime(source / "media/B/4.wav", ns=(newer, newer))
    assert run(source).files == {"converted": 1, "kept": 3, "failed": 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda flac: flac[: len(flac) // 2], lambda flac: flac[:-1], lambda flac: bytes(len(flac)), lambda _: b"",
        lambda flac: np.random.default_rng(0).bytes(len(flac)), lambda flac: flac[:-200] + bytes(200),
        lambda flac: flac[: len(flac) // 2] + bytes([flac[len(flac) // 2] ^ 1]) + flac[len(flac) // 2 + 1 :],
        lambda flac: flac[:30] + bytes([flac[30] ^ 1]) + flac[31:],  # of the MD5 itself
        lambda flac: flac[:18] + bytes([flac[18] ^ 1]) + flac[19:],  # of the rate
    ],
)  # fmt: skip
def test_a_clip_that_was_damaged_since_is_converted_again_and_told(source, caplog, damage):
    whole = run(source)
    target = source / "out/A/3.flac"
    content, time = target.read_bytes(), target.stat().st_mtime_ns
    target.write_bytes(damage(content))
    os.utime(target, ns=(time, time))
    result = run(source)
    assert (result.entries, result.files) == (whole.entries, {"converted": 1, "kept": 3, "failed": 2})
    assert target.read_bytes() == content
    assert [record.message for record in caplog.records] == [f"{target} was damaged, and is made anew"]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, b'{"channel":"first"', b'{"channel":"mean","prefix":"x", "crc32": "00000001"}\n']
)
def test_damaged_settings_of_a_folder_make_all_clips_anew(source, caplog, content):
    """How they were made is not known any more."""
    run(source)
    whole = {file: file.read_bytes() for file in (source / "out").rglob("*") if file.is_file()}
    (source / "out/.conversion.json").write_bytes(content)
    assert run(source).files == {"converted": 4, "failed": 2}
    assert caplog.text.count("is damaged") == 1
    assert {file: file.read_bytes() for file in whole} == whole
    assert run(source).files == {"kept": 4, "failed": 2}


def test_settings_of_an_earlier_version_are_known(source):
    run(source)
    (source / "out/.conversion.json").write_text(json.dumps({"channel": "first", "prefix": f"{source}/media"}))
    assert run(source).files == {"kept": 4, "failed": 2}


def test_a_kill_while_the_settings_were_written_is_no_foreign_folder(source):
    (source / "out").mkdir()
    (source / "out/..conversion.json.123.tmp").write_bytes(b"half")
    assert run(source).files["converted"] == 4
    assert not list((source / "out").rglob("*.tmp"))


def test_only_usable_entries_are_converted(source):
    result = run(source, usable=np.arange(6) == 2)
    assert (result.entries, result.files, result.left_out) == (1, {"converted": 1}, [])


def test_clips_of_one_stem_stay_apart(tmp_path):
    for name, peak in (("a.wav", 0.1), ("a.flac", 0.3), ("b.wav", 0.5)):
        write(tmp_path / "media" / name, sweep(1.0, 16_000, peak))
    write(tmp_path / "other/b.wav", sweep(1.0, 16_000, 0.7))
    annotate(tmp_path, [{"path": path} for path in ("a.wav", "a.flac", "b.wav", "/x/b.wav")])
    result = run(tmp_path, path_map=({"from": "/x", "to": str(tmp_path / "other")},))
    paths = [entry.path for entry in Annotations(result.annotation, need_text=False).entries()]
    assert paths == ["/a.wav.flac", "/a.flac", "/b.flac", "/x/b.flac"]
    peaks = [np.abs(load_audio(f"{tmp_path}/out{path}")).max() for path in paths]
    np.testing.assert_allclose(peaks, [0.1, 0.3, 0.5, 0.7], atol=0.01)


def test_two_clips_with_one_target_are_refused(tmp_path):
    for name in ("b.flac", "b.wav", "b.wav.wav"):
        write(tmp_path / "media" / name, sweep(1.0, 16_000))
    annotate(tmp_path, [{"path": "b.wav"}, {"path": "/b.wav"}, {"path": "x/../b.wav"}, {"path": "b.wav.wav"}])
    with pytest.raises(UserError, match=r"b\.wav\.wav and another clip would both become .*/b\.wav\.flac"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["media", "media/new", ".", "ann"])
def test_it_never_works_in_place(source, out):
    before = sorted(source.rglob("*"))
    with pytest.raises(UserError, match="choose a folder apart"):
        run(source, out)
    assert [file for file in sorted(source.rglob("*")) if not file.name.startswith(".a.json.index")] == before


def test_sources_inside_the_target_are_refused_without_a_prefix(tmp_path):
    clip = write(tmp_path / "out/a.wav", sweep(1.0, 16_000))
    (tmp_path / "out/.conversion.json").write_text('{"channel":"first","prefix":""}')
    annotate(tmp_path, [{"path": str(clip)}])
    with pytest.raises(UserError, match="choose a folder apart"):
        convert(Annotations(tmp_path / "ann/a.json", need_text=False), ClipPaths(), tmp_path / "out", jobs=1)


def test_a_folder_made_with_other_settings_is_refused(source):
    run(source)
    with pytest.raises(UserError, match="were made with"):
        run(source, channel="mean")


def test_a_full_disk_says_how_far_it_came(source, monkeypatch):
    monkeypatch.setattr(module, "convert_file", convert_until_full)
    with pytest.raises(UserError, match=r"(?s)\d of 6 files.*No space left.*re-run goes on"):
        run(source)
    monkeypatch.undo()
    assert run(source).entries == 3


def test_a_file_that_kills_its_process_is_named(source, monkeypatch):
    monkeypatch.setattr(module, "convert_file", convert_or_die)
    result = run(source)
    assert result.files["failed"] == 3
    assert result.files.total() == 6
    assert result.left_out[0] == (1, f"{source}/media/B/4.wav: crashes the decoder")


def test_nothing_to_convert_is_said(tmp_path):
    annotate(tmp_path, [{"path": "a.wav"}])
    with pytest.raises(UserError, match=r"entry 0: .*a\.wav: file does not exist"):
        run(tmp_path)


def test_a_clip_without_samples_at_16_khz_is_not_written(tmp_path):
    tiny = write(tmp_path / "a.wav", np.zeros(1), 768_000)
    assert convert_file(str(tiny), f"{tmp_path}/a.flac") == ("failed", "too short: no samples are left at 16 kHz")
    assert not (tmp_path / "a.flac").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    write(tmp_path / "media/a.wav", sweep(1.0, 16_000))
    foreign = write(tmp_path / "out/a.flac", sweep(2.0, 44_100), 44_100)
    before = foreign.read_bytes()
    annotate(tmp_path, [{"path": "/a.wav"}])
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path)
    assert foreign.read_bytes() == before


def test_a_source_that_was_replaced_by_an_older_file_is_converted_again(tmp_path):
    source = write(tmp_path / "media/a.wav", sweep(1.0, 16_000))
    annotate(tmp_path, [{"path": "/a.wav"}])
    assert run(tmp_path).files["converted"] == 1
    write(source, sweep(2.0, 16_000))
    os.utime(source, ns=(10**9, 10**9))
    assert run(tmp_path).files["converted"] == 1
    assert run(tmp_path).files["kept"] == 1
