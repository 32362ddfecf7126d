"""Files that are there whole or not at all, and files of lines of which a kill leaves whole lines only."""

import json
from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.common.files import (
    appending,
    existing_part,
    free_bytes,
    read_json,
    read_json_lines,
    replacing,
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
    assert list(read_json_lines(path, "list", lambda line: line["a"])) == [1, 2]


@pytest.mark.parametrize(
    ("second", "kind", "says"),
    [
        ("no JSON", None, "Expecting value"),
        ('{"b": 1}', lambda line: line["a"], "'a'"),
        ("[1]", lambda line: line["a"], "indices must be integers"),
        ('{"a": "x"}', lambda line: int(line["a"]), "invalid literal"),
    ],
)
def test_a_line_that_is_refused_is_named_with_its_file(tmp_path: Path, second: str, kind, says: str):
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"a": 1}}\n{second}\n{{"a": 3}}\n')
    lines = read_json_lines(path, "a list of words", kind)
    next(lines)
    with pytest.raises(UserError) as caught:
        next(lines)
    assert str(caught.value).startswith(f"{path}, line 2: not a list of words (")
    assert says in str(caught.value)
    assert str(caught.value).endswith("remove that line, or the file")


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
    lines = tmp_path / "a.jsonl"
    lines.write_bytes((content or b"{") + b"\n")
    with pytest.raises(UserError, match=rf"{lines}, line 1: not a list"):
        list(read_json_lines(lines, "a list", lambda value: value.append))


def test_of_a_folder_still_to_be_made_the_disk_is_that_of_the_nearest_above(tmp_path: Path, monkeypatch):
    assert existing_part(tmp_path / "a/b/c") == tmp_path
    assert free_bytes(tmp_path / "a/b/c") > 0
    monkeypatch.chdir(tmp_path)
    assert existing_part(Path("a/b")) == tmp_path
