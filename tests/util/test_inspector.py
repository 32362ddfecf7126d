"""util/anns_inspector.py: what counts as ready, what is printed, what is refused."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import unicodedata
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from salmonn.data.clip_paths import OTHER_EXTENSIONS, RELEASED_PATH_MAP, ClipPaths
from salmonn.data.integrity import VerdictList, write_verdicts
from tests.fixtures.commands import run_command
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, n_lines, wait_until
from util import anns_inspector
from util.inspector.readiness import count_ready

FORMS, EXTENSIONS = ("NFC", "NFD"), (".wav", ".mp3")
RELEASED_PREFIX = RELEASED_PATH_MAP[0]["from"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two corpora under media/ with a present, an empty and a missing clip, and a folder named like one."""
    (tmp_path / "media/A").mkdir(parents=True)
    (tmp_path / "media/B/folder.wav").mkdir(parents=True)
    for name in ("A/1.wav", "A/2.wav", "B/3.wav"):
        (tmp_path / "media" / name).write_text("x")
    (tmp_path / "media/A/empty.wav").touch()
    (tmp_path / "ann").mkdir()
    return tmp_path


def annotate(path: Path, *entries: tuple[str, ...]) -> None:
    """Write entries (path, task, appended clips ...); the text is left out: readiness does not need it."""
    content = [{"path": e[0], **({"task": e[1]} if e[1] else {}), "expand_wav": list(e[2:])} for e in entries]
    data = json.dumps({"annotation": content}).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def inspect(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_command(str(ROOT / "util/anns_inspector.py"), *arguments, cwd=folder)


def test_ready_means_that_every_clip_of_the_entry_is_a_file_with_content(world: Path):
    annotate(
        world / "ann/stage1.json",
        ("/A/1.wav", ""),
        ("/A/empty.wav", "asr"),
        ("/A/missing.wav", "asr"),
        ("/B/folder.wav", "asr"),
        ("/A/1.wav", "speaker_verification", "/B/3.wav"),
        ("/A/2.wav", "speaker_verification", "/B/missing.wav"),
    )
    result = inspect(world, "--prefix", str(world / "media"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ann/stage1.json",
        "[asr] A | ready: 1, not_ready: 2, total: 3 | ready_rate: 33.33%",
        "[asr] B | ready: 0, not_ready: 1, total: 1 | ready_rate: 0.00%",
        "[asr] all corpora | ready: 1, not_ready: 3, total: 4 | ready_rate: 25.00%",
        "[speaker_verification] A | ready: 1, not_ready: 1, total: 2 | ready_rate: 50.00%",
        "all tasks | ready: 2, not_ready: 4, total: 6 | ready_rate: 33.33%",
        "",
    ]


def test_json_holds_the_same_numbers_for_plain_and_compressed_files(world: Path):
    for name in ("plain.json", "packed.json.gz"):
        annotate(world / name, ("/A/1.wav", ""), ("3.wav", "QA"))
    result = inspect(
        world, "--prefix", f"{world}/media/B/", "--ann", "plain.json", "packed.json.gz", "--json", "out/ready.json"
    )
    assert result.returncode == 0, result.stderr
    plain, packed = json.loads((world / "out/ready.json").read_text())["files"]
    assert plain["total"] == {"ready": 1, "not_ready": 1, "total": 2, "ready_rate": 0.5}
    assert [(row["task"], row["corpus"], row["ready"]) for row in plain["corpora"]] == [
        ("QA", "(no folder)", 1),
        ("asr", "A", 0),
    ]
    assert packed == {**plain, "file": "packed.json.gz"}


def test_without_files_it_says_what_to_put_where(world: Path):
    result = inspect(world)
    assert result.returncode == 2
    assert "no annotation file in ann/" in result.stderr
    assert "stage1_train.json" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotation": [{"path": "a.wav"}, {"text": "t"}]}', "entry 1: no 'path'"),
        ('{"annotation": [{"path": ""}]}', "entry 0: 'path' is empty"),
        ('{"annotation": []}', "has no entries"),
        ('{"annotation": ', "cannot be read"),
        ('{"entries": []}', "expected"),
    ],
)
def test_a_malformed_file_is_one_message_and_exit_code_2(world: Path, content: str, message: str):
    (world / "ann/bad.json").write_text(content)
    result = inspect(world)
    assert result.returncode == 2
    assert "ann/bad.json" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_files_that_are_not_there_are_one_message_without_a_bar(world: Path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    annotate(world / "ann/own.json", ("/A/1.wav", ""))
    monkeypatch.setattr(sys, "argv", ["inspector", "--ann", "ann/ow.json", "ann/gone.json", "--split", "1", "0", "0"])
    with pytest.raises(UserError) as error:
        anns_inspector.main()
    assert str(error.value) == (
        "--ann ann/ow.json does not exist; did you mean ann/own.json?\n--ann ann/gone.json does not exist"
    )
    monkeypatch.setattr(sys, "argv", ["inspector", "--ann", "ann"])
    with pytest.raises(UserError, match="annotation file ann is not a file"):
        anns_inspector.main()
    assert "0.00B" not in capsys.readouterr().err


def clips(folder: Path, n: int, seconds: float = 0.1) -> None:
    """n noise clips at 16 and 32 kHz in folder/media/A, with an annotation file ann/a.json."""
    (folder / "media/A").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rate = (16_000, 32_000)[i % 2]
        noise = 0.1 * np.random.default_rng(i).standard_normal(int(seconds * rate))
        soundfile.write(folder / f"media/A/{i}.flac", noise, rate)
    annotate(folder / "ann/a.json", *((f"/A/{i}.flac", "asr") for i in range(n)))


def verdicts(folder: Path) -> list[dict]:
    lines = (folder / "ann/verdicts.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def test_readiness_falls_back_to_other_extensions_and_never_leaves_the_prefix(world: Path):
    (world / "media/A/mp.mp3").write_text("x")
    (world / "outside.wav").write_text("x")
    annotate(world / "ann/a.json", ("/A/mp.wav", "asr"), ("/../outside.wav", "asr"), ("/A/../../outside.wav", "asr"))
    result = inspect(world, "--prefix", str(world / "media"), "--list-missing", "missing.txt")
    assert "all tasks | ready: 1, not_ready: 2, total: 3" in result.stdout
    assert (world / "missing.txt").read_text().splitlines() == ["/../outside.wav", "/A/../../outside.wav"]


def test_mapped_folders_are_looked_at_where_they_are(world: Path):
    annotate(world / "ann/a.json", ("/Else/deep/3.wav", "asr"), ("/A/1.wav", "asr", RELEASED_PREFIX + "/B/3.wav"))
    result = inspect(world, "--prefix", str(world / "media"), "--path-map", f"/Else/deep={world}/media/B")
    assert "all tasks | ready: 2, not_ready: 0, total: 2" in result.stdout
    assert inspect(world, "--path-map", "/nothing").returncode == 2


def test_the_list_of_missing_clips_names_each_once_over_all_files(world: Path):
    annotate(world / "ann/a.json", ("/A/1.wav", "asr"), ("/A/gone.wav", "asr"), ("/A/gone.wav", "QA"))
    annotate(world / "ann/b.json", ("/A/2.wav", "sv", "/A/empty.wav"))
    result = inspect(world, "--prefix", str(world / "media"), "--list-missing", "missing.txt")
    assert result.returncode == 0, result.stderr
    assert (world / "missing.txt").read_text().splitlines() == ["/A/gone.wav", "/A/empty.wav"]


def test_a_pipe_of_which_nothing_comes_is_no_annotation_file(tmp_path: Path, monkeypatch):
    os.mkfifo(tmp_path / "a.json")
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: pytest.fail(f"{path} is waited for"))
    with pytest.raises(UserError, match=r"a\.json is not a file"):
        count_ready(tmp_path / "a.json", ClipPaths(str(tmp_path)))


def test_an_unusual_layout_is_read_all_the_same(world: Path):
    content = {"info": {"of": ["us"]}, "annotation": [{"path": "/A/1.wav"}, {"path": "/A/gone.wav", "text": "}, {"}]}
    (world / "ann/a.json").write_text(json.dumps(content, indent=1))
    assert "ready: 1, not_ready: 1, total: 2" in inspect(world, "--prefix", str(world / "media")).stdout


def test_integrity_decodes_each_clip_once_and_again_only_when_it_changes(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 8)
    whole = (tmp_path / "media/A/3.flac").read_bytes()
    (tmp_path / "media/A/3.flac").write_bytes(whole[: len(whole) // 2])
    command = ("--prefix", "media", "--check-integrity", "--json", "r.json")
    first = inspect(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    assert "8 clips, 8 of them decoded now" in first.stdout
    assert json.loads((tmp_path / "r.json").read_text())["files"][0]["integrity"]["files"] == [
        {"corpus": "A", "verdict": "good", "files": 7},
        {"corpus": "A", "verdict": "undecodable", "files": 1},
    ]
    assert "8 clips, 0 of them decoded now" in inspect(tmp_path, *command).stdout
    (tmp_path / "media/A/3.flac").write_bytes(whole)
    third = inspect(tmp_path, *command)
    assert "8 clips, 1 of them decoded now" in third.stdout
    assert "undecodable" not in third.stdout
    assert len(verdicts(tmp_path)) == 9


def test_silent_and_very_short_clips_are_classes_of_their_own_that_stay_ready(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 4, seconds=0.5)
    soundfile.write(tmp_path / "media/A/1.flac", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "media/A/2.flac", 0.1 * np.ones(50), 16_000)
    command = ("--prefix", "media", "--check-integrity", "--describe")
    report = inspect_here(tmp_path, monkeypatch, capsys, *command)
    assert {row["verdict"]: row["files"] for row in report["integrity"]["files"]} == {
        "good": 2, "silent": 1, "shorter than 0.1 s": 1,
    }  # fmt: skip
    assert report["total"]["ready"] == 4
    assert f"silent: {tmp_path}/media/A/1.flac; good and ready all the same" in report["told"]
    assert "[A] 4 clips, 0.00 h, 0 unreadable, 1 s" in report["told"]
    assert report["clips"][0]["odd"] == {"silent": 1, "shorter than 0.1 s": 1}
    assert [line["ok"] for line in verdicts(tmp_path)] == [True] * 4
    listed = tmp_path / "ann/verdicts.jsonl"
    of_before = [msgspec.structs.replace(verdict, silent=None) for verdict in VerdictList(listed).read()]
    with listed.open("wb") as file:
        write_verdicts(file, of_before)
    again = inspect_here(tmp_path, monkeypatch, capsys, *command)
    assert again["integrity"]["decoded"] == 0
    assert "3 good verdicts of earlier versions do not tell whether a file is silent" in again["told"]


def test_verdicts_on_a_private_corpus_stay_beside_its_annotation_file(tmp_path: Path):
    (tmp_path / "repository/ann").mkdir(parents=True)
    (tmp_path / "private/ann").mkdir(parents=True)
    clips(tmp_path / "private", 2)
    command = ("--ann", "../private/ann/a.json", "--prefix", "../private/media", "--check-integrity")
    first = inspect(tmp_path / "repository", *command)
    assert "2 clips, 2 of them decoded now; verdicts: ../private/ann/verdicts.jsonl" in first.stdout
    assert "datasets.verdicts=../private/ann/verdicts.jsonl" in first.stderr
    assert list((tmp_path / "repository/ann").iterdir()) == []
    assert "2 clips, 0 of them decoded now" in inspect(tmp_path / "repository", *command).stdout


# The inspector on a machine that needs half a minute for the clips below: time to stop it on the way.
SLOW = """
import runpy, sys, time
from salmonn.data import integrity
check_file = integrity.check_file
integrity.check_file = lambda *args: time.sleep(0.05) or check_file(*args)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path: Path, how: signal.Signals):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 600, seconds=2.0)
    command = [sys.executable, "-c", SLOW, str(ROOT / "util/anns_inspector.py"), "--prefix", "media"]
    process = subprocess.Popen(
        [*command, "--check-integrity", "--jobs", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    done = tmp_path / "ann/verdicts.jsonl"
    wait_until(lambda: n_lines(done), process)
    process.send_signal(how)
    message = process.communicate(timeout=HANG)[1]
    before = len(verdicts(tmp_path))
    assert 0 < before < 600, "it was to be stopped on the way"
    if how == signal.SIGINT:
        assert process.returncode == 1
        assert "run it again to go on" in message
        assert "Traceback" not in message
    result = inspect(tmp_path, "--prefix", "media", "--check-integrity")
    assert f"600 clips, {600 - before} of them decoded now" in result.stdout
    assert sorted(verdict["path"] for verdict in verdicts(tmp_path)) == sorted(
        f"{tmp_path}/media/A/{i}.flac" for i in range(600)
    )


def test_splits_and_conversions_leave_out_what_is_longer_than_a_limit(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "media").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    for name, seconds in (("short.wav", 1), ("long.flac", 9), ("long.mp3", 8), ("short.mp3", 2)):
        soundfile.write(tmp_path / "media" / name, noise[: seconds * 16_000], 16_000)
    for mp3 in (tmp_path / "media").glob("*.mp3"):  # no tag tells how long it is
        mp3.write_bytes(mp3.read_bytes().replace(b"Info", bytes(4), 1).replace(b"Xing", bytes(4), 1))
    names = ("short.wav", "long.flac", "long.mp3", "short.mp3")
    annotate(tmp_path / "ann/a.json", *((f"/{name}", "asr") for name in names), ("/short.wav", "asr", "/long.flac"))
    content = json.loads((tmp_path / "ann/a.json").read_text())
    for entry in content["annotation"]:
        entry["text"] = "a"
    (tmp_path / "ann/a.json").write_text(json.dumps(content))
    for folder in ("by headers", "by verdicts"):
        result = inspect(tmp_path, "--prefix", "media", "--max-clip-seconds", "5", "--convert", folder, "--jobs", "1")
        assert result.returncode == 0, result.stderr
        converted = json.loads((tmp_path / folder / "a.json").read_text())["annotation"]
        assert [entry["path"] for entry in converted] == ["/short.flac", "/short.mp3.flac"]
        assert "left out: 3 entries, longer than datasets.max_clip_seconds = 5" in result.stdout
        assert inspect(tmp_path, "--prefix", "media", "--check-integrity", "--jobs", "1").returncode == 0
    split = ("--prefix", "media", "--max-clip-seconds", "5", "--split", "1", "0", "0")
    inspect(tmp_path, *split)
    chosen = json.loads((tmp_path / "ann/a_train.json").read_text())["annotation"]
    assert sorted(entry["path"] for entry in chosen) == ["/short.mp3", "/short.wav"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-clip-seconds", "5"), "--max-clip-seconds goes with --split or --convert"),
        (("--max-clip-seconds", "-5", "--convert", "out"), "--max-clip-seconds -5: a number of seconds"),
        (("--max-clip-seconds", "nan", "--convert", "out"), "--max-clip-seconds nan: a number of seconds"),
    ],
)
def test_a_limit_that_limits_nothing_is_refused(world: Path, options, message):
    result = inspect(world, *options)
    assert result.returncode == 2
    assert message in result.stderr


def test_descriptions_and_statistics_tell_rates_hours_and_words(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 4, seconds=1.5)
    content = json.loads((tmp_path / "ann/a.json").read_text())
    for i, entry in enumerate(content["annotation"]):
        entry["text"] = "word " * (i + 1)
    (tmp_path / "ann/a.json").write_text(json.dumps(content))
    result = inspect(tmp_path, "--prefix", "media", "--describe", "--stats", "--plots", "plots", "--json", "r.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "r.json").read_text())["files"][0]
    assert report["clips"][0]["rates"] == {"16000": 2, "32000": 2}
    assert report["clips"][0]["sample"]["format"] == "FLAC PCM_16"
    words = next(row for row in report["statistics"]["texts"] if row["quantity"] == "words")
    assert (words["task"], words["mean"], words["max"]) == ("asr", 2.5, 4)
    durations = report["statistics"]["durations"]
    assert [(row["by"], row["clips"], round(row["p50"], 2)) for row in durations] == [
        ("task", 4, 1.5),
        ("corpus", 4, 1.5),
    ]
    assert {path.name for path in (tmp_path / "plots/a").iterdir()} == {"words.png", "characters.png", "seconds.png"}


def test_split_and_convert_take_what_is_ready_and_verified(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 40)
    (tmp_path / "media/A/0.flac").unlink()
    whole = (tmp_path / "media/A/1.flac").read_bytes()
    (tmp_path / "media/A/1.flac").write_bytes(whole[: len(whole) // 2])
    assert inspect(tmp_path, "--prefix", "media", "--check-integrity").returncode == 0
    command = ("--prefix", "media", "--split", "0.8", "0.1", "0.1", "--convert", "small", "--json", "r.json")
    result = inspect(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "r.json").read_text())["files"][0]
    assert sum(report["split"].values()) == report["converted"]["entries"] == 38
    entries = [
        entry["path"]
        for name in ("train", "valid", "test")
        for entry in json.loads((tmp_path / f"ann/a_{name}.json").read_text())["annotation"]
    ]
    assert sorted(entries) == sorted(f"/A/{i}.flac" for i in range(2, 40))
    assert inspect(tmp_path, "--prefix", "media", "--ann", "ann/a.json", "--split", "0.6", "0.2", "0.2").returncode == 2
    assert "all tasks | ready: 38" in inspect(tmp_path, "--prefix", "small", "--ann", "small/a.json").stdout


def test_duplicates_and_empty_texts_are_counted(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    entries = [{"path": "/A/1.wav", "text": text} for text in ("x", "x", "y", " ")]
    (tmp_path / "ann/a.json").write_text(json.dumps({"annotation": entries}))
    result = inspect(tmp_path, "--duplicates")
    assert "1 groups, 3 surplus entries; with the same text, too: 1 groups, 1 surplus" in result.stdout
    assert "texts empty: 1 (asr 1; e.g. entries [3])" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plots", "x"), "--plots goes with --stats"),
        (("--split", "0.5", "0.6", "0.1"), "sum"),
        (("--ann", "ann/gone.json"), "ann/gone.json"),
        (("--duplicates", "--tokenizer", "nowhere"), "--tokenizer nowhere"),
        (("--jobs", "-3"), "--jobs -3"),
        (("--channel", "mean"), "--channel goes with --convert"),
        (("--split", "0.8", "0.1", "0.1", "--verdicts", "typo.jsonl"), "--verdicts typo.jsonl does not exist"),
        (("--json", "/proc/nowhere/r.json"), "--json /proc/nowhere/r.json"),
    ],
)
def test_wrong_options_are_one_message_and_exit_code_2(world: Path, arguments: tuple[str, ...], message: str):
    annotate(world / "ann/a.json", ("/A/1.wav", "asr"))
    result = inspect(world, "--prefix", "media", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def plain_readiness(folder: Path, entries: list[dict]) -> list[bool]:
    """Readiness by asking for each file, with none of our short cuts."""

    def is_ready(path: str) -> bool:
        file = f"{folder}/{path}"
        if ".." in path.split("/"):
            return False
        candidates = [file]
        if file.lower().endswith(".wav") and not os.path.lexists(file):
            candidates += [file[:-4] + other for other in OTHER_EXTENSIONS]
        found = next((candidate for candidate in candidates if os.path.lexists(candidate)), file)
        return os.path.isfile(found) and os.path.getsize(found) > 0

    return [all(map(is_ready, (entry["path"], *entry.get("expand_wav", [])))) for entry in entries]


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/.", "{}/../media"])
def test_readiness_is_that_of_a_plain_look_at_each_file(tmp_path: Path, spelling: str):
    rng, media = random.Random(0), tmp_path / "media"
    folders = ["", "/A", "/A/b", "/A/b/c", "/B", "/./A", "//A", "/A//b", "/gone", "/A/gone", "/A/..", "/link"]
    names = [f"{i}{extension}" for i in range(8) for extension in (".wav", ".WAV", ".flac", ".mp3", "")]
    for folder in ("A/b/c", "B"):
        (media / folder).mkdir(parents=True, exist_ok=True)
    for name in rng.sample(names, 20):
        for folder in ("", "A", "A/b", "A/b/c", "B"):
            if rng.random() < 0.6:
                (media / folder / name).write_text("x" * rng.randrange(3))
    (media / "link").symlink_to("A/b")
    (media / "B/folder.wav").mkdir()
    (media / "B/dangling.wav").symlink_to("nowhere")
    names += ["folder.wav", "dangling.wav"]
    entries = [{"path": f"{rng.choice(folders)}/{rng.choice(names)}"} for _ in range(2000)]
    for entry in rng.sample(entries, 300):
        entry["expand_wav"] = [f"{rng.choice(folders)}/{rng.choice(names)}"]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": entries}))
    found = count_ready(tmp_path / "a.json", ClipPaths(spelling.format(media)), jobs=2)
    assert found.is_ready.tolist() == plain_readiness(media, entries)
    assert found.ready.total() == sum(found.is_ready) > 100


def test_results_of_a_split_are_not_split_again(tmp_path: Path):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 40)
    for _ in range(2):
        result = inspect(tmp_path, "--prefix", "media", "--split", "0.8", "0.1", "0.1", "--force")
        assert result.returncode == 0, result.stderr
    assert sorted(file.name for file in (tmp_path / "ann").glob("*.json")) == [
        "a.json", "a_test.json", "a_train.json", "a_valid.json",
    ]  # fmt: skip


def test_clips_below_a_folder_that_may_not_be_listed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ann").mkdir()
    clips(tmp_path, 4)
    annotate(tmp_path / "ann/b.json", *((f"/A/{i}.wav", "asr") for i in range(6)))  # the clips are .flac
    listdir, closed = os.listdir, {str(tmp_path), str(tmp_path / "media"), str(tmp_path / "media/A")}

    def refuse(folder: str) -> list[str]:
        if folder in closed:
            raise PermissionError(folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    found = count_ready(tmp_path / "ann/b.json", ClipPaths(str(tmp_path / "media")), jobs=1)
    assert found.is_ready.tolist() == [True] * 4 + [False] * 2


def test_an_empty_task_is_refused_and_not_counted_as_another(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotation": [{"path": "/A/1.wav", "text": "x", "task": t} for t in ("asr", "")]}))
    with pytest.raises(UserError, match="entry 1: 'task' is empty"):
        count_ready(path, ClipPaths(str(tmp_path)))


# ---- absolute paths without a prefix, and names in another spelling


def inspect_here(world: Path, monkeypatch, capsys, *arguments: str) -> dict:
    """What the inspector prints, and its report."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "argv", ["anns_inspector.py", *arguments, "--jobs", "1", "--json", "report.json"])
    anns_inspector.main()
    return {"told": capsys.readouterr().out, **json.loads((world / "report.json").read_text())["files"][0]}


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_absolute_paths_are_found_without_a_prefix_and_have_their_corpora(world: Path, monkeypatch, capsys, name: str):
    media = world / "media"
    annotate(
        world / name,
        (f"{media}/A/1.wav", ""),
        (f"{media}/B/3.wav", ""),
        (f"{media}/A/2.wav", "", f"{media}/B/3.wav"),
        (f"{media}/B/none.wav", ""),
        (f"{media}/C/none.wav", ""),
    )
    report = inspect_here(world, monkeypatch, capsys, "--ann", name, "--prefix", "", "--describe")
    rows = {row["corpus"]: (row["ready"], row["total"]) for row in report["corpora"]}
    assert rows == {"A": (2, 2), "B": (1, 2), "C": (0, 1)}
    assert {row["corpus"] for row in report["clips"]} == {"A", "B"}


def test_absolute_paths_can_be_split(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "A").mkdir()
    for i in range(20):
        (tmp_path / f"A/{i}.wav").write_text("x")
    content = [{"path": f"{tmp_path}/A/{i}.wav", "text": "x"} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": content}))
    arguments = ["--ann", "a.json", "--prefix", "", "--split", "0.8", "0.1", "0.1"]
    report = inspect_here(tmp_path, monkeypatch, capsys, *arguments)
    assert report["split"] == {"train": 16, "valid": 2, "test": 2}
    assert [row["corpus"] for row in report["corpora"]] == ["A"]


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (["0.8", "0.1", "0.1"], {"a_train.json": 16, "a_valid.json": 2, "a_test.json": 2}),
        (["0.95", "0.05", "0"], {"a_train.json": 19, "a_valid.json": 1}),
        (["0", "0", "1", "--out", "made/here"], {"made/here/a_test.json": 20}),
    ],
)
def test_a_split_names_each_file_that_it_wrote(tmp_path: Path, monkeypatch, capsys, options, written):
    for i in range(20):
        (tmp_path / f"{i}.wav").write_text("x")
    annotate(tmp_path / "a.json", *((f"{i}.wav", "") for i in range(20)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inspector", "--ann", "a.json", "--prefix", ".", "--split", *options])
    anns_inspector.main()
    printed = capsys.readouterr().out
    told = dict(re.findall(r"^ +(\S+\.json): (\d+) entr(?:y|ies)$", printed, re.MULTILINE))
    assert {name: int(n) for name, n in told.items()} == written
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("a_*.json")} == written.keys()


def test_clips_in_the_working_folder_and_in_the_prefix_itself_are_found(world: Path, monkeypatch, capsys):
    annotate(world / "a.json", ("1.wav", ""), ("/2.wav", ""))
    for prefix in (f"{world}/media/A", f"{world}/media/A/"):
        assert inspect_here(world, monkeypatch, capsys, "--ann", "a.json", "--prefix", prefix)["total"]["ready"] == 2
    (world / "1.wav").write_text("x")
    assert inspect_here(world, monkeypatch, capsys, "--ann", "a.json", "--prefix", "")["total"]["ready"] == 1


@pytest.mark.parametrize("prefixed", [True, False])
def test_names_in_another_spelling_are_ready(tmp_path: Path, monkeypatch, capsys, prefixed: bool):
    root = "" if prefixed else str(tmp_path)
    for i, form in enumerate(("NFC", "NFD")):
        there = tmp_path / unicodedata.normalize(form, f"Töne{i}/für.mp3")
        there.parent.mkdir()
        there.write_text("x")
    clips = [f"{root}/{unicodedata.normalize(f, f'Töne{i}/für{e}')}" for i, f, e in product((0, 1), FORMS, EXTENSIONS)]
    annotate(tmp_path / "a.json", *((clip, "") for clip in clips))
    prefix = str(tmp_path) if prefixed else ""
    report = inspect_here(tmp_path, monkeypatch, capsys, "--ann", "a.json", "--prefix", prefix)
    assert report["total"] == {"ready": 8, "not_ready": 0, "total": 8, "ready_rate": 1.0}


DEEP = [
    ["--split", ".5", ".5", "0", "--out", "{}"],
    ["--json", "{}/a.json"],
    ["--convert", "{}"],
    ["--check-integrity", "--verdicts", "{}/verdicts.jsonl"],
    ["--stats", "--plots", "{}"],
    ["--list-missing", "{}/list"],
    ["--prefix", "{}"],
]


@pytest.mark.parametrize(("options", "n_folders"), [(DEEP[0], 1200), *((options, 3000) for options in DEEP)])
def test_folders_in_each_other_without_end_are_made_or_told(world: Path, options: list[str], n_folders: int):
    annotate(world / "ann/a.json", ("/A/1.wav", "asr"), ("/A/2.wav", "asr"))
    deep = "/".join(["d"] * n_folders)
    given = ["--prefix", "media", *(option.format(deep) for option in options)]
    result = inspect(world, "--ann", "ann/a.json", *given)
    is_there = os.path.exists(world / deep)
    subprocess.run(["rm", "-rf", str(world / "d")], check=True)  # pytest's own way calls itself
    assert "Traceback" not in result.stderr
    if result.returncode:
        assert result.returncode == 2
        assert re.search(rf"(?ms)^error: .*(d/d/d/|{options[-2]})", result.stderr)
    else:
        assert is_there or options[-2] == "--prefix"
