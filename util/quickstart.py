"""The whole job on the miniature world, by the commands a user would type.

  python util/quickstart.py [--seed 42] [--out output/mini] [--published] [--fresh]

Makes the corpus and the tiny models, shows what is there, trains stages 0 to 3 on two processes, then
evaluates stage 1 and stage 3 on held-out clips (also with the audio shuffled between clips),
and writes <out>/summary.json, <out>/report.md and the curves. No GPU, no downloads, some minutes.
Stage 0, in which the connector learns to spell before the language model is run, is not in the paper:
--published leaves it out, and gives stage 1 the steps that it needs then.
Started again, it goes on where it stopped, and does nothing anew that is done; --fresh trains and evaluates anew.
Exit code 0 if the model has learned to listen (the bars of the report), 1 if not or if a part fails.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli, seed_number
from salmonn.common.errors import UserError
from salmonn.common.files import write_json, write_text
from salmonn.config.loading import load_config
from salmonn.config.reading import read_options, read_yaml
from util.jobs import ROOT, moved, read_note, run_at_once, run_command, seen_from_root, talks
from util.quickstart_report import EVALUATED_STAGES, STAGES, TASKS, Recipe, check_bars, summarise, write_report

CONFIGS = "configs/mini"
DEFAULT_OUT, DEFAULT_SEED = "output/mini", 42  # as the configs have them
PROCESSES = 2
STATE = "quickstart.json"  # the seconds of each part that is done


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=DEFAULT_SEED,
        metavar="N",
        help="of world and training (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=seen_from_root, default=Path(DEFAULT_OUT), metavar="DIR", help="results (default: %(default)s)"
    )
    parser.add_argument("--published", action="store_true", help="the published three stages, without stage 0")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="train and evaluate anew; corpus and tiny models stay as they are",
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    out = str(args.out)

    if args.fresh:
        clear(Path(out))
    recipe = Recipe(args.seed, args.published)
    seconds = run_all(out, recipe)
    summary = summarise(Path(out), recipe, seconds)
    verdicts = check_bars(summary)
    write_report(Path(out), summary, verdicts)
    print("\n" + "\n".join(verdict.line for verdict in verdicts))
    print(f"\n{seconds['total']:.0f} s in all. Read {out}/report.md; numbers are in {out}/summary.json.")
    if not all(verdict.passed for verdict in verdicts):
        sys.exit(1)
    print("\n".join(["Then talk to it:", *what_comes_next(out)]))


def what_comes_next(out: str) -> list[str]:
    """The commands that talk to the final model, which name what is in another folder, and where to read on."""
    options = moved(f"{CONFIGS}/decode.yaml", DEFAULT_OUT, out)
    own = ["Then teach it recordings of your own: docs/own-data.md"]
    return [*talks(f"{CONFIGS}/decode.yaml", options), *([] if options else own)]  # that page has the usual paths


class Part(NamedTuple):
    """A command, or several at once, and the file that is there when all is done."""

    name: str
    title: str
    product: str
    commands: list[list[str]]
    processes: int = 1  # of a single command


def run_all(out: str, recipe: Recipe) -> dict[str, float]:
    """Run every part that is not done, in order; returns the seconds of each, and in all."""
    state = state_of(Path(out), recipe)
    every = parts(out, recipe)
    done = seconds_of_done(state, every)
    for part in every:
        if part.name in done:
            print(f"=== {part.title}: done before, in {done[part.name]:.0f} s", flush=True)
            continue
        done[part.name] = run(part)
        write_json(Path(out, STATE), {**recipe._asdict(), "seconds": done})
    return {**done, "total": round(sum(done.values()), 1)}


def parts(out: str, recipe: Recipe) -> list[Part]:
    """All of them, in order."""
    world, seed = f"{out}/world", recipe.seed
    annotated = [f"{world}/ann/stage{stage}" for stage in STAGES if stage]  # stage 0 hears the speech of stage 1
    annotations = [f"{path}_{split}.json" for path in annotated for split in ("train", "valid")]
    prefix = load_config(f"{CONFIGS}/stage1.yaml", overrides("stage1.yaml", out, seed)).datasets.prefix
    make = ["util/make_mini_world.py", "--out", world, "--seed", str(seed)]
    inspect = ["util/anns_inspector.py", "--prefix", prefix, "--ann", *annotations, "--json", f"{out}/inspector.json"]
    train = ["train.py", "--cfg-path", str(stages_file(out, recipe))]
    curves = f"{out}/stage{STAGES[-1]}/training_curves.png"  # drawn when the last run is done
    scores = f"{out}/results/stage{EVALUATED_STAGES[-1]}/{TASKS[-1]}/report.json"
    evaluate = [evaluation(stage, out, seed) for stage in EVALUATED_STAGES]
    evaluated = " and ".join(map(str, EVALUATED_STAGES))
    return [
        Part("world", "corpus and tiny models", f"{world}/world.json", [make]),
        Part("inspector", "what is ready", f"{out}/inspector.json", [inspect]),
        Part("training", f"training, stages {recipe.stages[0]} to {recipe.stages[-1]}", curves, [train], PROCESSES),
        Part("scores", f"scores after stages {evaluated}", scores, evaluate),
    ]


def stages_file(out: str, recipe: Recipe) -> Path:
    """The list of stages to train: the miniature world's own, or one made from it for another folder or seed."""
    own = Path(CONFIGS, "all_stages.yaml" if recipe.published else "fast/all_stages.yaml")
    names = [str((own.parent / name).relative_to(CONFIGS)) for name in read_yaml(own).stages]
    changed = {name: overrides(name, out, recipe.seed) for name in names}
    if not any(changed.values()):
        return own
    folder = Path(out, "configs")
    for name, options in changed.items():
        base = OmegaConf.create({"base": f"{ROOT / CONFIGS / name}"})
        write_text(folder / Path(name).name, OmegaConf.to_yaml(OmegaConf.merge(base, read_options(options))))
    write_text(folder / own.name, OmegaConf.to_yaml(OmegaConf.create({"stages": [Path(name).name for name in names]})))
    return folder / own.name


