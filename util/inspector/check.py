"""Decode every clip once and write down what came of it: resumable, incremental, parallel."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from salmonn.common.errors import UserError
from salmonn.data.integrity import VerdictList, check_files, version_of, write_verdicts


def check_integrity(files: Sequence[str], verdicts: Path, jobs: int = 0) -> int:
    """Append a verdict for each file that has none for its present version; returns how many were made.

    Stopped at any point (Ctrl-C, kill), the next call goes on with the files that are left.
    """
    todo = _without_verdict(files, verdicts)
    made = check_files(todo, "decode", jobs)
    try:
        with (
            VerdictList(verdicts).append_to() as file,
            tqdm(total=len(files), initial=len(files) - len(todo), desc="decoding", unit="file") as progress,
        ):
            for verdict in made:
                write_verdicts(file, [verdict])
                progress.update()
    except KeyboardInterrupt:
        print(f"\nthe verdicts so far are in {verdicts}; run it again to go on", file=sys.stderr)
        raise
    except OSError as error:
        raise UserError(f"verdict file {verdicts}: {error}; what was written stays, run again to go on") from error
    return len(todo)


def _without_verdict(files: Sequence[str], verdicts: Path) -> list[str]:
    if not verdicts.exists():
        return list(files)
    known = {hash(verdict.version) for verdict in VerdictList(verdicts).read() if verdict.checked == "decode"}
    return [file for file in files if hash(version_of(file)) not in known]


def verdict_table(files: Mapping[str, str], bad: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows {"corpus", "verdict", "files"} of {file: corpus}: good ones, then those in {file: reason} by its kind."""
    counts = Counter((corpus, bad.get(file, "good").partition(":")[0]) for file, corpus in files.items())
    rows = [{"corpus": corpus, "verdict": kind, "files": n} for (corpus, kind), n in counts.items()]
    return sorted(rows, key=lambda row: (row["corpus"], row["verdict"] != "good", -row["files"]))
