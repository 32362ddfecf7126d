"""Reading annotation files of hundreds of megabytes: a few megabytes at a time, every entry checked."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from salmonn.common.errors import UserError
from salmonn.data.annotation_format import BETWEEN, EXPECTED, foreign_kind, keys_of, malformed, written_keys

DEFAULT_TASK = "asr"
RECORD = np.dtype(  # bytes; characters of the text, and of the question without blanks around it
    [("start", "<i8"), ("length", "<u4"), ("text", "<u4"), ("question", "<u4"), ("task", "<u4")]
)
SPEECH_MARKERS = ("<SpeechHere>", "<Speech>", "</Speech>")  # of prompts: where the audio stands

_CHUNK = 1 << 18  # bytes that are parsed together: their objects fit in a core's cache
SHOWN_PROBLEMS = 5  # of a file, in a message
_HEAD = re.compile(rb'\s*\{\s*"annotation"\s*:\s*\[')
_TAIL = re.compile(rb"\]\s*\}\s*$")
_REACH = (1 << 14, 1 << 24)  # bytes in which the end of an entry is looked for
_EDGE = 4096  # bytes at both ends of a file in which its frame is looked for

_CUTS_FAILED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
Range = tuple[int, int]  # bytes of a file
Place = tuple[int, str]  # entry, field


class Entry(msgspec.Struct, gc=False):
    """The fields of an entry that have a meaning; null stands for an absent key, but every entry has a path."""

    path: str = ""
    text: str | None = None
    task: str | None = None
    Q: str | None = None
    expand_wav: list[str] | None = None


class _File(msgspec.Struct):
    annotation: msgspec.Raw


@dataclass(frozen=True)
class Scan:
    """What an index is made of."""

    records: np.ndarray  # [n] RECORD
    tasks: list[str]  # by number
    without_text: list[int]  # entries
    with_symbol: dict[str, list[Place]]  # where each of the end symbols looked for stands


def scan(source: Path, text: BinaryIO, end_symbols: Sequence[str] = ()) -> Scan:
    """Find and check every entry. Raises UserError that names the first bad ones and counts them."""
    try:
        if ranges := candidate_ranges(text):
            return _scan(source, read_chunks(text, ranges), end_symbols)
    except _CUTS_FAILED:  # other keys after the entries, or malformed
        pass
    try:
        return _scan(source, read_chunks(text, [whole_array(source, text)]), end_symbols)
    except RecursionError as error:
        raise UserError(f"annotation file {source}: its values are nested too deeply") from error


def candidate_ranges(text: BinaryIO, size: int = _CHUNK) -> list[Range]:
    """Cut the entries of a file into ranges of about `size` bytes, without reading it.

    A cut may lie inside a text that looks like the end of an entry; then that range is no valid
    JSON. Empty when the file does not begin and end like `{"annotation": [...]}`.
    """
    end = text.seek(0, 2)
    text.seek(0)
    head = _HEAD.match(text.read(_EDGE))
    text.seek(max(0, end - _EDGE))
    tail = _TAIL.search(text.read())
    if not head or not tail:
        return []
    begin, stop = head.end(), max(0, end - _EDGE) + tail.start()
    ranges = []
    while stop - begin > size:
        cut = _next_cut(text, begin + size, stop)
        if not cut:
            break
        ranges.append((begin, cut[0]))
        begin = cut[1]
    return [*ranges, (begin, stop)]


def _next_cut(text: BinaryIO, begin: int, stop: int) -> Range | None:
    """Where the next entry ends and the one after it begins."""
    for reach in _REACH:
        text.seek(begin)
        if found := BETWEEN.search(text.read(min(reach, stop - begin))):
            return begin + found.start() + 1, begin + found.end()
    return None


def whole_array(source: Path, text: BinaryIO) -> Range:
    """Where the entries of a file of any layout stand. Raises UserError where it is no annotation file."""
    text.seek(0)
    data = text.read()
    try:
        data.decode()
        array = memoryview(msgspec.json.decode(data, type=_File).annotation)
    except RecursionError as error:
        raise UserError(f"annotation file {source}: its values are nested too deeply") from error
    except msgspec.ValidationError as error:
        raise _foreign(source, foreign_kind(source, data) or keys_of(data)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if what := foreign_kind(source, data):
            raise _foreign(source, what) from error
        raise UserError(f"annotation file {source} {malformed(data, error)}") from error
    if not bytes(array[:1]) == b"[":
        raise _foreign(source, "")
    begin = data.index(array)
    end = begin + len(array)
    if written_keys(data[:begin] + b"null" + data[end:]).count("annotation") > 1:
        raise UserError(
            f"annotation file {source}: the key 'annotation' stands there more than once, and only one of its lists "
            "would be read: put all entries into one list, or the other lists into files of their own"
        )
    return begin + 1, end - 1


def _foreign(source: Path, what: str) -> UserError:
    return UserError(f"annotation file {source}: {EXPECTED}{what and f', but {what}'}")


Chunk = tuple[int, bytes, list[msgspec.Raw]]


def read_chunks(text: BinaryIO, ranges: Sequence[Range]) -> Iterator[Chunk]:
    """Yield (begin, the entries of a range as a JSON array, each of them); byte i of it is byte begin + i of the file.

    A range that is no array was cut in the wrong place: it is joined with as many of the next ones
    as it takes. Raises what the decoder raises where that does not help either.
    """
    at = 0
    while at < len(ranges):
        joined = 1
        while True:
            begin, end = ranges[at][0], ranges[min(at + joined, len(ranges)) - 1][1]
            text.seek(begin)
            chunk = b"[" + text.read(end - begin) + b"]"
            try:
                chunk.decode()  # bytes that are no UTF-8 would come up later, in an unknown field
                raws = msgspec.json.decode(chunk, type=list[msgspec.Raw])
                break
            except _CUTS_FAILED:
                if at + joined >= len(ranges):
                    raise
                joined *= 2
        yield begin - 1, chunk, raws
        at += joined


def _scan(source: Path, chunks: Iterable[Chunk], end_symbols: Sequence[str]) -> Scan:
    records: list[np.ndarray] = []
    tasks: dict[str, int] = {}
    without_text: list[int] = []
    with_symbol: dict[str, list[Place]] = {symbol: [] for symbol in end_symbols}
    problems: list[str] = []
    n = 0
    for begin, chunk, raws in chunks:
        entries = _known_fields(chunk)
        texts = _joined_texts(entries or ())
        wrong: list[str] = []
        if entries is None or not _all_good(entries, texts) or _may_repeat(chunk, entries):
            wrong = [f"entry {n + i}: {what}" for i, raw in enumerate(raws) for what in _problems(raw)]
            problems += wrong
        if entries is not None and not wrong:
            part = np.zeros(len(raws), RECORD)
            part["length"] = [len(memoryview(raw)) for raw in raws]
            part["start"] = begin + _starts(chunk, part["length"].tolist())
            part["text"] = [len(entry.text or "") for entry in entries]
            part["question"] = [_asked(entry.Q) if entry.Q else 0 for entry in entries]
            part["task"] = [tasks.setdefault(entry.task or DEFAULT_TASK, len(tasks)) for entry in entries]
            records.append(part)
            without_text += [n + i for i, entry in enumerate(entries) if entry.text is None]
            for symbol in (symbol for symbol in end_symbols if symbol in texts):
                with_symbol[symbol] += [(n + i, field) for i, field in _places_of(symbol, entries)]
        n += len(raws)
    if problems:
        raise UserError(list_problems(source, problems, len(problems)))
    if not n:
        raise UserError(f"annotation file {source} has no entries")
    return Scan(np.concatenate(records), list(tasks), without_text, with_symbol)


def _asked(question: str) -> int:
    """Characters of a question without blanks around it; 0 where none of them can be seen, as of a zero-width blank."""
    stripped = question.strip()
    return len(stripped) if any(unicodedata.category(char)[0] not in "CZ" for char in stripped) else 0


def _all_good(entries: Sequence[Entry], texts: str) -> bool:
    """Whether `_problems` would find nothing in these, told quickly."""
    return (
        all(entry.path and "" not in (entry.expand_wav or ()) for entry in entries)
        and all(task is None or task.strip() for task in {entry.task for entry in entries})
        and not any(marker in texts for marker in SPEECH_MARKERS)
    )


def _may_repeat(chunk: bytes, entries: Sequence[Entry]) -> bool:
    """Whether some known key stands more often than entries have it, told quickly; mostly one inside another value."""
    for key in Entry.__struct_fields__:
        most = sum(bool(getattr(entry, key)) for entry in entries)
        if chunk.count(name := b'"%s"' % key.encode()) > most:
            most += len(re.findall(name + rb'\s*:\s*(?:null|""|\[\s*\])', chunk))
            if chunk.count(name) > most:
                return True
    return False


def _joined_texts(entries: Sequence[Entry]) -> str:
    """Texts and questions in one string: what is in none of thousands is searched for once."""
    return "\0".join([text for entry in entries for text in (entry.text, entry.Q) if text])


def _places_of(symbol: str, entries: Sequence[Entry]) -> Iterator[Place]:
    """Yield where in texts and questions a symbol stands."""
    for i, entry in enumerate(entries):
        yield from ((i, field) for field, text in (("text", entry.text), ("Q", entry.Q)) if text and symbol in text)


def list_problems(source: str | Path, problems: list[str], n: int) -> str:
    """The message about the first of `n` problems in an annotation file."""
    shown = problems[:SHOWN_PROBLEMS]
    if n > len(shown):
        shown.append(f"... {n} problems in all")
    return "\n  ".join([f"annotation file {source}:", *shown])


def _known_fields(chunk: bytes) -> list[Entry] | None:
    """The entries of a chunk; None where a field has a wrong type."""
    try:
        return msgspec.json.decode(chunk, type=list[Entry])
    except msgspec.ValidationError:
        return None


def _starts(chunk: bytes, lengths: list[int]) -> np.ndarray:
    """[entries] where each entry begins in an array of objects: at the next brace after the last one's end."""
    starts, position = [], 0
    for length in lengths:
        position = chunk.index(b"{", position)
        starts.append(position)
        position += length
    return np.array(starts, np.int64)


