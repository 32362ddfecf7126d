"""How an annotation file is written; what a file is that is none, and which value JSON does not have."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from salmonn.common.files import write_text

EXPECTED = 'expected {"annotation": [entry, ...]} (ann/README.md)'

BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")  # what stands between two entries
_SHOWN = 60  # characters of a first line
_NO_JSON = re.compile(rb"NaN|-?Infinity")
_HALF = re.compile(  # of a pair of UTF-16 escapes
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_LAST_KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*(?:[^"{}]*|"(?:[^"\\]|\\.)*)$')
_TAIL = 4096  # bytes in which the key of a value is looked for

_BEGINNINGS = (
    (b"\x1f\x8b", "it is compressed by gzip: its name has to end in .json.gz"),
    (b"PK\x03\x04", "it is a zip archive: unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer and not the file itself: git lfs pull fetches that"),
    (b"<", "it is a web page or XML, perhaps because a download had to be confirmed: download it again"),
    (b"{'", "it is written with single quotes, as Python's print does; json.dump writes JSON"),
)
_UTF32 = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
_UTF16 = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"{\0": "UTF-16LE", b"[\0": "UTF-16LE",
          b"\0{": "UTF-16BE", b"\0[": "UTF-16BE"}  # fmt: skip


def write_annotations(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write an annotation file, an entry a line, whole or not at all. Raises OSError."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    write_text(path, f'{{"annotation": [\n{lines}\n]}}\n')


def foreign_kind(source: Path, data: bytes) -> str:
    """What a file is that holds something else than one JSON object, and what to do; "" where it looks like one."""
    start = data.lstrip(b" \t\r\n")
    if not start:
        return "it is empty"
    if encoding := _UTF32.get(data[:4]) or _UTF16.get(data[:2]):
        return f"it is {encoding} text, JSON is UTF-8: iconv -f {encoding} -t UTF-8 {source} > new.json"
    if data.startswith(b"\xef\xbb\xbf"):
        return (
            "it begins with a byte order mark (BOM), which JSON does not have: "
            rf"sed -i '1s/^\xEF\xBB\xBF//' {source} takes it away"
        )
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    converted = f"python util/make_annotations.py {source} --to ann/own.json makes an annotation file of it"
    if start.startswith(b"["):
        return f"it is the list alone: jq '{{annotation: .}}' {source} > new.json; where it has other keys, {converted}"
    if start.startswith(b"PAR1"):
        return f"it is a Parquet file: {converted}"
    first, _, rest = start.partition(b"\n")
    if start.startswith(b"{"):
        is_lines = rest.lstrip().startswith(b"{") and _is_json(first)
        how = f"jq -s '{{annotation: .}}' {source} > new.json; where it has other keys, {converted}"
        return f"it is JSON Lines, an entry on each line: {how}" if is_lines else ""
    line = first.decode(errors="replace").strip()
    kind = "a table (TSV)" if "\t" in line else "a table (CSV)" if re.search("[,;|]", line) else "no JSON"
    return f"it is {kind} and begins with {line[:_SHOWN]!r}: {converted} if it lists recordings"


def keys_of(data: bytes) -> str:
    """What is said of a JSON object without a list of entries; "" where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    return f"it has the keys {', '.join(map(repr, value))}" if isinstance(value, dict) else ""


def written_keys(text: bytes) -> list[str]:
    """The keys of a JSON object, each as often as it stands there: decoders take the last value of a repeated one."""
    keys: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        keys[:] = [key for key, _ in pairs]  # the outermost object comes last

    json.loads(text, object_pairs_hook=note, parse_int=str)
    return keys


def malformed(data: bytes, error: Exception) -> str:
    """What is wrong where a decoder gave up, with the entry and, as far as it can be told, the field."""
    if isinstance(error, UnicodeDecodeError):
        at, remedy = error.start, "; it is no UTF-8: iconv -f LATIN1 -t UTF-8 turns Latin-1 into it, for one"
    else:
        found = re.search(r"\(byte (\d+)\)", str(error))
        at, remedy = int(found[1]) if found else len(data), ""
    near = max(0, at - 20)
    if value := _NO_JSON.match(data, at - (data[at - 1 : at] == b"-")):
        what, remedy = f"is {value[0].decode()}", "JSON has no such number: leave the key out, or write null"
    elif value := _HALF.search(data, near, at + 20):
        what, remedy = f"holds half a character ({value[0].decode()})", "take it out: a text was cut inside an emoji"
    else:
        return f"cannot be read: {error}, near entry {_entry_at(data, at)}{remedy}"
    key = _LAST_KEY.search(data[max(0, value.start() - _TAIL) : value.start()])
    field = f"'{key[1].decode(errors='replace')}'" if key else "a value"
    return f"cannot be read: entry {_entry_at(data, value.start())}: {field} {what}; {remedy}"


def _entry_at(data: bytes, position: int) -> int:
    return sum(1 for _ in BETWEEN.finditer(data, 0, position))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
