"""Files that are there whole or not at all, and files of lines of which a kill leaves whole lines only."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.common.files import (
    UNFINISHED,
    appending,
    clear_unfinished,
    existing_part,
    free_bytes,
    make_folder,
    making_folder,
    read_json,
    read_json_lines,
    replacing,
    sealed,
    unwritable_part,
    visible,
    whole_lines,
    write_json,
    write_text,
)


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert temporary.parent == tmp_path  # the same disk: a rename is enough
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_what_ends_halfway_leaves_the_file_before_and_nothing_beside_it(tmp_path: Path, error: BaseException):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of wh")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_text_is_written_as_it_is_into_folders_that_are_made(tmp_path: Path):
    write_text(tmp_path / "a/b/c.txt", "배\r\nend\n")
    assert (tmp_path / "a/b/c.txt").read_bytes() == "배\r\nend\n".encode()
    write_json(tmp_path / "a/d.json", {"배": [1, None]})
    content = (tmp_path / "a/d.json").read_text(encoding="utf-8")
    assert json.loads(content) == {"배": [1, None]}
    assert "배" in content  # for people to read
    assert content.endswith("}\n")


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", b""),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntwo", b"one\n"),
        (b"never ended", b""),
        (b"one\n" + b"x" * 200_000, b"one\n"),  # longer than what is read at once
        (b"a" * 65_535 + b"\n" + b"x" * 65_536, b"a" * 65_535 + b"\n"),  # the end of a line where a look begins
    ],
)
def test_lines_are_appended_after_the_last_whole_one(tmp_path: Path, before: bytes, kept: bytes):
    path = tmp_path / "new/lines.jsonl"
    if before:
        path.parent.mkdir()
        path.write_bytes(before)
    with appending(path) as file:
        file.write(b"next\n")
    assert path.read_bytes() == kept + b"next\n"


def test_whole_lines_have_their_numbers_and_a_torn_last_one_does_not_count(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\nthree\nfou")
    assert list(whole_lines(path)) == [(1, b"one\n"), (2, b"\n"), (3, b"three\n")]


def test_json_lines_are_read_until_a_torn_last_one(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n[2]\n{"a": ')
    assert list(read_json_lines(path, "list")) == [{"a": 1}, [2]]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(read_json_lines(path, "list", lambda line: json.loads(line)["a"])) == [1, 2]


def test_whatever_byte_of_a_line_is_damaged_no_wrong_value_is_read(tmp_path: Path, caplog):
    path = tmp_path / "lines.jsonl"
    values = [{"a": "배 x", "n": 10}, {"a": "b", "n": 20}, {"a": "c", "n": 30}]
    content = b"".join(sealed(json.dumps(value, ensure_ascii=False).encode()) for value in values)
    path.write_bytes(content)
    assert list(read_json_lines(path, "a value")) == values
    assert not caplog.records
    begins, ends = content.index(b"\n") + 1, content.rindex(b"\n", 0, -1) + 1
    for at in range(begins, ends):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            read = [{key: line.get(key) for key in "an"} for line in read_json_lines(path, "a value")]
            assert [value for value in read if value not in values] == []
            assert values[0] in read
    assert caplog.records


@pytest.mark.parametrize(
    "damage", [b"\0" * 40, b"\xff\x80 noise \n" * 3, b"", b"x\n", b'{"a"\n: 1}\n', b"[" * 9000 + b"\n"]
)
def test_damaged_lines_are_left_out_and_told_in_one_warning(tmp_path: Path, caplog, damage: bytes):
    path = tmp_path / "lines.jsonl"
    lines = [sealed(b'{"a": %d}' % i) for i in range(6)]
    path.write_bytes(b"".join([*lines[:2], damage + lines[2], *lines[3:]]))
    found = [value["a"] for value in read_json_lines(path, "a value")]
    assert set(found) >= {0, 1, 3, 4, 5}
    assert len(caplog.records) == (damage != b"")
    assert all(f"{path}: " in record.message and "not a value" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("content", "parse", "says"),
    [
        ("no JSON\n", json.loads, "line 1: Expecting value"),
        ('{"b": 1}\n{"b": 2}\n', lambda line: json.loads(line)["a"], "line 1: 'a'"),
        ("[1]\n", lambda line: json.loads(line)["a"], "indices must be integers"),
        ('{"a": "x"}\n', lambda line: int(json.loads(line)["a"]), "invalid literal"),
    ],
)
def test_a_file_that_a_person_names_and_that_holds_something_else_is_refused(tmp_path: Path, content, parse, says: str):
    path = tmp_path / "lines.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        list(read_json_lines(path, "a verdict", parse, is_given=True))
    assert str(caught.value).startswith(f"{path} holds no line that is a verdict (")
    assert says in str(caught.value)
    assert list(read_json_lines(path, "a verdict", parse)) == []  # one of our own: what it held is made anew


def test_content_is_on_the_disk_before_it_takes_a_name(tmp_path: Path, monkeypatch):
    """As strace shows it: what a power cut leaves is the old file or the whole new one."""
    calls = []
    fsync, replace = os.fsync, Path.replace

    def seen(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "replace", lambda path, target: calls.append("rename") or replace(path, target))
    write_text(tmp_path / "a.txt", "content")
    written, *then = calls
    assert written.startswith(f"{tmp_path}/.a.txt.")
    assert then == ["rename", str(tmp_path)]


def test_what_a_killed_process_left_is_cleared_and_what_another_writes_is_not(tmp_path: Path):
    (tmp_path / "below").mkdir()
    left = [tmp_path / ".a.pth.12.tmp", tmp_path / "below/.b.json.4194303.tmp"]
    others = [tmp_path / name for name in (".a.tmp", "a.12.tmp", ".a.12", ".conf.x.tmp")]
    for path in (*left, *others):
        path.write_bytes(b"half")
    with replacing(tmp_path / "c") as written:
        clear_unfinished(tmp_path.rglob(UNFINISHED))
        assert written.exists()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    clear_unfinished((tmp_path / "nowhere").rglob(UNFINISHED))
    left = tmp_path / ".d.json.12.tmp"
    left.write_bytes(b"half")
    write_json(tmp_path / "d.json", {})
    assert not left.exists()


def test_a_folder_takes_its_name_only_when_it_is_whole(tmp_path: Path):
    def fill(error: Exception | None) -> None:
        with making_folder(tmp_path / "new/a") as folder:
            (folder / "below").mkdir()
            write_text(folder / "below/b", "b")
            assert not (tmp_path / "new/a").exists()
            clear_unfinished((tmp_path / "new").glob(UNFINISHED))  # as another process: it is held
            if error:
                raise error

    with pytest.raises(OSError, match="full"):
        fill(OSError("full"))
    assert list((tmp_path / "new").iterdir()) == []
    fill(None)
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["a", "below", "b"]


def test_a_file_of_lines_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl cannot be read: .*No such file"):
        list(read_json_lines(tmp_path / "nowhere.jsonl", "list"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"), (b'{"a": ', "is not valid JSON"), (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 2000 + b"]" * 2000, "nested too deeply"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "nested too deeply"),
        (None, "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_a_json_file_that_cannot_be_used_is_one_message(tmp_path: Path, content, says):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^prompt file {path} .*{says}"):
        read_json(path, "prompt file ")


def test_of_a_folder_still_to_be_made_the_disk_is_that_of_the_nearest_above(tmp_path: Path, monkeypatch):
    assert existing_part(tmp_path / "a/b/c") == tmp_path
    assert free_bytes(tmp_path / "a/b/c") > 0
    monkeypatch.chdir(tmp_path)
    assert existing_part(Path("a/b")) == tmp_path


def test_a_folder_can_be_written_to_where_the_nearest_above_is_one_to_write_to_and_pass_through(tmp_path, monkeypatch):
    assert unwritable_part(tmp_path / "a/b") is None
    (tmp_path / "file").touch()
    assert unwritable_part(tmp_path / "file/b") == tmp_path / "file"
    monkeypatch.setattr("os.access", lambda path, asked: path != tmp_path or not asked & os.X_OK)  # root may do all
    assert unwritable_part(tmp_path / "a/b") == tmp_path


@pytest.mark.parametrize("name", ["a", "한"])
def test_thousands_of_folders_in_each_other_are_made(tmp_path, name):
    deep = tmp_path.joinpath(*[name] * 1200) / "file"
    if len(os.fsencode(deep)) > 4000:
        with pytest.raises(OSError, match="too long"):
            make_folder(deep.parent)
        return
    try:
        write_text(deep, "whole")
        assert deep.read_text() == "whole"
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / name)], check=True)  # pytest's own way calls itself


def test_what_is_hidden_below_a_folder_is_not_found_wherever_the_folder_lies(tmp_path):
    folder = tmp_path / ".cache" / "clips"
    for name in ("b.wav", "a.wav", "._a.wav", ".DS_Store", ".AppleDouble/a.wav", "in/c.wav", "in/._c.wav", "a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert visible(folder, "**/*.wav") == [folder / "a.wav", folder / "b.wav", folder / "in/c.wav"]
    assert visible(folder, "*.wav") == [folder / "a.wav", folder / "b.wav"]
    assert visible(folder / "gone", "*") == []


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file/below")
    make_folder(tmp_path)  # is there