def _problems(raw: msgspec.Raw) -> list[str]:
    """What is wrong with one entry, each with its field."""
    try:
        entry = msgspec.json.decode(raw)
    except msgspec.MsgspecError as error:  # such as a number beyond any type
        return [str(error)]
    if not isinstance(entry, dict):
        return [f"expected an object, got {type(entry).__name__}"]
    entry = {key: value for key, value in entry.items() if value is not None}
    wrong = [] if "path" in entry else ["no 'path'"]
    wrong += [
        f"{key!r} must be a string, got {type(entry[key]).__name__}"
        for key in ("path", "text", "task", "Q")
        if key in entry and not isinstance(entry[key], str)
    ]
    if entry.get("path") == "":
        wrong.append("'path' is empty")
    if isinstance(task := entry.get("task"), str) and not task.strip():
        wrong.append(f"'task' is empty: name one, or leave the key out for {DEFAULT_TASK!r}")
    wrong += [
        f"{key!r} holds {marker!r}, which prompts have where the audio stands: take it out"
        for key in ("text", "Q")
        for marker in SPEECH_MARKERS
        if isinstance(entry.get(key), str) and marker in entry[key]
    ]
    clips = entry.get("expand_wav", [])
    if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
        wrong.append("'expand_wav' must be a list of strings")
    elif "" in clips:
        wrong.append("'expand_wav' holds an empty name")
    return wrong or _repeated(raw)


def _repeated(raw: msgspec.Raw) -> list[str]:
    """The known keys that an entry has more than once."""
    keys = written_keys(bytes(raw))
    repeated = [key for key in Entry.__struct_fields__ if keys.count(key) > 1]
    return [f"a key stands twice: {key!r}, of which only the last would count: take one out" for key in repeated]
