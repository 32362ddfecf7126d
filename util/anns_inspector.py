"""Show how much of each annotation file is ready, broken or missing, and prepare what is ready for training.

  python util/anns_inspector.py                              readiness of every *.json and *.json.gz in ann/
  python util/anns_inspector.py --ann F --prefix /data       ... of one file, with the clips under /data
  python util/anns_inspector.py --list-missing missing.txt   the annotated paths that are not there
  python util/anns_inspector.py --describe                   rates, formats, hours; one clip of each corpus
  python util/anns_inspector.py --check-integrity            decode every clip; verdicts for datasets.integrity=verified
  python util/anns_inspector.py --stats --plots DIR          words and seconds per task, as tables and pictures
  python util/anns_inspector.py --duplicates                 repeated entries; empty and overlong texts
  python util/anns_inspector.py --split 0.99 0.005 0.005     NAME_{train,valid,test}.json of what is ready
  python util/anns_inspector.py --convert DIR                what is ready as 16 kHz mono FLAC, in another folder

An entry is ready when its clip, and each clip of its expand_wav, exists and is not empty. The
corpus is the first folder of the entry's path. Where there is a verdict file, --split and --convert
take only entries whose clips have a good verdict; --max-clip-seconds leaves out longer ones. Exit
code 0, also when clips are missing; 2 when an annotation file cannot be read or something else in
the input is wrong; 1 after Ctrl-C.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli, tell
from salmonn.common.errors import UserError
from salmonn.common.files import make_folder
from salmonn.common.spelling import did_you_mean
from salmonn.config.loading import load_config
from salmonn.data.clip_paths import ClipPaths
from util.inspector.inspection import VERDICTS, Inspection, readiness_line
from util.inspector.split import add_split

ANN_FOLDER = Path("ann")
BASE_CONFIG = Path(__file__).resolve().parent.parent / "configs/base.yaml"


def main() -> None:
    args = parse_arguments()
    base = load_config(BASE_CONFIG)
    prefix = base.datasets.prefix if args.prefix is None else args.prefix
    path_map = [path_mapping(text) for text in args.path_map]
    clip_paths = ClipPaths(prefix, path_map)
    paths = args.ann or default_files(ANN_FOLDER, without_splits=bool(args.split or args.convert))
    for folder in (prefix or ".", *(mapping["to"].replace("{prefix}", prefix) for mapping in path_map)):
        if not Path(folder).is_dir():
            meant = did_you_mean(folder, Path.is_dir)
            tell(f"note: {folder} is no folder; --prefix and --path-map say where the corpora are{meant}")
    max_txt_len = args.max_txt_len or base.model.max_txt_len
    inspections = [Inspection(path, clip_paths, args, max_txt_len, base.model.end_sym) for path in paths]
    reports = [inspection.run() for inspection in inspections]
    if len(reports) > 1:
        everything = {key: sum(report["total"][key] for report in reports) for key in ("ready", "not_ready", "total")}
        print(readiness_line("all files", everything | {"ready_rate": everything["ready"] / everything["total"]}))
    if args.json:
        content = {"prefix": prefix, "files": reports}
        try:
            make_folder(args.json.parent)
            args.json.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {args.json}: {error}") from error


def default_files(folder: Path, without_splits: bool = False) -> list[Path]:
    """The annotation files of a folder, by choice without those that --split made of others.

    Raises UserError where there are none.
    """
    found = sorted(
        path for path in folder.glob("*") if path.name.endswith((".json", ".json.gz")) and not path.name.startswith(".")
    )
    if not found:
        raise UserError(
            f"no annotation file in {folder}/: put the stage files there (stage1_train.json, ...; "
            f"{folder}/README.md says where to get them), or name files by --ann FILE ..."
        )
    stems = {path.name.partition(".")[0] for path in found}
    made = {f"{stem}_{part}" for stem in stems for part in ("train", "valid", "test")} if without_splits else set()
    return [path for path in found if path.name.partition(".")[0] not in made]


def path_mapping(text: str) -> dict[str, str]:
    """`FROM=TO` as an item of datasets.path_map."""
    source, equals, target = text.partition("=")
    if not equals:
        raise UserError(f"--path-map {text}: write it as FROM=TO, two folders")
    return {"from": source, "to": target}


def parse_arguments() -> Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ann", nargs="+", type=Path, metavar="FILE", help="annotation files, also .gz (default: all in ann/)")
    add("--prefix", metavar="DIR", help="folder of the corpora (default: datasets.prefix of configs/base.yaml)")
    add(
        "--path-map",
        action="append",
        default=[],
        metavar="FROM=TO",
        help="annotated folder and where it is here; may be repeated",
    )
    add("--jobs", type=int, default=0, metavar="N", help="parallel processes (default: one per core)")
    add("--json", type=Path, metavar="FILE", help="write everything that is shown as JSON, too")
    add("--list-missing", type=Path, metavar="FILE", help="write the paths of the clips that are not ready")
    add("--describe", action="store_true", help="show rates, channels, formats and hours of each corpus")
    add("--check-integrity", action="store_true", help="decode every clip that has no verdict yet; may be interrupted")
    add(
        "--verdicts",
        type=Path,
        metavar="FILE",
        help=f"the verdict file (default: {VERDICTS} beside the annotation file)",
    )
    add("--stats", action="store_true", help="show quantiles of words, tokens and seconds per task")
    add("--plots", type=Path, metavar="DIR", help="with --stats: histograms as PNG")
    add("--duplicates", action="store_true", help="show repeated entries, empty and overlong texts")
    add("--tokenizer", metavar="DIR", help="the language model's folder, for texts in tokens")
    add(
        "--max-txt-len",
        type=int,
        metavar="N",
        help="tokens above which --duplicates calls a text overlong (default: model.max_txt_len)",
    )
    add_split(add, "write the ready entries as three files with these shares")
    add("--stratify", action="store_true", help="--split each task by itself")
    add("--out", type=Path, metavar="DIR", help="folder for the files of --split (default: that of the annotation)")
    add("--force", action="store_true", help="--split may replace files")
    add(
        "--max-clip-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="--split and --convert leave out longer clips, as datasets.max_clip_seconds does (default: none)",
    )
    add("--convert", type=Path, metavar="DIR", help="write the ready clips as 16 kHz mono FLAC there")
    add("--channel", choices=("first", "mean"), help="of --convert (default: first, as in training)")
    args = parser.parse_args()
    needs = {"plots": "stats", "stratify": "split", "out": "split", "force": "split", "channel": "convert"}
    for option, needed in needs.items():
        if getattr(args, option) and not getattr(args, needed):
            raise UserError(f"--{option} goes with --{needed}")
    if args.max_clip_seconds and not (args.split or args.convert):
        raise UserError("--max-clip-seconds goes with --split or --convert")
    if not 0 <= args.max_clip_seconds < float("inf"):
        raise UserError(f"--max-clip-seconds {args.max_clip_seconds:g}: a number of seconds, or 0 for no limit")
    if absent := [path for path in args.ann or () if not path.exists()]:
        raise UserError("\n".join(f"--ann {path} does not exist{did_you_mean(path, Path.is_file)}" for path in absent))
    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs}: at least 1, or 0 for one per core")
    if args.verdicts and not args.check_integrity and not args.verdicts.is_file():
        raise UserError(f"--verdicts {args.verdicts} does not exist; --check-integrity writes it")
    return args


if __name__ == "__main__":
    run_cli(main)