def state_of(out: Path, recipe: Recipe) -> dict[str, Any]:
    """What is noted of an earlier quickstart there; nothing where there was none.

    Raises UserError where another seed or the other recipe was run there, and where what tells it is damaged.
    """
    kinds = {"seed": int, "seconds": dict}
    state = read_note(out / STATE, kinds) or read_note(out / "summary.json", kinds)
    # before there was stage 0, all were published
    found = Recipe(state["seed"], state.get("published", True)) if state else recipe
    if found != recipe:
        raise UserError(f"{out} holds a quickstart of {found}: choose another --out, or add --fresh")
    return state


def seconds_of_done(state: Mapping[str, Any], every: Sequence[Part]) -> dict[str, float]:
    """What each part took that is done, and whose file is there, up to the first that is not."""
    done = {}
    for part in every:
        if part.name not in state.get("seconds", {}) or not Path(part.product).exists():
            break
        done[part.name] = state["seconds"][part.name]
    return done


def clear(out: Path) -> None:
    """Remove what was trained and evaluated."""
    for name in (STATE, "summary.json", "report.md"):
        (out / name).unlink(missing_ok=True)
    for stage in STAGES:
        for folder in (out / f"stage{stage}", out / "results" / f"stage{stage}"):
            shutil.rmtree(folder, ignore_errors=True)


def evaluation(stage: int, out: str, seed: int) -> list[str]:
    """The command that evaluates a stage's best checkpoint."""
    options = [f"model.ckpt={out}/stage{stage}/checkpoint_best.pth", f"evaluate.name=stage{stage}"]
    # the control hears the same clips once more
    options += [f"run.encoder_cache={out}/encoder_cache", "run.encoder_cache_gb=2"]
    options += [option for option in overrides("evaluate.yaml", out, seed) if not option.startswith("model.ckpt=")]
    if Path(out) != Path(DEFAULT_OUT):
        options.append(f"evaluate.tasks_file={moved_tasks(out)}")
    chosen = ["--mode", "table3", "--tasks", ",".join(TASKS)]
    return ["evaluate.py", *chosen, "--cfg-path", f"{CONFIGS}/evaluate.yaml", "--options", *options]


def moved_tasks(out: str) -> Path:
    """The list of what can be evaluated, made for another folder."""
    own = Path(CONFIGS, "eval_tasks.yaml")
    tasks = read_yaml(own)
    for task in tasks.values():
        task.annotation = f"{out}{task.annotation.removeprefix(DEFAULT_OUT)}"
    write_text(Path(out, "configs", own.name), OmegaConf.to_yaml(tasks))
    return Path(out, "configs", own.name)


def overrides(name: str, out: str, seed: int) -> list[str]:
    """What moves a miniature config to another folder and seed; nothing where they are its own."""
    options = [] if seed == DEFAULT_SEED else [f"run.seed={seed}"]
    return options + moved(f"{CONFIGS}/{name}", DEFAULT_OUT, out)


def run(part: Part) -> float:
    """Run one part with its output in view; returns its seconds. Exits 1 if it fails."""
    if len(part.commands) == 1:
        seconds, code = run_command(part.title, part.commands[0], part.processes)
    else:
        seconds, code = run_at_once(part.title, part.commands)
    if code or not Path(part.product).exists():
        print(
            f"\nquickstart stopped: {part.title} failed (exit code {code}). The same command goes on from "
            f"there; --fresh trains anew",
            file=sys.stderr,
        )
        sys.exit(1)
    return seconds


if __name__ == "__main__":
    run_cli(main)
