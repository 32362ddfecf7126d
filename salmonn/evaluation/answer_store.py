"""Append-only files of answers: what a killed or repeated run has there is not generated again."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from salmonn.common import distributed
from salmonn.common.files import appending, read_json_lines, sealed
from salmonn.evaluation.requests import Outcome, Prediction


class AnswerStore:
    """Files `<name>-rank<r>.jsonl` in a folder, a line per answer; `name` tells what the answers depend on.

    The code may have changed between two answers: each carries its commit, and `commits` has those that were read.
    """

    def __init__(self, folder: Path, name: str, commit: str, kind: type[Outcome] = Prediction) -> None:
        self.folder, self.name, self.commit, self.kind = folder, name, commit, kind
        self.commits: set[str] = set()

    def read(self) -> dict[int, Outcome]:
        """{position: answer} of every earlier run with the same name, whatever its number of ranks.

        Lines that a kill has cut, or that were damaged later, do not count. Raises UserError for a file that cannot
        be read.
        """
        found: dict[int, Outcome] = {}
        for path in sorted(self.folder.glob(f"{self.name}-rank*.jsonl")):
            for position, commit, answer in read_json_lines(path, "an answer", self._parse):
                found[position] = answer
                self.commits.add(commit)
        return found

    def _parse(self, text: bytes) -> tuple[int, str, Outcome]:
        line = json.loads(text)
        return line.pop("position"), line.pop("commit"), self.kind(**line)

    def add(self, answers: Iterable[tuple[int, Outcome]]) -> None:
        """Append answers to this rank's file; a clip that could not be read has none: the next run tries again."""
        lines = [
            sealed(
                json.dumps({"position": position, "commit": self.commit, **asdict(answer)}, ensure_ascii=False).encode()
            )
            for position, answer in answers
            if not answer.unreadable
        ]
        if not lines:
            return
        path = self.folder / f"{self.name}-rank{distributed.rank()}.jsonl"
        with appending(path) as file:
            file.write(b"".join(lines))
