"""Run what README.md shows and write down what came out, so that no shown output or picture is made up.

  python dev/readme_outputs.py            bring the READMEs and their pictures up to date (after `make quickstart`)
  python dev/readme_outputs.py --check    change nothing; show which outputs differ, and exit 1 if any does

A block of output stands below a block of bash or Python, behind `<!-- output -->`. In that marker may follow, in this
order: `, exit 2`, the exit code if it is not 0; `, first 9` and `, last 2`, the lines that are shown of a long output;
`, without PATH PATH`, what is removed before, for commands that make it; `, needs PATH`, a model without which the
output stays as it is, which is told; and what is to be typed, a line each: `, typed:` LINES `-->`. Progress bars are
left out, and which checkpoint is started from, with its time of day.

Below `<!-- scores: KEY KEY -->` stands a table with a row per score of the quickstart, from the lowest to the highest
of those in output/mini and output/mini_* (other seeds: --seed 1 --out output/mini_1); header and first column stay as
they are, so that they can be in any language. `<!-- minutes -->` stands before the number of minutes that the
quickstart in output/mini took, and `<!-- picture: COMMAND -->` above a picture, which this command makes.
"""

import difflib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli
from salmonn.common.errors import UserError
from salmonn.common.files import replacing
from util.jobs import ENVIRONMENT
from util.quickstart_report import SCORES

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "README.ko.md", "docs/using.md", "docs/training.md", "docs/data.md", "docs/evaluation.md"]
SUMMARIES = "output/mini/summary.json", "output/mini_*/summary.json"
REMOVABLE = Path("output")  # nothing outside is removed
OUTPUT = re.compile(
    r"(?P<above>```(?P<language>bash|python)\n(?P<code>(?:(?!```).)+)\n```\n"
    r"<!-- output(?:, exit (?P<exit>\d+))?(?:, first (?P<first>\d+))?(?:, last (?P<last>\d+))?"
    r"(?:, without (?P<without>[^,\n]+?))?(?:, needs (?P<needs>[^,\n]+?))?(?:, typed:\n(?P<typed>.*?))? ?-->\n```\n)"
    r"(?P<shown>.*?)(?=^```$)",
    re.DOTALL | re.MULTILINE,
)
TABLE = re.compile(r"(?P<above><!-- scores: (?P<keys>[^\n]+) -->\n\|[^\n]+\n\|[^\n]+\n)(?P<rows>(?:\|[^\n]+\n)+)")
MINUTES = re.compile(r"(?<=<!-- minutes -->)\d+")
PICTURE = re.compile(r"<!-- picture: (?P<command>.+) -->\n!\[.*\]\((?P<file>.+)\)")

Results = dict[str, str]  # what came out, by the block with its marker: the translation shows the same blocks


