"""Folders of Hugging Face's `datasets`: Parquet, or Arrow as save_to_disk writes it, with the recordings inside."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.common.files import visible
from util.eval_sets.arrow import ending_of, open_table
from util.own_data.base import Reading, Row, text_of

SUFFIXES = (".parquet", ".arrow")


def data_files(source: Path) -> list[Path]:
    """The files of a folder, or the file itself. Raises UserError where a folder holds several splits."""
    if source.is_file():
        return [source]
    files = [p for p in visible(source, "**/*") if p.suffix in SUFFIXES and not p.name.startswith("cache-")]
    splits = {_split_of(path, source): path for path in reversed(files)}
    if len(splits) > 1:
        example = min(splits.values())
        one = example.parent if example.parent != source else f"{source}/{min(splits)}-*{example.suffix}"
        raise UserError(f"{source} holds the splits {', '.join(sorted(splits))}: name one of them, as {one}")
    return files


def _split_of(path: Path, root: Path) -> str:
    """train of train-00000-of-00002.parquet; of save_to_disk's data-*.arrow and of plain numbers the folder."""
    name = path.stem.partition("-")[0].partition("_")[0]
    folder = str(path.parent.relative_to(root))
    return folder if name in ("data", "part", "") or name.isdecimal() else f"{folder}/{name}".removeprefix("./")


def read_huggingface(reading: Reading) -> Iterator[Row]:
    """A row per clip; its recording is in the row, or a file beside."""
    for path in data_files(reading.source):
        yield from _read_file(reading, path)


def _read_file(reading: Reading, path: Path) -> Iterator[Row]:
    with open_table(path) as (schema, rows):
        columns = Reading(path, reading.columns, reading.needs_text).columns_of(schema.names)
        labels = _labels(path, schema, columns.get("text", ""))
        for number, values in enumerate(rows(list(dict.fromkeys(columns.values()))), start=1):
            given = {wanted: values[column] for wanted, column in columns.items()}
            yield _row(path, number, given, labels)


def _labels(path: Path, schema: Any, column: str) -> list[str]:
    """Names of the numbers in a column of classes, as `datasets` stores them beside the columns."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = told.get("info", {}).get("features", {}).get(column) or {}
        names = feature.get("names") or [] if feature.get("_type") == "ClassLabel" else []
        return list(map(str, names))
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its metadata of classes (huggingface) cannot be read: {error}") from error


def _row(path: Path, number: int, given: dict[str, Any], labels: list[str]) -> Row:
    where, clip, text = f"{path}, row {number}", given["path"], given.get("text")
    if labels and isinstance(text, int):
        if not 0 <= text < len(labels):
            raise UserError(f"{where}: class {text} has no name (there are {len(labels)})")
        text = labels[text]
    named, content = (clip.get("path") or "", clip.get("bytes")) if isinstance(clip, dict) else (clip, None)
    if not isinstance(named, str) or not (named or content):
        raise UserError(f"{where}: {str(clip)[:60]!r} is no recording: the column must hold sound files, or paths")
    ending = Path(named).suffix or ending_of(content or b"")
    words = {key: text_of(value, where, key) for key, value in {**given, "text": text}.items() if key != "path"}
    task, question = words.get("task") or "", words.get("Q") or ""
    name = f"{path.stem}-{number:06}{ending}"
    return Row(where, named, words["text"], task, question, name=name, content=content)
