"""What the documents tell a user to type fits the commands and the configuration."""

import re
import shlex
from pathlib import Path

import pytest

from salmonn.config.loading import load_config
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.published import with_outputs
from salmonn.evaluation.tasks import load_tasks
from tests.fixtures.paths import ROOT
from util import prepare_eval_sets
from util.eval_sets.catalogue import SETS

EVALUATION = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
TASKS = {task.name: task for task in load_tasks(ROOT / "configs/eval_tasks.yaml")}


def row(name: str) -> list[str]:
    (line,) = re.findall(rf"^\| `{name}` \|.*$", EVALUATION, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_table_3_tells_the_published_figures(name):
    _, _, _, titles, paper, reproduced = row(name)
    task = TASKS[name]
    shown = [metric for metric in task.metrics if metric in task.paper] or task.metrics[:1]
    assert [title.split(" (")[0] for title in titles.split("<br>")] == [METRICS[m].title.split(" (")[0] for m in shown]
    for cell, figures in ((paper, task.paper), (reproduced, task.reproduced)):
        scores = [[with_outputs(METRICS[m], one, figures[m]) for one in figures.get(m, [])] for m in shown]
        assert cell.split("<br>") == [", ".join(of_metric) or "-" for of_metric in scores]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sac"])
def test_the_command_of_a_row_makes_the_file_that_the_row_reads(name, monkeypatch):
    arguments = shlex.split(row(name)[2].strip("`"))
    monkeypatch.setattr("sys.argv", ["prepare_eval_sets.py", *arguments])
    args = prepare_eval_sets.parse_arguments()
    prefix = load_config(ROOT / "configs/released.yaml").datasets.prefix
    assert Path(prefix) == (args.prefix or args.root.parent)
    assert TASKS[name].annotation == str(prepare_eval_sets.default_out(args.set, args.split or SETS[args.set].split))
