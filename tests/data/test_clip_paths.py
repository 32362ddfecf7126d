"""Where annotated clips are looked for: prefix, path_map, other extensions, and nothing outside."""

import os
import unicodedata

import pytest

from salmonn.audio.decode import AudioError
from salmonn.common.errors import UserError
from salmonn.data.clip_paths import ClipPaths, FolderCache, corpus_of


@pytest.mark.parametrize(
    ("prefix", "path", "file"),
    [
        ("/data", "/A/1.wav", "/data/A/1.wav"),
        ("/data/", "A/1.wav", "/data/A/1.wav"),
        ("/data", "A/1.wav", "/data/A/1.wav"),
        ("", "A/1.wav", f"{os.getcwd()}/A/1.wav"),
        ("data/./x/..", "/A/1.wav", f"{os.getcwd()}/data/A/1.wav"),
        ("", "/A/1.wav", "/A/1.wav"),
        ("/data", "/A/x..y.wav", "/data/A/x..y.wav"),
        ("/", "/A/1.wav", "/A/1.wav"),
        ("/data", "/mnt/bn/audio-visual-llm-data/datasets/Voxceleb1/1.wav", "/data/Voxceleb1/1.wav"),
    ],
)
def test_the_prefix_stands_in_front_and_the_authors_cluster_is_mapped(prefix, path, file):
    assert ClipPaths(prefix).locate(path) == file


def test_the_first_mapping_that_fits_counts_and_folders_are_whole():
    clip_paths = ClipPaths(
        "/data",
        [
            {"from": "/old/special", "to": "/fast"},
            {"from": "/old/", "to": "{prefix}/new"},
            {"from": "/mnt/bn/audio-visual-llm-data/datasets", "to": "/mine"},
        ],
    )
    assert clip_paths.locate("/old/special/1.wav") == "/fast/1.wav"
    assert clip_paths.locate("/old/specials/1.wav") == "/data/new/specials/1.wav"
    assert clip_paths.locate("/older/1.wav") == "/data/older/1.wav"
    assert clip_paths.locate("/mnt/bn/audio-visual-llm-data/datasets/1.wav") == "/mine/1.wav"


@pytest.mark.parametrize("mapping", [{"from": "/a"}, {"from": "", "to": "/b"}, {"from": "/", "to": "/b"}, {"/a": "/b"}])
def test_half_a_mapping_is_refused(mapping):
    with pytest.raises(UserError, match=r"datasets\.path_map"):
        ClipPaths("", [mapping])


@pytest.mark.parametrize("path", ["/../etc/passwd", "/A/../../data2/1.wav", "../1.wav", "/A/..", "/link/../1.wav"])
def test_nothing_is_taken_from_outside_the_prefix(path):
    with pytest.raises(AudioError, match=r"datasets\.path_map"):
        ClipPaths("/data").locate(path)


def test_a_mapping_may_lead_outside_the_prefix_but_not_out_of_its_folder():
    clip_paths = ClipPaths("/data", [{"from": "/../shared", "to": "/shared"}])
    assert clip_paths.locate("/../shared/1.wav") == "/shared/1.wav"
    with pytest.raises(AudioError):
        clip_paths.locate("/../shared/../secret.wav")


def test_an_absent_wav_is_found_under_its_other_extensions(tmp_path):
    clip_paths = ClipPaths(str(tmp_path))
    for exists in ({}, {"exists": FolderCache().exists}):
        for name in ("a.mp3", "b.wav", "b.flac", "c.ogg", "d.opus", "e.m4a"):
            (tmp_path / name).touch()
        found = [clip_paths.of(f"/{stem}.wav", **exists)[0].rpartition("/")[2] for stem in "abcdef"]
        assert found == ["a.mp3", "b.wav", "c.ogg", "d.opus", "e.m4a", "f.wav"]
        assert clip_paths.of("/a.flac", **exists) == [f"{tmp_path}/a.flac"]  # only .wav stands for others


def test_expand_wav_clips_follow_the_same_rules(tmp_path):
    (tmp_path / "b.mp3").touch()
    assert ClipPaths(str(tmp_path)).of("/a.flac", ["/b.wav"]) == [f"{tmp_path}/a.flac", f"{tmp_path}/b.mp3"]


@pytest.mark.parametrize(
    ("path", "corpus"), [("/A/b/c.wav", "A"), ("A/c.wav", "A"), ("./A/c.wav", "A"), ("/c.wav", "(no folder)")]
)
def test_the_corpus_is_the_first_folder(path, corpus):
    assert corpus_of(path) == corpus


