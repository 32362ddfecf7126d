"""Two ranks evaluate as one: a LoRA sweep over a set that a judge is asked about and one of options to choose from."""

import json
from pathlib import Path

from tests.evaluation.test_judged_tasks import ENTRIES
from tests.fixtures.commands import run_command
from tests.fixtures.judge_server import completion
from tests.fixtures.paths import ROOT
from tests.fixtures.stub_model import WORDS, config_for, entry

# A sweep by the stub of test_choices.py, to a folder of this name.
SWEEP = """
import sys
from pathlib import Path
import torch
from salmonn.config.loading import load_config
from salmonn.evaluation.lora_sweep import sweep
from salmonn.evaluation.tasks import EvalTask
from salmonn.model import meta_model
from salmonn.model.salmonn import SALMONN
from tests.evaluation.test_choices import BOTH, ChoosingStub

SALMONN.from_config = lambda *_args, **_options: ChoosingStub()
meta_model.build_meta_model = lambda *_: torch.nn.Module()
tasks = [
    EvalTask("sqqa", "questions", "ann.json", ["SQQA"], "asr", "english", ["judged", "following"], "SQQA"),
    EvalTask("mc", "colours", "choices.json", ["QA"], metrics=BOTH),
]
sweep(load_config("config.yaml", sys.argv[2:]), tasks, [0.0, 4.0], Path("results", sys.argv[1]))
"""


def results(folder: Path) -> dict[str, str | dict]:
    """Answers and reports of each set, without the number of ranks."""
    found: dict[str, str | dict] = {}
    for one in sorted(folder.glob("scaling_*/*")):
        report = json.loads((one / "report.json").read_text())
        del report["provenance"]["processes"]
        found[f"{one.parent.name}/{one.name}"] = report | {"predictions": (one / "predictions.jsonl").read_text()}
    return found


def test_a_sweep_of_judged_sets_and_of_choices_tells_the_same_and_asks_the_judge_once(stub_world: Path, judge):
    judge.rule = lambda _, prompt: (200, completion("No." if "green dog" in prompt else "Yes"))
    config_for(stub_world, ENTRIES)
    choices = [entry(level, text=WORDS[level], task="QA", Q="Which?", choices=WORDS[1:5]) for level in range(1, 5)]
    (stub_world / "choices.json").write_text(json.dumps({"annotation": choices}))
    prompts = {"asr": "<Speech><SpeechHere></Speech> Write it.", "QA": "<Speech><SpeechHere></Speech> {}"}
    (stub_world / "prompts.json").write_text(json.dumps(prompts))
    (stub_world / "sweep.py").write_text(SWEEP)
    to = ["evaluate.judge.kind=openai", "evaluate.judge.model=m", f"evaluate.judge.base_url={judge.url}"]
    asked = []
    for ranks in (1, 2):
        command = ["sweep.py", str(ranks), *to, "evaluate.shuffled_control=true"]
        result = run_command(*command, cwd=stub_world, ranks=ranks, PYTHONPATH=str(ROOT))
        assert result.returncode == 0, result.stderr
        asked.append(len(judge.requests))
    alone, together = (results(stub_world / f"results/{ranks}") for ranks in (1, 2))
    assert list(alone) == ["scaling_0/mc", "scaling_0/sqqa", "scaling_4/mc", "scaling_4/sqqa"]
    assert together == alone
    assert alone["scaling_4/mc"]["scores"]["choice_likelihood"] == 1.0
    assert 0 < alone["scaling_4/sqqa"]["scores"]["judged"] < 1
    assert asked == [asked[0], 2 * asked[0]]
    for folder in stub_world.glob("results/2/scaling_*/*/answers"):
        assert {path.stem[-5:] for path in folder.glob("*.jsonl")} == {"rank0", "rank1"}
