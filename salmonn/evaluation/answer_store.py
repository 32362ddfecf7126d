"""Answers that outlive their process: each batch is written down as it comes, and never generated twice."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import appending
from salmonn.evaluation.requests import Answer, Prediction


class AnswerStore:
    """Files `<name>-rank<r>.jsonl` in a folder, a line per answer; `name` tells what the answers depend on.

    The code may have changed between two answers: each carries its commit, and `commits` has those that were read.
    """

    def __init__(self, folder: Path, name: str, commit: str, kind: type[Answer] = Prediction) -> None:
        self.folder, self.name, self.commit, self.kind = folder, name, commit, kind
        self.commits: set[str] = set()

    def read(self) -> dict[int, Answer]:
        """{position: answer} of every earlier run with the same name, whatever its number of ranks.

        A line that was being written when its process was killed does not count. Raises UserError
        for lines that nobody here has written.
        """
        found: dict[int, Answer] = {}
        for path in sorted(self.folder.glob(f"{self.name}-rank*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    values = json.loads(line)
                    position, commit = values.pop("position"), values.pop("commit")
                    output = self.kind(**values)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{path}, line {number}: not an answer ({error}); remove the file") from error
                found[position] = output
                self.commits.add(commit)
        return found

    def add(self, answers: Iterable[tuple[int, Answer]]) -> None:
        """Append answers to this rank's file; a clip that could not be read has none: the next run tries again."""
        lines = [
            json.dumps({"position": position, "commit": self.commit, **asdict(output)}, ensure_ascii=False)
            for position, output in answers
            if not output.unreadable
        ]
        if not lines:
            return
        path = self.folder / f"{self.name}-rank{distributed.rank()}.jsonl"
        with appending(path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