def test_a_folder_that_may_not_be_listed_hides_nothing(tmp_path, monkeypatch):
    """Home and scratch folders of clusters are often open to pass through and closed to look at."""
    (tmp_path / "closed/A").mkdir(parents=True)
    for name in ("closed/1.wav", "closed/A/2.mp3"):
        (tmp_path / name).touch()
    listdir = os.listdir

    def closed(folder):
        if folder == str(tmp_path / "closed"):
            raise PermissionError(folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", closed)
    cache = FolderCache()
    assert cache.exists(f"{tmp_path}/closed/1.wav")
    assert cache.exists(f"{tmp_path}/closed/A/2.mp3")
    assert not cache.exists(f"{tmp_path}/closed/3.wav")
    assert not cache.exists(f"{tmp_path}/closed/B/2.mp3")


# ---- names that look the same: composed (NFC, as typed) and decomposed (NFD, as copied from a Mac)


def nfc(text):
    return unicodedata.normalize("NFC", text)


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("annotated", "on_disk"), [(nfc, nfd), (nfd, nfc)])
@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/Küche/Tür.wav", "Küche/Tür.wav"),
        ("/Küche/plain.wav", "Küche/plain.wav"),
        ("/plain/Tür.wav", "plain/Tür.mp3"),
        ("/한국어/말.flac", "한국어/말.flac"),
        ("/ガイド/が.wav", "ガイド/が.ogg"),
        ("/a/Ệ ǖ.wav", "a/Ệ ǖ.wav"),
    ],
)
def test_a_name_is_found_in_its_other_spelling(tmp_path, annotated, on_disk, path, file, cached):
    there = tmp_path / on_disk(file)
    there.parent.mkdir(parents=True)
    there.touch()
    exists = {"exists": FolderCache().exists} if cached else {}
    assert ClipPaths(str(tmp_path)).of(annotated(path), [annotated(path)], **exists) == [str(there)] * 2


def test_each_part_of_a_path_has_its_own_spelling(tmp_path):
    there = tmp_path / nfc("Küche") / nfd("Tür") / nfc("Öl.wav")
    there.parent.mkdir(parents=True)
    there.touch()
    for path in map("/Küche/Tür/Öl.wav".__class__, (nfc("/Küche/Tür/Öl.wav"), nfd("/Küche/Tür/Öl.wav"))):
        assert ClipPaths(str(tmp_path)).of(path) == [str(there)]


def test_what_is_there_as_it_is_annotated_comes_first_and_what_is_nowhere_keeps_its_name(tmp_path):
    for form in (nfc, nfd):
        (tmp_path / form("Tür.wav")).touch()
    for form in (nfc, nfd):
        assert ClipPaths(str(tmp_path)).of(f"/{form('Tür.wav')}") == [f"{tmp_path}/{form('Tür.wav')}"]
        assert ClipPaths(str(tmp_path)).of(f"/{form('Öl.wav')}") == [f"{tmp_path}/{form('Öl.wav')}"]


def test_a_mapped_folder_and_a_prefix_have_other_spellings_too(tmp_path):
    there = tmp_path / nfd("Töne/Tür.wav")
    there.parent.mkdir()
    there.touch()
    mapped = ClipPaths("/nowhere", [{"from": nfd("/Küche"), "to": str(tmp_path / nfc("Töne"))}])
    assert mapped.of(nfc("/Küche/Tür.wav")) == [str(there)]
    assert ClipPaths(str(tmp_path / nfc("Töne"))).of(nfc("/Tür.wav")) == [str(there)]


# ---- corpora of absolute paths


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/home/me/data/A/1.wav", "/home/me/data/B/x/2.wav"], ["A", "B"]),
        (["/home/me/data/A/1.wav", "/home/me/data/A/2.wav"], ["A", "A"]),
        (["/home/me/data/A/1.wav", "/home/me/data/A/x/2.wav"], ["A", "A"]),
        ([f"/data/LibriSpeech/{i}/1.wav" for i in range(40)], ["LibriSpeech"] * 40),
        (["/home/me/data/A/1.wav", "/home/me/data/B/2.wav", "C/3.wav"], ["A", "B", "C"]),
        (["/data/A/1.wav", "/mnt/B/2.wav"], ["data", "mnt"]),
        (["/1.wav"], ["(no folder)"]),
        (["A/1.wav"], ["A"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/", "//"])
def test_corpora_of_absolute_paths_are_folders_below_what_they_share(paths, names, prefix):
    clip_paths = ClipPaths(prefix)
    root = clip_paths.root_of(path.rpartition("/")[0] for path in paths)
    assert [corpus_of(path, root) for path in paths] == names
    assert ClipPaths("/data").root_of(["/x/A", "/x/B"]) == ""


@pytest.mark.parametrize("depth", [10, 900, 3000])
@pytest.mark.parametrize("name", ["a", "ü"])
def test_a_path_of_thousands_of_folders_is_looked_for_and_not_found(tmp_path, depth, name):
    cache, paths = FolderCache(), ClipPaths(str(tmp_path))
    assert not cache.exists(paths.of(f"{name}/" * depth + "clip.wav", exists=cache.exists)[0])
    (tmp_path / "a/a").mkdir(parents=True)
    (tmp_path / "a/a/clip.wav").touch()
    fresh = FolderCache()
    assert fresh.exists(f"{tmp_path}/a/a/clip.wav")
    assert fresh.names(f"{tmp_path}/a//a/") == {"clip.wav"}
