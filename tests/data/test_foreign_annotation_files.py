"""What is given as an annotation file and is something else is told as what it is, with the way out."""

import gzip
import json

import pytest

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from tests.fixtures.commands import run_command

ENTRIES = [{"path": "a.wav", "text": "één"}, {"path": "b.wav", "text": "two"}]
GOOD = json.dumps({"annotation": ENTRIES}, ensure_ascii=False)
LINES = "".join(json.dumps(entry) + "\n" for entry in ENTRIES)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (GOOD.encode("utf-8-sig"), ("byte order mark", "sed ", "a.json")),
        (GOOD.encode("utf-16"), ("UTF-16", "iconv -f UTF-16 ")),
        (GOOD.encode("utf-16-le"), ("UTF-16", "iconv -f UTF-16LE ")),
        (GOOD.encode("utf-16-be"), ("UTF-16", "iconv -f UTF-16BE ")),
        (GOOD.encode("utf-32"), ("UTF-32", "iconv -f UTF-32 ")),
        (GOOD.encode("latin-1"), ("no UTF-8", "near entry 0", "iconv")),
        (b"path,text,task\na.wav,hello,asr\n", ("CSV", "'path,text,task'", "ann/README.md", "util/make_annotations")),
        (b'"path";"text"\n"a.wav";"hello"\n', ("CSV", "ann/README.md", "util/make_annotations.py ")),
        (b"path\ttext\na.wav\thello\n", ("TSV", "ann/README.md", "util/make_annotations.py ")),
        (LINES.encode(), ("JSON Lines", "jq -s '{annotation: .}'")),
        (LINES.replace("}\n", "}\n\n").encode(), ("JSON Lines", "jq -s", "util/make_annotations.py ")),
        (LINES.encode("utf-8-sig"), ("byte order mark",)),
        (json.dumps(ENTRIES).encode(), ("the list alone", "jq '{annotation: .}'")),
        (json.dumps(ENTRIES, indent=2).encode(), ("the list alone", "jq '{annotation: .}'")),
        (json.dumps({"data": ENTRIES, "info": 1}).encode(), ("'data', 'info'", '{"annotation": [entry, ...]}')),
        (json.dumps(ENTRIES[0]).encode(), ("'path', 'text'", '{"annotation": [entry, ...]}')),
        (b"", ("is empty",)),
        (b" \n\n", ("is empty",)),
        (gzip.compress(GOOD.encode()), ("gzip", ".json.gz")),
        (b"PK\x03\x04" + b"\0" * 50, ("zip", "unpack")),
        (b"PAR1" + b"\0" * 50, ("Parquet", "ann/README.md", "util/make_annotations.py ")),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", ("Git LFS pointer", "git lfs pull")),
        (b"<!DOCTYPE html><html><title>Sign in</title>", ("web page", "download")),
        (b"# my annotations\n- a.wav\n", ("begins with '# my annotations'", "ann/README.md")),
        (repr({"annotation": ENTRIES}).encode(), ("single quotes", "json.dump")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path, content, told):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        Annotations(path)
    for part in (str(path), *told):
        assert part in str(error.value)


def test_the_same_holds_for_what_is_compressed(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(LINES.encode()))
    with pytest.raises(UserError, match="JSON Lines"):
        Annotations(path)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("score", "NaN", "'score' is NaN"),
        ("text", "NaN", "'text' is NaN"),
        ("score", "-Infinity", "'score' is -Infinity"),
        ("Q", "Infinity", "'Q' is Infinity"),
        ("times", "[0.5, NaN]", "'times' is NaN"),
        ("a \\\"key\\\"", "NaN", "'a \\\"key\\\"' is NaN"),
        ("text", '"one \\ud83d"', "'text' holds half a character (\\ud83d)"),
        ("text", '"\\udc00 one"', "'text' holds half a character (\\udc00)"),
        ("text", '"\\ud83d"', "'text' holds half a character (\\ud83d)"),
    ],
)  # fmt: skip
def test_a_value_that_json_does_not_have_is_named_with_entry_and_field(tmp_path, field, value, told):
    path = tmp_path / "a.json"
    entries = ['{"path": "a.wav", "text": "NaN, or \\ud83d\\ude00"}'] * 30
    entries[17] = f'{{"path": "b.wav", "{field}": {value}, "rest": "x"}}'
    path.write_text('{"annotation": [' + ", ".join(entries) + "]}", encoding="utf-8")
    with pytest.raises(UserError) as error:
        Annotations(path)
    for part in (str(path), "entry 17", told):
        assert part in str(error.value)


def test_the_inspector_says_so_too_without_a_traceback(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(LINES)
    result = run_command("util/anns_inspector.py", "--ann", str(path), "--prefix", str(tmp_path))
    assert result.returncode == 2
    assert "JSON Lines" in result.stderr
    assert "Traceback" not in result.stderr
