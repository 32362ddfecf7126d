"""submission.csv: exactly `testset_id,text`, in the order of the set, every id once."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

from salmonn.errors import UserError
from salmonn.evaluation.tasks import examples

HEADER = ["testset_id", "text"]


def submission_csv(ids: Sequence[str], texts: Sequence[str]) -> str:
    """The file's content, one line per clip (white space in a text becomes one space), checked."""
    buffer = io.StringIO(newline="")
    rows = [[name, " ".join(text.split())] for name, text in zip(ids, texts, strict=True)]
    csv.writer(buffer, lineterminator="\n").writerows([HEADER, *rows])
    check_submission(buffer.getvalue(), ids, "the submission")
    return buffer.getvalue()


def check_submission(content: str, ids: Sequence[str], source: str) -> None:
    """Raise UserError unless `content` answers exactly the `ids`, in their order."""
    header, *rows = list(csv.reader(io.StringIO(content, newline=""))) or [[]]
    if header != HEADER:
        raise UserError(f"{source}: the header must be {','.join(HEADER)}, found {','.join(header)!r}")
    wide = [f"row {number}" for number, row in enumerate(rows, start=1) if len(row) != len(HEADER)]
    _refuse(source, "rows have not exactly two columns", wide)
    found = [row[0] for row in rows]
    _refuse(source, "ids occur more than once", [name for name, count in Counter(found).items() if count > 1])
    in_file, in_set = set(found), set(ids)
    _refuse(source, "ids are missing", [name for name in ids if name not in in_file])
    _refuse(source, "ids are not in the set", [name for name in found if name not in in_set])
    moved = [name for name, expected in zip(found, ids, strict=True) if name != expected]
    _refuse(source, "ids are not in the order of the set", moved)


def _refuse(source: str, problem: str, names: Sequence[str]) -> None:
    if names:
        raise UserError(f"{source}: {len(names)} {problem}: {examples(names)}")