def main() -> None:
    """Bring the files up to date, or tell what differs."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "files", nargs="*", default=FILES, metavar="FILE", help=f"pages to look at (default: {' '.join(FILES)})"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if an output is another one now")
    args = parser.parse_args()
    os.chdir(ROOT)
    results: Results = {}
    paths = [Path(name) for name in args.files]
    differ = [update(path, args.check, results) for path in paths]
    if args.check:
        sys.exit(int(any(differ)))
    draw_pictures(paths)  # last: where one cannot be made, the pages are written


def update(path: Path, check: bool, results: Results) -> bool:
    """Bring a file up to date, or with `check` print what differs; returns whether anything does."""
    old = path.read_text(encoding="utf-8")
    new = with_outputs(old, results)
    if "<!-- scores: " in old:
        found = [file for pattern in SUMMARIES for file in sorted(Path().glob(pattern))]
        new = with_scores(new, [json.loads(file.read_text(encoding="utf-8")) for file in found])
    if check:
        was, is_now = (text.splitlines(keepends=True) for text in (old, new))
        sys.stdout.writelines(difflib.unified_diff(was, is_now, str(path), "as it comes out now"))
        return new != old
    if new != old:
        with replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def draw_pictures(paths: Sequence[Path]) -> None:
    """Make the pictures of these files, each once."""
    found = (PICTURE.finditer(path.read_text(encoding="utf-8")) for path in paths)
    for command in dict.fromkeys(picture["command"] for pictures in found for picture in pictures):
        run(shlex.split(command))


def with_outputs(text: str, results: Results) -> str:
    """The text with each block of output as its commands give it now."""

    def run_again(block: re.Match[str]) -> str:
        if block["needs"] and not Path(block["needs"]).exists():
            print(f"not run, for want of {block['needs']}:\n{block['code']}", file=sys.stderr)
            return block[0]
        if block["above"] not in results:
            results[block["above"]] = output_of(block)
        return block["above"] + results[block["above"]]

    return OUTPUT.sub(run_again, text)


def output_of(block: re.Match[str]) -> str:
    """What the commands of a block print, as its marker wants to see it."""
    for name in (block["without"] or "").split():
        remove(Path(name))
    if block["language"] == "python":
        commands = [["python", "-c", block["code"]]]
    else:
        lines = block["code"].replace("\\\n", " ").splitlines()
        commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    printed = "".join(run(words, block["typed"] or "", int(block["exit"] or 0)) for words in commands)
    lines = [line for line in printed.strip("\n").splitlines() if line != "```"]  # doctor's, for bug reports
    if block["first"] or block["last"]:
        first, last = (int(block[name] or 0) for name in ("first", "last"))
        lines = [*lines[:first], "...", *lines[max(first, len(lines) - last) :]]
    return "".join(f"{line}\n" for line in lines)


def remove(path: Path) -> None:
    """Remove a file or folder of an earlier run. Raises UserError for one outside output/."""
    if REMOVABLE.resolve() not in path.resolve().parents:
        raise UserError(f"{path} is not in {REMOVABLE}/: a page can have nothing else removed")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(command: Sequence[str], typed: str = "", exit_code: int = 0) -> str:
    """What a command prints, with these lines typed after its prompts. Raises UserError for another exit code."""
    program, *arguments = command
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable if program == "python" else program, *arguments],
        input=typed.encode(), check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"},  # both streams in their order
    )  # fmt: skip
    printed = re.sub(r"^.*(\r|\d%\|.*\|).*\n?", "", done.stdout.decode(), flags=re.MULTILINE).replace(f"{ROOT}/", "")
    printed = re.sub(r"^\d\d:\d\d:\d\d starting from .*\n\n?", "", printed, flags=re.MULTILINE)
    if done.returncode != exit_code:
        raise UserError(f"{shlex.join(command)}: exit code {done.returncode}\n{printed}")
    lines = iter(typed.splitlines())
    shown = re.sub(r"^> ", lambda _: f"> {next(lines, '')}\n", printed, flags=re.MULTILINE)
    return shown.rstrip().removesuffix(">").rstrip() + "\n"  # without the prompt that got no line


def with_scores(text: str, summaries: Sequence[dict[str, Any]]) -> str:
    """The text with each table of scores filled from quickstarts' summaries, and the minutes from the first."""
    from salmonn.evaluation.metrics import METRICS

    def fill(found: re.Match[str]) -> str:
        rows = []
        for key, row in zip(found["keys"].split(), found["rows"].splitlines(), strict=True):
            show = METRICS[SCORES[key][1]].show
            cells = [row.split("|")[1].strip()]
            for stages in ([summary["stage1"] for summary in summaries], summaries):
                for name in (key, f"{key}_shuffled"):
                    scores = [stage[name] for stage in stages]
                    cells.append(" – ".join(dict.fromkeys(show(edge) for edge in (min(scores), max(scores)))))
            rows.append(f"| {' | '.join(cells)} |\n")
        return found["above"] + "".join(rows)

    minutes = round(summaries[0]["seconds"]["total"] / 60)
    return MINUTES.sub(str(minutes), TABLE.sub(fill, text))


if __name__ == "__main__":
    run_cli(main)
