"""util/anns_inspector.py: what counts as ready, what is printed, what is refused."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
    command = [sys.executable, str(ROOT / "util/anns_inspector.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


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
