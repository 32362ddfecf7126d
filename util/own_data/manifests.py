"""Lists in JSON: an object a line, or one list of them; the manifests of NeMo and the cuts of lhotse among them."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.common.packed import unpacked
from util.eval_sets.tables import decoded, undecodable
from util.own_data.base import Reading, Row, text_of


def read_manifest(reading: Reading) -> Iterator[Row]:
    """A clip an object; a number `offset` and `duration` beside it cut a piece of a recording (NeMo)."""
    objects = list(_objects(reading.source))
    if not objects:
        raise UserError(f"{reading.source}: it is empty")
    if "recording" in objects[0][1] or "supervisions" in objects[0][1] or "tracks" in objects[0][1]:
        for where, values in objects:
            yield _cut(where, values)
        return
    if "sources" in objects[0][1] or "recording_id" in objects[0][1]:
        raise UserError(
            f"{reading.source}: it holds recordings or supervisions of lhotse alone: give its cuts, as "
            "`lhotse cut simple -r recordings.jsonl.gz -s supervisions.jsonl.gz cuts.jsonl.gz` makes them"
        )
    there = list(dict.fromkeys(key for _, values in objects for key in values))
    columns = reading.columns_of(there)
    for where, values in objects:
        yield _row(where, values, columns)


def _row(where: str, values: dict[str, Any], columns: dict[str, str]) -> Row:
    path = values.get(columns["path"])
    if isinstance(path, dict):  # {"path": ..., "bytes": null} of Hugging Face
        path = path.get("path")
    if not isinstance(path, str):
        raise UserError(f"{where}: {columns['path']} must be text, got {str(path)[:60]}")
    words = {wanted: text_of(values.get(name), where, name) for wanted, name in columns.items() if wanted != "path"}
    expand = values.get("expand_wav") or []
    if not isinstance(expand, list) or not all(isinstance(clip, str) for clip in expand):
        raise UserError(f"{where}: expand_wav must be a list of paths")
    start = _number(where, values, "offset") or 0.0
    return Row(
        where, path, words.get("text"), words.get("task") or "", words.get("Q") or "", tuple(expand),
        start, _number(where, values, "duration") if "offset" in values else None,
    )  # fmt: skip


def _cut(where: str, values: dict[str, Any]) -> Row:
    """A cut of lhotse: a piece of one recording in one file. Raises UserError for other kinds."""
    recording = values.get("recording")
    kind = values.get("type", "MonoCut")
    if kind != "MonoCut" or not isinstance(recording, dict):
        raise UserError(f"{where}: a {kind}{'' if recording else ' without its recording'} is no piece of one file")
    sources = recording.get("sources") or [{}]
    of_file = [one.get("source") for one in sources if isinstance(one, dict) and one.get("type") == "file"]
    if len(sources) != 1 or not of_file or not isinstance(of_file[0], str):
        raise UserError(f"{where}: its recording is not one file, but {json.dumps(sources)[:80]}")
    if values.get("channel", 0) not in (0, [0]):
        raise UserError(f"{where}: channel {values['channel']} is asked for; only the first one of a file is heard")
    start, seconds = _number(where, values, "start") or 0.0, _number(where, values, "duration")
    total = _number(where, recording, "duration")
    is_whole = start == 0 and (seconds is None or total is None or math.isclose(seconds, total, abs_tol=0.01))
    said = [one for one in values.get("supervisions") or () if isinstance(one, dict) and one.get("text")]
    text = " ".join(str(one["text"]) for one in sorted(said, key=lambda one: one.get("start") or 0))
    name = str(values.get("id", ""))
    return Row(where, of_file[0], text or None, start=start, seconds=None if is_whole else seconds, name=name)


def _number(where: str, values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{where}: {key} = {value!r} is no number of seconds")
    return float(value)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, object) of JSON Lines, or of one JSON list. Raises UserError for anything else."""
    text = _text(path)
    if text.lstrip().startswith("["):
        values = _parsed(f"{path}", text)
        numbered = [(f"{path}, entry {i}", value) for i, value in enumerate(values)]
    elif (whole := _annotation(text)) is not None:
        numbered = [(f"{path}, entry {i}", value) for i, value in enumerate(whole)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        numbered = [(f"{path}, line {i}", _parsed(f"{path}, line {i}", line)) for i, line in lines if line.strip()]
    for where, value in numbered:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object with keys, got {str(value)[:60]!r}")
        yield where, value


def _annotation(text: str) -> list[Any] | None:
    """The entries of what is an annotation file already: one object with a list of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    entries = value.get("annotation") if isinstance(value, dict) else None
    return entries if isinstance(entries, list) else None


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = b"".join(unpacked(path, io.BytesIO(content), len(content)))
        return decoded(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
