"""CSV, TSV, JSON lines and plain lines with their line numbers; whatever is wrong names file and line."""

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from salmonn.common.errors import UserError
from util.eval_sets.base import MissingError

_MARKS = (  # UTF-32's first: that of little-endian UTF-16 begins it
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
Row = TypeVar("Row")


def bad(path: Path, line: int, what: str) -> UserError:
    """The error of a line, to be raised."""
    return UserError(f"{path}, line {line}: {what}")


def source(path: Path, line: int) -> str:
    """How a line is named in messages."""
    return f"{path}, line {line}"


def decoded(content: bytes, errors: str = "strict") -> str:
    """UTF-8 with or without a byte order mark, or what the mark tells, as that of Excel's "Unicode Text".

    Line ends stay as they are. Raises UnicodeDecodeError.
    """
    return content.decode(next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig"), errors)


def undecodable(path: Path, error: UnicodeDecodeError) -> UserError:
    """The error of a file that is no text, or text of an encoding that it does not tell, to be raised."""
    reading = f"open({str(path)!r}, encoding='cp1252').read()"
    return UserError(
        f"{path}: no UTF-8 text ({error}): save it as UTF-8, in a spreadsheet by the file type CSV UTF-8; of Windows's "
        f"or Latin-1 text: python -c \"open('utf8-{path.name}', 'w', encoding='utf-8').write({reading})\""
    )


def read_text(path: Path, errors: str = "strict") -> str:
    """A text file as `decoded` reads it. Raises UserError."""
    try:
        return decoded(path.read_bytes(), errors)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """(number, line without the white space around it) of each line that is not empty."""
    # not splitlines: it would also break at characters that stand inside a text, such as U+2028
    for number, line in enumerate(read_text(path, errors).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a comma-separated file with quotes; `columns` have to be there."""
    return _rows(path, columns, {"delimiter": ",", "strict": True})


def tsv_rows(path: Path, columns: Sequence[str], escape: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a tab-separated file in which quotes are plain characters."""
    return _rows(path, columns, {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "escapechar": escape})


def _rows(path: Path, columns: Sequence[str], dialect: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **dialect)
    try:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            found = ", ".join(header) or "nothing"
            raise bad(path, 1, f"no column {', '.join(missing)}; the header has {found}")
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise bad(path, reader.line_num, f"{len(values)} values, the header has {len(header)}")
            yield reader.line_num, dict(zip(header, (value.strip() for value in values), strict=True))
    except csv.Error as error:
        raise bad(path, reader.line_num, str(error)) from error


def json_lines(path: Path, kind: type[Row]) -> Iterator[tuple[int, Row]]:
    """(line, object) of a file with one JSON object a line, with the fields that `kind`, a msgspec.Struct, has."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in lines(path):
        try:
            yield number, decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise bad(path, number, str(error)) from error


def named_clip(pattern: str, row: Mapping[str, str], path: Path, line: int) -> str:
    """The file name of a row by a pattern such as "{youtube_id}.wav"."""
    try:
        return pattern.format_map(row)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise bad(path, line, f"--name {pattern!r} does not fit its columns: {', '.join(row)}") from error
