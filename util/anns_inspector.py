"""Show how much of each annotation file is ready: which clips are on disk, by task and corpus.

  python util/anns_inspector.py                                   every *.json and *.json.gz in ann/
  python util/anns_inspector.py --ann ann/stage1_train.json --prefix /data --json ready.json

An entry is ready when its clip, and each clip of its expand_wav, exists and is not empty. The
corpus is the first folder of the entry's path. Exit code 0, also when clips are missing; 2 when
an annotation file cannot be read.
"""

import json
import stat
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.annotations import Annotations, clip_paths
from salmonn.config import load_config
from salmonn.errors import UserError, run_cli

ANN_FOLDER = Path("ann")
BASE_CONFIG = Path(__file__).resolve().parent.parent / "configs/base.yaml"


@dataclass
class Readiness:
    """Entries by (task, corpus)."""

    total: Counter[tuple[str, str]] = field(default_factory=Counter)
    ready: Counter[tuple[str, str]] = field(default_factory=Counter)


def main() -> None:
    args = parse_arguments()
    reports = []
    for path in args.ann or default_files(ANN_FOLDER):
        report = describe(path, count_ready(Annotations(path, need_text=False), args.prefix, str(path)))
        print(text_table(report), flush=True)
        reports.append(report)
    if args.json:
        content = {"prefix": args.prefix, "files": reports}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> Any:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prefix",
        default=load_config(BASE_CONFIG).datasets.prefix,
        metavar="DIR",
        help="put in front of each path of the annotation (default: datasets.prefix of configs/base.yaml, %(default)s)",
    )
    parser.add_argument(
        "--ann", nargs="+", type=Path, metavar="FILE", help="annotation files, also .gz (default: all in ann/)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers as JSON, too")
    return parser.parse_args()


def default_files(folder: Path) -> list[Path]:
    """The annotation files of a folder. Raises UserError where there are none."""
    found = sorted(path for path in folder.glob("*") if path.name.endswith((".json", ".json.gz")))
    if not found:
        raise UserError(
            f"no annotation file in {folder}/: put the stage files there (stage1_train.json, ...; "
            f"{folder}/README.md says where to get them), or name files by --ann FILE ..."
        )
    return found


def count_ready(entries: Iterable[dict[str, Any]], prefix: str, description: str = "") -> Readiness:
    """Look for the clips of every entry; each file is looked for once."""
    ready = cache(is_ready)
    counts = Readiness()
    for entry in tqdm(entries, desc=description, unit="entry", mininterval=0.5):
        key = entry["task"], corpus_of(entry["path"])
        counts.total[key] += 1
        counts.ready[key] += all(map(ready, clip_paths(entry, prefix)))
    return counts


def is_ready(path: Path) -> bool:
    """Whether this is a file with something in it."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # absent, not permitted, or no possible name
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def corpus_of(path: str) -> str:
    """The first folder of an annotation's path."""
    folders = [part for part in path.split("/")[:-1] if part not in ("", ".")]
    return folders[0] if folders else "(no folder)"


def describe(path: Path, counts: Readiness) -> dict[str, Any]:
    """Rows by task and corpus, sorted, with totals per task and for the file."""
    tasks = sorted({task for task, _ in counts.total})
    keys = sorted(counts.total)
    return {
        "file": str(path),
        "corpora": [{"task": task, "corpus": corpus, **_row(counts, [(task, corpus)])} for task, corpus in keys],
        "tasks": [{"task": task, **_row(counts, [key for key in keys if key[0] == task])} for task in tasks],
        "total": _row(counts, keys),
    }


def _row(counts: Readiness, keys: list[tuple[str, str]]) -> dict[str, float]:
    ready, total = sum(counts.ready[key] for key in keys), sum(counts.total[key] for key in keys)
    return {"ready": ready, "not_ready": total - ready, "total": total, "ready_rate": ready / total}


def text_table(report: dict[str, Any]) -> str:
    """The lines that a person reads."""

    def line(name: str, row: dict[str, Any]) -> str:
        counts = f"ready: {row['ready']}, not_ready: {row['not_ready']}, total: {row['total']}"
        return f"{name} | {counts} | ready_rate: {row['ready_rate']:.2%}"

    lines = [report["file"]]
    for task in report["tasks"]:
        corpora = [row for row in report["corpora"] if row["task"] == task["task"]]
        lines += [line(f"[{row['task']}] {row['corpus']}", row) for row in corpora]
        if len(corpora) > 1:
            lines.append(line(f"[{task['task']}] all corpora", task))
    return "\n".join([*lines, line("all tasks", report["total"]), ""])


if __name__ == "__main__":
    run_cli(main)
