"""submission.csv: exactly `testset_id,text`, in the order of the set, every id once."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from salmonn.common.errors import UserError, examples
from salmonn.data.annotations import Annotations
from salmonn.evaluation.clips import clips_of
from salmonn.evaluation.tasks import EvalTask

HEADER = ["testset_id", "text"]


# What pandas.read_csv, with which the official validator reads, takes for a missing value and not for a text.
NO_TEXT = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
FILLER = "."  # makes a text of each of them, and is removed before scoring
_FORMULA = ("=", "+", "-", "@")  # by which a spreadsheet begins one


def submission_csv(ids: Sequence[str], texts: Sequence[str]) -> str:
    """The file's content, a line per clip. White space in a text becomes one space, none becomes a full stop."""
    buffer = io.StringIO(newline="")
    rows = [[name, _as_text(text)] for name, text in zip(ids, texts, strict=True)]
    csv.writer(buffer, lineterminator="\n").writerows([HEADER, *rows])
    return buffer.getvalue()


def _as_text(answer: str) -> str:
    text = " ".join(answer.split())
    return text + FILLER if text in NO_TEXT else text


def submission_notes(ids: Sequence[str], texts: Sequence[str]) -> list[str]:
    """What a person is to know of the texts of a submission: those that were filled, and seeming formulas."""
    shown = dict(zip(ids, (" ".join(text.split()) for text in texts), strict=True))
    filled = [f"{name} ({text!r})" for name, text in shown.items() if text in NO_TEXT]
    notes = []
    if filled:
        what = "texts that the official validator takes for missing end in a full stop"
        notes.append(f"Submission: {len(filled)} {what}: {examples(filled)}.")
    if formulas := _formulas(shown.items()):
        notes.append(f"Submission: {formulas}.")
    return notes


def other_ids(ids: Sequence[str]) -> str:
    """What is to be told of ids of a set that are not of the hackathon's kind; "" where all are."""
    others = [name for name in ids if not re.fullmatch(r"test\d{4}", name)]
    what = "ids are not as test0000, which the official validator asks for"
    return f"{len(others)} {what}: {examples(others)}" if others else ""


def _formulas(rows: Iterable[tuple[str, str]]) -> str:
    named = [name for name, text in rows if text.startswith(_FORMULA)]
    return f"{len(named)} texts begin as a formula: a spreadsheet would change them: {examples(named)}" if named else ""


def validate_submission(path: Path, datasets: DictConfig, annotation: str = "") -> str:
    """Check a file against `annotation`, else that set of the config whose ids it shares most; what to tell.

    Raises UserError for a file or a set that cannot be read, and for the first thing that is wrong.
    """
    try:
        content = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"submission {path} cannot be read: {error}") from error
    keys = ("test_ann_path_asr", "test_ann_path_aac", "test_ann_path")
    sets = [annotation] if annotation else [datasets[key] for key in keys if Path(datasets[key]).is_file()]
    if not sets:
        raise UserError(f"no set to check {path} against: none of datasets.{', '.join(keys)} is there; give --ann FILE")
    found = {row[0] for row in _rows(content, str(path))[1:] if row}
    ids = {name: _ids_of(name) for name in sets}
    chosen = max(sets, key=lambda name: (found == set(ids[name]), len(found.intersection(ids[name]))))
    if not annotation and found.isdisjoint(ids[chosen]):
        raise UserError(f"{path} shares no testset_id with {', '.join(sets)}: whose submission is it? Give --ann FILE")
    check_submission(content, ids[chosen], f"{path}, checked against {chosen}")
    formulas = _formulas((name, text) for name, text in _rows(content, str(path))[1:])
    notes = filter(None, [formulas, other_ids(ids[chosen])])
    return "; ".join([f"{path}: a valid submission for {chosen}, {len(ids[chosen])} rows", *notes])


def _ids_of(annotation: str) -> list[str]:
    entries = Annotations(annotation, need_text=False)
    task = EvalTask("submission", annotation=annotation, submission=True)
    return [clip.id for clip in clips_of([entries.as_written(i) for i in range(len(entries))], task, annotation)]


def check_submission(content: str, ids: Sequence[str], source: str) -> None:
    """Raise UserError unless `content` answers exactly the `ids`, in their order, each by what pandas reads as text."""
    header, *rows = _rows(content, source) or [[]]
    if header and header[0].startswith("\ufeff"):
        raise UserError(f"{source}: begins with a byte-order mark; save it as UTF-8 without one")
    if header != HEADER:
        raise UserError(f"{source}: the header must be {','.join(HEADER)}, found {','.join(header)!r}")
    wide = [f"row {number}" for number, row in enumerate(rows, start=1) if len(row) != len(HEADER)]
    _refuse(source, "rows have not exactly two columns", wide)
    found = [row[0] for row in rows]
    in_file, in_set = set(found), set(ids)
    wrong = {
        "ids occur more than once": [name for name, count in Counter(found).items() if count > 1],
        "ids are missing": [name for name in ids if name not in in_file],
        "ids are not in the set": [name for name in found if name not in in_set],
    }
    if problems := [f"{len(names)} {problem}: {examples(names)}" for problem, names in wrong.items() if names]:
        raise UserError(f"{source}: {'; '.join(problems)}")
    moved = [name for name, expected in zip(found, ids, strict=True) if name != expected]
    _refuse(source, "ids are not in the order of the set", moved)
    texts = dict(rows)
    missing = [f"{name} ({text!r})" for name, text in texts.items() if text in NO_TEXT]
    _refuse(source, f"texts are missing values to the official validator; {FILLER!r} behind them makes texts", missing)
    if all(map(_is_no_string, texts.values())):
        raise UserError(f"{source}: all texts are numbers or truth values, no texts to the official validator")


def _is_no_string(text: str) -> bool:
    """Whether pandas makes a number or a truth value of it, where the whole column is of that kind."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _rows(content: str, source: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(content, newline=""), strict=True))  # a quote without its end is an error
    except csv.Error as error:
        raise UserError(f"{source}: not a CSV file: {error}") from error


def _refuse(source: str, problem: str, names: Sequence[str]) -> None:
    if names:
        raise UserError(f"{source}: {len(names)} {problem}: {examples(names)}")
