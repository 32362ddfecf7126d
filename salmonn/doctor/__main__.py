"""Is all there that this project needs? What is missing or broken, and what that costs.

  python -m salmonn.doctor
  python -m salmonn.doctor --cfg-path configs/stage1.yaml --options datasets.prefix=/corpora

Prints a block to be pasted into a bug report: with --cfg-path first whether all that a config names is there and fits,
then versions beside those that were tested, GPUs, attention and quantised layers tried out, Java, disk. The home folder
is written as ~. Exit code 0: all that is needed works (a `note` costs what it says); 2: something is `wrong`, or a file
that the config names is `missing`.
"""

import logging
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from salmonn.common.cli import argument_parser, run_cli
from salmonn.common.errors import BROKEN, UserError, reason
from salmonn.common.files import GB, free_bytes, home_folder, unwritable_part
from salmonn.doctor.findings import MISSING, NOTE, OK, WRONG, Finding, attempt
from salmonn.doctor.hardware import (
    check_attention,
    check_gpus,
    check_quantised,
    check_shared_memory,
)
from salmonn.doctor.packages import COSTS, check_packages, check_system, check_torch_pair

if TYPE_CHECKING:  # everything from outside the standard library may be broken: each check imports its own
    from omegaconf import DictConfig


def main() -> None:
    """Print each finding as soon as it is there."""
    args = argument_parser(__doc__, default_cfg_path="").parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # what it says as it loads is not a finding
    print("```", flush=True)
    found: Counter[str] = Counter()
    for finding in examine(args.cfg_path, args.options):
        found[finding.state] += 1
        print(shown(finding), flush=True)
    failures = [f"{found[state]} {state}" for state in (MISSING, WRONG) if found[state]]
    print(", ".join(failures) or "all that is needed works", "\n```", sep="")
    sys.exit(2 if failures else 0)


def shown(finding: Finding) -> str:
    """The finding as lines of the block, without the user's name."""
    indent = " " * 20
    text = f"{finding.state:7} {finding.name:11} {finding.says}"
    text += f"\ncosts: {finding.costs}" if finding.costs and finding.state != OK else ""
    own = home_folder()
    for home in {str(own), str(own.resolve())} - {"/"} if own else ():
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return text.replace("\n", f"\n{indent}")


def examine(cfg_path: str = "", options: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings, one check after the other; a check that fails is a finding too."""
    configs, problems = _load(cfg_path, options) if cfg_path else ([], [])
    yield from problems
    if configs:
        yield from attempt("config", lambda: check_configs(cfg_path, configs), "this config cannot be used")
    yield from attempt("system", check_system, "")
    yield from attempt("packages", check_packages, "packages and versions are not checked")
    yield from attempt("torch pair", check_torch_pair, COSTS["torchaudio"], NOTE)
    yield from attempt("GPU", check_gpus, "nothing runs")
    yield from attempt("/dev/shm", check_shared_memory, "", NOTE)
    yield from attempt("attention", check_attention, "nothing runs")
    state = WRONG if any(map(_needs_bitsandbytes, configs)) else NOTE  # as the config asks for it
    yield from attempt("quantised", lambda: check_quantised(state), COSTS["bitsandbytes"], state)
    yield from attempt("scores", check_scores, "evaluate.py scores nothing")
    yield from attempt("ffmpeg", check_ffmpeg, "")
    for folder in {config.run.output_dir: None for config in configs} or ["output"]:
        yield from attempt("disk", partial(check_disk, Path(folder)), "nothing can be written")


# ---- programs, disk, a config


def check_scores() -> Iterator[Finding]:
    """What scores need besides packages: Java programs and a Japanese tokenizer."""
    from salmonn.evaluation.metrics import METRICS
    from salmonn.evaluation.metrics.base import UnavailableError
    from salmonn.evaluation.metrics.captions import METEOR_FILE, PTB_FILE, SPICE_FILE, java_for
    from salmonn.evaluation.metrics.translation import MECAB_MISSING

    programs = {
        "METEOR": (METEOR_FILE, "METEOR is not scored"),
        "SPICE": (SPICE_FILE, "SPICE and SPIDEr are not scored"),
        "PTB tokens": (PTB_FILE, "captions are scored on other tokens, and not compared with published scores"),
    }
    for name, (file, costs) in programs.items():
        try:
            yield Finding(OK, name, f"runs with {java_for(file)}")
        except UnavailableError as error:
            yield Finding(NOTE, name, str(error), costs)
    if METRICS["bleu_ja"].substitute:
        yield Finding(NOTE, "MeCab", MECAB_MISSING, "En2Ja is not compared with published scores")
    else:
        yield Finding(OK, "MeCab", "Japanese words")


def check_ffmpeg() -> Iterator[Finding]:
    """The project never calls it, but rare files have to be converted by something."""
    path = shutil.which("ffmpeg")
    costs = (
        "what neither libsndfile nor PyAV reads has to be converted elsewhere; all usual formats are read without it"
    )
    yield Finding(OK, "ffmpeg", path) if path else Finding(NOTE, "ffmpeg", "not found", costs)


def check_disk(folder: Path) -> Iterator[Finding]:
    """Whether runs can write, and how much."""
    says = f"{free_bytes(folder) / GB:.1f} GB free for {folder}"
    if there := unwritable_part(folder):
        yield Finding(WRONG, "disk", f"{says}; {there} is no folder that can be written to")
    else:
        yield Finding(OK, "disk", says)


def _needs_bitsandbytes(config: "DictConfig") -> bool:
    """Whether its LLM is quantised by the layers that `check_quantised` tries out; int8 has layers of our own."""
    from salmonn.config.loading import llm_quantization

    return llm_quantization(config.model) in ("8bit", "nf4")


def _load(path: str, options: Sequence[str]) -> "tuple[list[DictConfig], list[Finding]]":
    """The configs of a file, or what is wrong with it."""
    try:
        from salmonn.config.loading import load_stages

        return load_stages(path, options), []
    except (UserError, *BROKEN) as error:
        return [], [Finding(WRONG, "config", reason(error))]


def check_configs(path: str, configs: "Sequence[DictConfig]") -> Iterator[Finding]:
    """All that keeps the configs from being used: to train where they name training data, else to answer."""
    from salmonn.config.missing_files import annotation_keys, missing_files
    from salmonn.preflight import find_problems
    from salmonn.training.readiness import all_problems

    missing = {absent for config in configs for absent in missing_files(config, annotation_keys(config))}
    if configs[0].datasets.train_ann_path:
        problems = all_problems(configs)
    else:
        problems = find_problems(configs[0], (), training=False)
    for problem in dict.fromkeys(problems):
        yield Finding(MISSING if problem in missing else WRONG, "config", problem)
    if not problems:
        yield Finding(OK, "config", f"{path}: all that it names is there and fits")


if __name__ == "__main__":
    run_cli(main)
