"""The page of a result: report.json with all values, report.md with the same in words, pictures beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salmonn.common.charts import write_png
from salmonn.common.files import write_json, write_text
from salmonn.evaluation.report.tables import provenance_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(
    folder: Path,
    title: str,
    parts: Sequence[str],
    values: Mapping[str, Any],
    pictures: "Mapping[str, Figure | None] | None" = None,
    provenances: Sequence[Mapping[str, Any]] = (),
    subject: str = "all of this",
) -> None:
    """Write report.json from `values`, and report.md from title and parts; each is complete whenever it exists.

    `pictures` by file name, None where there is nothing to draw; a part shows them. `provenances`: what the
    `subject` depends on, told at the end as far as they share it.
    """
    write_json(folder / "report.json", values)
    depends = [f"## What {subject} depends on", provenance_table(provenances)] if provenances else []
    write_text(folder / "report.md", "\n\n".join([f"# {title}", *parts, *depends]) + "\n")
    for name, figure in (pictures or {}).items():
        if figure:
            write_png(figure, folder / name)


def tell(shown: str, folder: Path) -> None:
    """Print what a person is to see of a result, and where all of it is."""
    print(f"\n{shown}\n\nResults: {folder}/", flush=True)
