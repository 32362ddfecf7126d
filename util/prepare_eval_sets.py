"""Turn a public test set, as it was downloaded and unpacked, into an annotation file for evaluation.

  python util/prepare_eval_sets.py librispeech --root /data/LibriSpeech
  python util/prepare_eval_sets.py librispeech --root /data/LibriSpeech --split test-other
  python util/prepare_eval_sets.py audiocaps --root /data/AudioCaps --name "Y{youtube_id}.wav"
  python util/prepare_eval_sets.py gigaspeech --root /data/GigaSpeech --cut-to /data/GigaSpeech/test

Sets, and what --root has to hold (nothing is downloaded here):
SETS
Paths in the file are below --prefix, the folder above --root if it is not given: evaluate with
datasets.prefix set to it. All references of a clip are entries with the same path and testset_id.
Clips that are not on this disk stay in the file and are counted, for a test set that shrinks in
silence gives another score; --only-present leaves them out and says so. Versions, licences, columns:
the head of each file in util/eval_sets/.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli
from salmonn.common.errors import UserError
from util.eval_sets.annotation import Clip, make_clips, write
from util.eval_sets.base import EvalSet, MissingError, Request
from util.eval_sets.catalogue import SETS
from util.eval_sets.slurp import QUESTION

OPTIONS = [field.name for field in fields(Request) if field.name not in ("root", "notes")]


def main() -> None:
    args = parse_arguments()
    chosen = SETS[args.set]
    request = make_request(args, chosen)
    out = args.out or default_out(args.set, request.split)
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out} is there already; --overwrite replaces it")
    prefix = Path(os.path.abspath(args.prefix or request.root.parent))
    try:
        clips = make_clips(chosen.read(request), prefix)
    except MissingError as error:
        raise UserError(f"{error}\n{args.set} needs in --root: {chosen.download}") from error
    kept = [clip for clip in clips if clip.present or not args.only_present]
    if not kept:
        remedy = f", none of {len(clips)} is on this disk under {prefix}" if clips else f" in {args.root}"
        raise UserError(f"{args.set}: no clip{remedy}; nothing was written")
    write(out, kept)
    print(summary(out, clips, kept, request, prefix))


def default_out(name: str, split: str) -> Path:
    """Where a set's annotation file goes, and where configs/eval_tasks.yaml looks for it."""
    return Path("ann", "_".join(filter(None, (name, split))) + ".json")


def make_request(args: Namespace, chosen: EvalSet) -> Request:
    """What the set's reader is asked for. Raises UserError for options that would have no effect."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name)}
    if idle := [f"--{name.replace('_', '-')}" for name in given if name not in chosen.options]:
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in chosen.options)
        raise UserError(f"{', '.join(idle)} has no effect on {args.set}, which takes {takes}")
    if not args.root.is_dir():
        raise MissingError(f"--root {args.root}: no such folder\n{args.set} needs in it: {chosen.download}")
    return Request(Path(os.path.abspath(args.root)), **({"split": chosen.split, "name": chosen.name} | given))


def summary(out: Path, clips: Sequence[Clip], kept: Sequence[Clip], request: Request, prefix: Path) -> str:
    """What was written, what is absent or was left out, and how to go on."""
    entries = [entry for clip in kept for entry in clip.entries]
    absent = [clip.entries[0]["path"] for clip in clips if not clip.present]
    lines = [f"{out}: {len(kept)} clips, {len(entries)} entries, task {entries[0]['task']}"]
    if absent:
        fate = "kept (--only-present leaves them out)" if len(kept) == len(clips) else "left out"
        lines.append(f"{len(absent)} of {len(clips)} clips are absent on this disk: {fate}, such as {absent[0]}")
    else:
        lines.append("all clips are on this disk")
    if empty := sum(not entry["text"].strip() for entry in entries):
        lines.append(f"{empty} entries have an empty reference")
    lines += [f"{count} {note}" for note, count in request.notes.items()]
    lines.append(f"hours not measured: python util/anns_inspector.py --ann {out} --prefix {prefix} --describe")
    lines.append(f"evaluate with datasets.prefix={prefix}")
    return "\n  ".join(lines)


def parse_arguments() -> Namespace:
    listed = "".join(f"  {name:<19} {chosen.download}\n" for name, chosen in SETS.items())
    description = __doc__.replace("SETS\n", listed)
    parser = command_parser(description)
    add = parser.add_argument
    add("set", choices=SETS, metavar="SET", help="one of those above")
    add("--root", type=Path, required=True, metavar="DIR", help="the corpus")
    add("--out", type=Path, metavar="FILE", help="annotation file (default: ann/SET.json, or ann/SET_SPLIT.json)")
    add("--prefix", type=Path, metavar="DIR", help="paths are below it (default: the folder above --root)")
    add("--overwrite", action="store_true", help="replace the file --out")
    add("--only-present", action="store_true", help="leave out clips that are not on this disk")
    group = parser.add_argument_group("of some sets")
    add = group.add_argument
    splits = ", ".join(dict.fromkeys(chosen.split for chosen in SETS.values() if chosen.split))
    add("--split", metavar="NAME", help=f"(defaults: {splits})")
    add("--table", type=Path, metavar="FILE", help="the set's table or list, if not at its usual place in --root")
    add("--audio", type=Path, metavar="DIR", help="the clips, if not at their usual place in --root")
    add(
        "--name",
        metavar="PATTERN",
        help="names of clips by columns (audiocaps: {youtube_id}.wav, musiccaps: {ytid}.wav, muchomusic: "
        "[{ytid}]-[{start_s}-{end_s}].wav)",
    )
    add("--lexicon", type=Path, nargs="+", metavar="FILE", help="pronunciations; the first file with a word counts")
    add("--librispeech", type=Path, metavar="DIR", help="transcripts for librimix (default: LibriSpeech beside --root)")
    add("--question", metavar="TEXT", help=f"of slurp, {{}} for the slot (default: {QUESTION!r})")
    add(
        "--cut-to",
        type=Path,
        metavar="DIR",
        help="write clips there, below --prefix: segments of gigaspeech as FLAC, what lies in parquet files as it is",
    )
    add("--speech-only", action="store_true", help="of gigaspeech: leave out silence, music, noise, other")
    return parser.parse_args()


if __name__ == "__main__":
    run_cli(main)
