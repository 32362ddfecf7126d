"""Publish a trained model on the Hugging Face Hub, with a card that says what it is.

  python util/publish.py output/stage3/checkpoint_best.pth user/salmonn-13b --results output/results/table3
  python util/publish.py output/stage3/checkpoint_best.pth user/salmonn-13b --out folder     look at it first
  python util/publish.py folder user/salmonn-13b --license apache-2.0 --public

What is published: model.safetensors (connector, LoRA), config.json (the model section, the runs that it comes from)
and README.md, the card: data, scores with their controls from the report.json of --results, which must all be of one
checkpoint, of this one where a file is published, and what these depend on.
Paths of this machine stay here. Private unless --public. The hub has to know you: `hf auth login`, or HF_TOKEN.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli, tell_wait

if __name__ == "__main__":
    tell_wait("loading PyTorch")  # what is imported below takes seconds

from salmonn.common.errors import UserError
from salmonn.common.files import making_folder, read_json
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.provenance import file_hash
from salmonn.evaluation.report.tables import metrics_of, shown_interval, shown_score, table
from salmonn.model import hub
from util.conversion.fit import read_fitting

# Of a result's provenance: what does not tell how this machine is laid out
_SHOWN = ("commit", "checkpoint_sha256", "lora_scaling", "precision", "generate", "seed", "versions")


def main() -> None:
    """Write the folder, and publish it."""
    args = parse_arguments()
    hub.require_name(args.name)
    scores = shown_scores(args.results, args.source)  # what is wrong with them is known before the weights are read
    with target(args.out) as folder:
        write_folder(args, folder, scores)
        if not args.out:
            print(f"published: {hub.publish(folder, args.name, private=not args.public)}")
    if args.out:
        print(f"{args.out}: nothing was published; without --out it is")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, metavar="FILE.pth|DIR", help="a checkpoint, or a folder of util/convert.py")
    add("name", metavar="USER/NAME", help="on the hub; is made there if need be")
    add("--results", nargs="+", type=Path, default=[], metavar="DIR", help="results of evaluate.py, for the card")
    add("--license", default="", metavar="NAME", help="as the hub calls it, e.g. apache-2.0 (default: none is stated)")
    add("--public", action="store_true", help="for everybody")
    add("--out", type=Path, metavar="DIR", help="write the folder there, and publish nothing")
    add("--cfg-path", metavar="FILE", help="take the model section from here, not from the checkpoint")
    return parser.parse_args()


@contextmanager
def target(out: Path | None) -> Iterator[Path]:
    """The folder to write: `out`, which must be new, or one that goes in the end."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="salmonn-publish-") as folder:
            yield Path(folder)
    elif out.exists():
        raise UserError(f"{out} exists already; choose another --out, or remove it first")
    else:
        try:
            with making_folder(out) as folder:
                yield folder
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error}") from error


def write_folder(args: Namespace, folder: Path, scores: str) -> None:
    """Weights, configuration and card. Raises UserError as `read_fitting`."""
    source, section = read_fitting(args.source, args.cfg_path)
    hub.write_folder(folder, args.name, source.parameters, section, source.training, args.license, scores)


def shown_scores(folders: Sequence[Path], source: Path) -> str:
    """The scores of results with their controls, and what they depend on, as Markdown; "" for none.

    Raises UserError for what is no result, for results of several checkpoints, and where `source` is a file of another.
    """
    reports = [report for folder in folders for report in _reports(folder)]
    if not reports:
        return ""
    _require_one_checkpoint(reports, source)
    try:
        rows = [row for report in reports for row in _rows(report)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--results: a report of {', '.join(map(str, folders))} was damaged ({error!r})") from error
    header = ["task", "metric", "clips", "score", "95 % interval", "shuffled audio"]
    told = {
        key: dict.fromkeys(str(value) for value in _told(reports, key) if value not in ("", None)) for key in _SHOWN
    }
    depends = table(["", ""], [[key, "; ".join(values)] for key, values in told.items() if values])
    control = (
        "Shuffled audio: each prompt answered once more, hearing another clip. What answers as well then is not heard."
    )
    return "\n\n".join([table(header, rows), control, "What they depend on:", depends])


def _reports(folder: Path) -> list[Mapping[str, Any]]:
    """The reports of a result: one, or those of all its tasks. Raises UserError for what is no result."""
    content = read_json(folder / "report.json")
    content = content if isinstance(content, dict) else {}
    found = [content] if "scores" in content else [report for report in content.values() if report]
    wanted = {"name": str, "n": int, "scores": dict, "intervals": dict, "provenance": dict}
    whole: list[Mapping[str, Any]] = [
        report for report in found
        if isinstance(report, dict) and all(isinstance(report.get(key), kind) for key, kind in wanted.items())
    ]  # fmt: skip
    if not whole or len(whole) < len(found):
        raise UserError(f"--results {folder}: its report.json is none of evaluate.py with scores")
    return whole


def _told(reports: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """What the reports' provenances say, "" where one says nothing."""
    return [report["provenance"].get(key, "") for report in reports]


def _require_one_checkpoint(reports: Sequence[Mapping[str, Any]], source: Path) -> None:
    """Raise UserError unless all reports are of one checkpoint: of `source`, where that is a file."""
    hashes = _told(reports, "checkpoint_sha256")
    wanted, whose = (file_hash(str(source)), source) if source.is_file() else (hashes[0], reports[0]["name"])
    others = [report["name"] for report, found in zip(reports, hashes, strict=True) if found != wanted]
    if others:
        raise UserError(
            f"--results: {', '.join(dict.fromkeys(others))} is of another checkpoint than {whose} (checkpoint_sha256 "
            "in report.json): give only results of the one that is published"
        )


def _rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    for name in metrics_of(report):
        metric, shuffled = METRICS[name], report["scores"].get(f"{name}_shuffled")
        score, interval = shown_score(metric, report["scores"][name]), report["intervals"].get(name)
        control = "-" if shuffled is None else metric.show(shuffled)
        yield [report["name"], metric.title, str(report["n"]), score, shown_interval(metric, interval), control]


if __name__ == "__main__":
    run_cli(main)
