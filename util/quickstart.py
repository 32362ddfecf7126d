"""The whole job on the miniature world, by the commands a user would type.

  python util/quickstart.py [--seed 42] [--out output/mini]

Makes the corpus and the tiny models, shows what is there, trains stages 1 to 3 on two processes,
evaluates after stage 1 and stage 3 on held-out clips (also with the audio shuffled between clips),
and writes <out>/summary.json, <out>/report.md and the curves. No GPU, no downloads, some minutes.
Exit code 0 if the model has learned to listen (the bars of the report), 1 if not or if a part fails.
"""

import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import run_cli
from salmonn.config.loading import known_keys, load_config
from util.quickstart_report import EVALUATED_STAGES, MODES, STAGES, check_bars, summarise, write_report

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = "configs/mini"
DEFAULT_OUT, DEFAULT_SEED = "output/mini", 42  # as the configs have them
PROCESSES = 2
# Waiting threads must not spin where cores are shared; local model folders must not be looked up online.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, metavar="N", help="of world and training (default: %(default)s)"
    )
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help="results (default: %(default)s)")
    args = parser.parse_args()
    os.chdir(ROOT)
    out = args.out.rstrip("/")

    seconds = run_all(out, args.seed)
    summary = summarise(Path(out), args.seed, seconds)
    verdicts = check_bars(summary)
    write_report(Path(out), summary, verdicts)
    print("\n" + "\n".join(verdict.line for verdict in verdicts))
    print(f"\n{seconds['total']:.0f} s in all. Read {out}/report.md; numbers are in {out}/summary.json.")
    sys.exit(0 if all(verdict.passed for verdict in verdicts) else 1)


def run_all(out: str, seed: int) -> dict[str, float]:
    """Run every part in order; returns the seconds of each, and in all."""
    seconds: dict[str, float] = {}
    world = f"{out}/world"
    seconds["world"] = run("corpus and tiny models", "util/make_mini_world.py", "--out", world, "--seed", str(seed))

    annotations = sorted(str(path) for path in Path(world, "ann").glob("stage*.json"))
    prefix = load_config(f"{CONFIGS}/stage1.yaml", overrides("stage1", out, seed)).datasets.prefix
    inspect = ["util/anns_inspector.py", "--prefix", prefix, "--ann", *annotations, "--json", f"{out}/inspector.json"]
    seconds["inspector"] = run("what is ready", *inspect)

    for stage in STAGES:
        command = ["train.py", "--cfg-path", f"{CONFIGS}/stage{stage}.yaml"]
        command += ["--options", "run.overwrite=True", *overrides(f"stage{stage}", out, seed)]
        seconds[f"stage{stage}"] = run(f"training, stage {stage}", *command, processes=PROCESSES)
        if stage in EVALUATED_STAGES:
            for mode in MODES:
                name = f"stage{stage}_{mode}"
                seconds[name] = run(f"{mode} after stage {stage}", *evaluation(mode, name, stage, out, seed))
    return {**seconds, "total": round(sum(seconds.values()), 1)}


def evaluation(mode: str, name: str, stage: int, out: str, seed: int) -> list[str]:
    """The command that evaluates a stage's best checkpoint."""
    options = [f"model.ckpt={out}/stage{stage}/checkpoint_best.pth", f"evaluate.name={name}"]
    options += [option for option in overrides("evaluate", out, seed) if not option.startswith("model.ckpt=")]
    return ["evaluate.py", "--mode", mode, "--cfg-path", f"{CONFIGS}/evaluate.yaml", "--options", *options]


def overrides(name: str, out: str, seed: int) -> list[str]:
    """What moves a miniature config to another folder and seed; nothing where they are its own."""
    config = load_config(f"{CONFIGS}/{name}.yaml")
    options = [] if seed == config.run.seed else [f"run.seed={seed}"]
    if out != DEFAULT_OUT:
        values = {key: OmegaConf.select(config, key) for key in known_keys()}
        inside = {k: v for k, v in values.items() if isinstance(v, str) and f"{v}/".startswith(f"{DEFAULT_OUT}/")}
        options += [f"{key}={out}{value.removeprefix(DEFAULT_OUT)}" for key, value in inside.items()]
    return options


def run(title: str, *command: str, processes: int = 1) -> float:
    """Run one part with its output in view; returns its seconds. Exits 1 if it fails."""
    shown, launcher = "python", [sys.executable]
    environment = {**os.environ, **ENVIRONMENT}
    if processes > 1:
        arguments = ["--standalone", f"--nproc_per_node={processes}"]
        shown, launcher = shlex.join(["torchrun", *arguments]), [*launcher, "-m", "torch.distributed.run", *arguments]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    print(f"\n=== {title}\n$ {shown} {shlex.join(command)}\n", flush=True)
    started = time.monotonic()
    result = subprocess.run([*launcher, *command], env=environment, check=False)
    if result.returncode:
        print(f"\nquickstart stopped: {title} failed (exit code {result.returncode})", file=sys.stderr)
        sys.exit(1)
    return round(time.monotonic() - started, 1)


if __name__ == "__main__":
    run_cli(main)
