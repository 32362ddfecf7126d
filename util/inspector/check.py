"""Decode every clip once and write down what came of it: resumable, incremental, parallel."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from salmonn.common.errors import UserError, examples
from salmonn.common.screen import counted
from salmonn.data.integrity import VerdictList, check_files, kind_of, version_of, write_verdicts
from salmonn.data.unreadable import NOT_VERIFIED, unverified_files


def check_integrity(files: Sequence[str], verdicts: Path, jobs: int = 0) -> tuple[int, dict[str, str]]:
    """Append a verdict for each file that has none for its present version.

    Returns how many were looked at, and {file: reason} of those that the system could not read now: they have no
    verdict, and the next call looks at them again. Stopped at any point (Ctrl-C, kill), it goes on with what is left.
    """
    todo = _without_verdict(files, verdicts)
    passing: dict[str, str] = {}
    made = check_files(todo, "decode", jobs)
    try:
        with (
            VerdictList(verdicts).append_to() as file,
            tqdm(total=len(files), initial=len(files) - len(todo), desc="decoding", unit="file") as progress,
        ):
            for verdict in made:
                if verdict.is_passing:
                    passing[verdict.path] = verdict.reason
                else:
                    write_verdicts(file, [verdict])
                progress.update()
    except KeyboardInterrupt:
        print(f"\nthe verdicts so far are in {verdicts}; run it again to go on", file=sys.stderr)
        raise
    except OSError as error:
        raise UserError(f"verdict file {verdicts}: {error}; what was written stays, run again to go on") from error
    return len(todo), passing


def _without_verdict(files: Sequence[str], verdicts: Path) -> list[str]:
    if not verdicts.exists():
        return list(files)
    return [file for file, reason in unverified_files(files, verdicts).items() if reason == NOT_VERIFIED]


def odd_files(files: Iterable[str], verdicts: Path) -> tuple[dict[str, str], int]:
    """{file: what is odd} of good files that are silent or hardly longer than nothing, in their present version.

    And how many good verdicts are of before this was looked at, and do not tell.
    """
    odd: dict[tuple[str, int, int], str] = {}
    untold: set[int] = set()  # hashes of paths
    for verdict in VerdictList(verdicts).read():
        if verdict.checked != "decode" or verdict.is_passing:
            continue
        odd.pop(verdict.version, None)
        untold.discard(hash(verdict.path))
        if verdict.remark:
            odd[verdict.version] = verdict.remark
        elif verdict.ok and verdict.silent is None:
            untold.add(hash(verdict.path))
    paths, files = {path for path, _, _ in odd}, [*files]
    found = {file: odd.get(version_of(file), "") for file in files if file in paths}
    return {file: remark for file, remark in found.items() if remark}, sum(hash(file) in untold for file in files)


def odd_lines(odd: Mapping[str, str], untold: int) -> list[str]:
    """What is said of them."""
    lines = []
    for remark in dict.fromkeys(odd.values()):
        named = [file for file, what in odd.items() if what == remark]
        lines.append(f"{remark}: {examples(named)}; good and ready all the same, but hear whether they are meant")
    if untold:
        told = counted(untold, "good verdict")
        lines.append(f"{told} of earlier versions do not tell whether a file is silent; a new list does")
    return lines


def passing_line(passing: Mapping[str, str]) -> str:
    """What is said of {file: reason} that could not be read now."""
    kinds = Counter(reason.partition(": ")[2] for reason in passing.values())
    counts = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
    return f"{len(passing)} clips could not be read now: {counts}; they have no verdict, the next run looks again"


def verdict_table(files: Mapping[str, str], others: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows {"corpus", "verdict", "files"} of {file: corpus}: good ones, then those in {file: reason} by its kind."""
    counts = Counter((corpus, kind_of(others.get(file, "good"))) for file, corpus in files.items())
    rows = [{"corpus": corpus, "verdict": kind, "files": n} for (corpus, kind), n in counts.items()]
    return sorted(rows, key=lambda row: (row["corpus"], row["verdict"] != "good", -row["files"]))
