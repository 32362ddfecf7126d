"""wandb by option: TensorBoard's scalars, one run over restarts, no secret, and nothing of it without the option."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.training.run_log import RunLog
from salmonn.training.wandb_log import open_wandb, require_wandb
from tests.fixtures.paths import ROOT


class Wandb(SimpleNamespace):
    """What is used of the library, which notes what it is given; in its place it needs neither account nor network."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.Settings = lambda **settings: settings
        self.given: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str]] = []
        self.finished = 0
        self.__spec__ = object()

    def init(self, **given: Any) -> "Wandb":
        self.given.append(given)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def config_of(*options: str):
    return load_config(ROOT / "configs/mini/stage1.yaml", ["run.wandb_project=salmonn", *options])


def curves_of(folder) -> dict[tuple[str, int], float]:
    """{(curve, step): value} of TensorBoard's files."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in folder.glob("tensorboard/events*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return found


def test_the_scalars_are_those_of_tensorboard(wandb, tmp_path):
    log = RunLog(tmp_path, wandb=open_wandb(tmp_path, config_of()))
    log.write("train", 5, loss=2.5, grad_norm=None, name="x")
    log.write("valid", 5, loss=3.0, tasks={"asr": {"loss": 1.5, "loss_shuffled": None}})
    log.write("note", 6, text="nothing to draw")
    log.close()
    assert wandb.lines == [
        {"train/loss": 2.5, "step": 5},
        {"valid/loss": 3.0, "valid/asr/loss": 1.5, "step": 5},
    ]
    drawn = {(name, line["step"]): value for line in wandb.lines for name, value in line.items() if name != "step"}
    assert curves_of(tmp_path) == drawn
    assert wandb.axes == [("*", "step")]
    assert wandb.finished == 1


@pytest.mark.parametrize("token", ["planted_token", "${oc.env:PLANTED}"])
def test_a_run_that_goes_on_is_the_same_there_and_no_secret_is_sent_or_written(wandb, tmp_path, monkeypatch, token):
    for name in ("WANDB_API_KEY", "PLANTED", "JUDGE_KEY"):
        monkeypatch.setenv(name, f"planted_{name}")
    for _ in range(2):
        log = RunLog(
            tmp_path,
            wandb=open_wandb(tmp_path, config_of(f"model.token={token}", "evaluate.judge.key_variable=JUDGE_KEY")),
        )
        log.write("note", 1, text="model.token: planted_old -> planted_new", token="planted_token")
        log.write("train", 2, loss=1.0, name="planted")
        log.close()
    assert "planted" not in json.dumps(wandb.lines)
    (tmp_path / "log.jsonl").unlink()  # which says what it is given; it is for this folder alone
    first, second = wandb.given
    assert first["id"] == second["id"]
    assert (first["project"], first["name"], first["resume"], first["dir"]) == (
        "salmonn", tmp_path.name, "allow", str(tmp_path),
    )  # fmt: skip
    assert first["config"]["run"]["wandb_project"] == "salmonn"
    assert first["settings"]["x_disable_meta"]  # the command line, in which a token may stand
    assert "planted" not in json.dumps(wandb.given)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"planted" in file.read_bytes()]
    other = tmp_path / "other"
    other.mkdir()
    open_wandb(other, config_of())
    assert wandb.given[-1]["id"] != first["id"]


def test_what_wandb_refuses_is_told(wandb, tmp_path, monkeypatch):
    def refuse(**_):
        raise Wandb.Error("no API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"run.wandb_project = salmonn: wandb says: no API key .*WANDB_MODE=offline"):
        open_wandb(tmp_path, config_of())


def test_an_absent_library_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("salmonn.training.wandb_log.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install wandb"):
        require_wandb(config_of())
    require_wandb(load_config(ROOT / "configs/mini/stage1.yaml"))


def test_without_the_option_nothing_of_wandb_is_imported():
    code = "import sys, salmonn.training.runner; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("given", "project"),
    [
        ({"use_wandb": False, "wandb_project": "theirs"}, ""),
        ({"use_wandb": True, "wandb_project": "theirs"}, "theirs"),
        ({"wandb_project": "ours"}, "ours"),
        ({"use_wandb": False}, ""),
        ({}, ""),
    ],
)
def test_configs_of_others_switch_it_as_they_mean_to(tmp_path, given, project):
    (tmp_path / "c.yaml").write_text(json.dumps({"run": given} if given else {}))  # JSON is YAML
    assert load_config(tmp_path / "c.yaml").run.wandb_project == project
