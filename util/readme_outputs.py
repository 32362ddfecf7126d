"""Run what README.md shows and write down what came out, so that no shown output is made up.

  python util/readme_outputs.py            rewrite the outputs in README.md and README.ko.md (after `make quickstart`)
  python util/readme_outputs.py --check    change nothing; show what differs, and exit 1 if anything does

A block of output stands below a block of commands, behind `<!-- output -->`. Where lines are to be typed they stand in
the marker, one a line: `<!-- output, typed:` LINES `-->`. Below `<!-- scores: KEY KEY -->` stands a table with a row
per score of the quickstart; header and first column stay as they are, so that they can be in any language.
"""

import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.errors import UserError, run_cli
from salmonn.files import replacing
from util.quickstart import ENVIRONMENT
from util.quickstart_report import SCORES

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "README.ko.md"]
SUMMARY = "output/mini/summary.json"
OUTPUT = re.compile(
    r"(?P<above>```bash\n(?P<command>(?:(?!```).)+)\n```\n<!-- output(?:, typed:\n(?P<typed>.*?))? ?-->\n```\n)"
    r"(?P<shown>.*?)(?=^```$)",
    re.DOTALL | re.MULTILINE,
)
TABLE = re.compile(r"(?P<above><!-- scores: (?P<keys>[^\n]+) -->\n\|[^\n]+\n\|[^\n]+\n)(?P<rows>(?:\|[^\n]+\n)+)")


def main() -> None:
    """Bring the files up to date, or tell what differs."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if an output is another one now")
    args = parser.parse_args()
    os.chdir(ROOT)
    results: dict[tuple[str, str], str] = {}  # the translation shows the same commands
    differ = [update(Path(name), args.check, results) for name in args.files]
    sys.exit(1 if args.check and any(differ) else 0)


def update(path: Path, check: bool, results: dict[tuple[str, str], str]) -> bool:
    """Bring a file up to date, or with `check` print what differs; returns whether anything does."""
    old = path.read_text(encoding="utf-8")
    new = with_outputs(old, results)
    if "<!-- scores: " in old:
        new = with_scores(new, json.loads(Path(SUMMARY).read_text(encoding="utf-8")))
    if check:
        lines = (text.splitlines(keepends=True) for text in (old, new))
        sys.stdout.writelines(difflib.unified_diff(*lines, str(path), "as it comes out now"))
    elif new != old:
        with replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def with_outputs(text: str, results: dict[tuple[str, str], str]) -> str:
    """The text with each block of output as its command gives it now; `results` keeps them by (command, typed)."""

    def run_again(block: re.Match[str]) -> str:
        key = (block["command"], block["typed"] or "")
        if key not in results:
            results[key] = run(*key)
        return block["above"] + results[key]

    return OUTPUT.sub(run_again, text)


def run(command: str, typed: str) -> str:
    """What a command prints, with these lines typed after its prompts. Raises UserError if it fails."""
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    if program != "python":
        raise UserError(f"{command}: only commands that begin with python can be run")
    done = subprocess.run(
        [sys.executable, *arguments], input=typed, text=True, encoding="utf-8", check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{command}: exit code {done.returncode}\n{done.stdout}")
    lines = iter(typed.splitlines())
    shown = re.sub(r"^> ", lambda _: f"> {next(lines, '')}\n", done.stdout, flags=re.MULTILINE)
    return shown.rstrip().removesuffix(">").rstrip() + "\n"  # without the prompt that got no line


def with_scores(text: str, summary: dict[str, Any]) -> str:
    """The text with each table of scores filled from the quickstart's summary."""
    from salmonn.evaluation.metrics import METRICS

    def fill(found: re.Match[str]) -> str:
        rows = []
        for key, row in zip(found["keys"].split(), found["rows"].splitlines(), strict=True):
            show = METRICS[SCORES[key][1]].show
            values = [show(of[name]) for of in (summary["stage1"], summary) for name in (key, f"{key}_shuffled")]
            rows.append(f"| {' | '.join([row.split('|')[1].strip(), *values])} |\n")
        return found["above"] + "".join(rows)

    return TABLE.sub(fill, text)


if __name__ == "__main__":
    run_cli(main)
