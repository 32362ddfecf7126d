"""CSV, TSV and other tables with or without a header, and bare lists of clips."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.eval_sets.tables import bad, lines, read_text, source
from util.own_data.base import NAMES, Reading, Row
from util.own_data.folders import text_beside

_DELIMITERS = ("\t", "|", ";", ",")
_TWO = ("path", "text")  # the columns of a table without header that says no more


def read_table(reading: Reading) -> Iterator[Row]:
    """A row per clip; a file that has a clip in each line, and nothing else, is a list of clips."""
    text = read_text(reading.source)
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = next((one for one in _DELIMITERS if one in first), None)
    if delimiter is None or _is_clip(reading.source, first):
        yield from _read_list(reading)
        return
    if not (rows := _cells(reading.source, text, delimiter)):
        return
    _, header = rows[0]
    if has_numbers := any(column.isdecimal() for column in reading.columns.values()):
        header = [str(number) for number in range(1, len(header) + 1)]
    elif not reading.columns and _is_clip(reading.source, header[0]):
        if len(header) > len(_TWO) and reading.needs_text:  # such as clip|speaker|text: the second is not the text
            told = ", ".join(f"{number} {text[:20]!r}" for number, text in enumerate(header, 1))
            raise bad(reading.source, 1, f"no header, and {len(header)} columns ({told}): say --columns path=1 text=N")
        header, has_numbers = [*_TWO, *map(str, range(3, len(header) + 1))], True
    yield from _rows(reading, header, rows if has_numbers else rows[1:])


def _rows(reading: Reading, header: list[str], rows: list[tuple[int, list[str]]]) -> Iterator[Row]:
    columns = reading.columns_of(header)
    for line, cells in rows:
        if len(cells) != len(header):
            raise bad(reading.source, line, f"{len(cells)} values, {len(header)} are expected: {', '.join(header)}")
        values = dict(zip(header, cells, strict=True))
        given = {wanted: values[column] for wanted, column in columns.items()}
        if not given["path"]:
            raise bad(reading.source, line, f"the column {columns['path']} is empty")
        where = source(reading.source, line)
        yield Row(where, given["path"], given.get("text"), given.get("task", ""), given.get("Q", ""))


def _read_list(reading: Reading) -> Iterator[Row]:
    """A clip a line; texts lie beside the clips. A table of one column has its name in the first line."""
    for i, (number, path) in enumerate(lines(reading.source)):
        if i or path.lower() not in NAMES["path"]:
            yield Row(source(reading.source, number), path, text_beside(_found_at(reading.source.parent, path)))


def _found_at(folder: Path, path: str) -> Path:
    """Where a path of a list leads, seen from the folder of the list or from here."""
    # os.path's functions, here and below: those of pathlib raise OSError for what is longer than a name can be
    return next((place for place in (folder / path, Path(path)) if os.path.exists(place)), folder / path)


def _is_clip(table: Path, path: str) -> bool:
    return os.path.isfile(_found_at(table.parent, path.strip()))


def _cells(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of each line that is not empty. Raises UserError."""
    if delimiter == "|" or (delimiter == "\t" and not _is_quoted(text)):
        dialect: dict[str, Any] = {"quoting": csv.QUOTE_NONE}
    else:
        dialect = {"strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise bad(path, reader.line_num, f"{error}; a quotation mark inside a value is written twice") from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _is_quoted(text: str) -> bool:
    """Whether quotation marks in a tab-separated table are CSV's, around values: so Excel and pandas write them.

    Corpora such as Common Voice have them as plain characters, and then some value does not end where its quote does.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    try:
        widths = {len(cells) for cells in reader if cells}
    except csv.Error:
        return False
    return len(widths) == 1
