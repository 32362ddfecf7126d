"""What a checkpoint holds is taken up again as it was; one that cannot be written costs nothing but itself."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.data.integrity import unreadable_verdict
from salmonn.data.quarantine import Quarantine
from salmonn.model import checkpoint
from salmonn.model.lineage import LINEAGE, Training, known_tasks, written
from salmonn.training import run_state
from salmonn.training.progress import Progress
from salmonn.training.resume import find_resumed, require_same_experiment
from salmonn.training.run_folder import RunFolder
from salmonn.training.run_state import RunState, lineage_of_run
from salmonn.training.step import NotFiniteError, TrainingStep

VALID = {"loss": 1.5, "accuracy": 0.5, "loss_shuffled": 2.5}


class Tiny(nn.Module):
    """Parameters by published names, one of a matrix and one that does not decay."""

    def __init__(self) -> None:
        super().__init__()
        self.speech_llama_proj = nn.Linear(3, 2)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(run_state, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def make_state(tmp_path):
    """The state of a run that has just been prepared."""

    def make(*options: str, seed: int = 0) -> RunState:
        config = load_config("configs/mini/stage1.yaml", [f"run.output_dir={tmp_path}", "run.amp=False", *options])
        torch.manual_seed(seed)
        folder, model = RunFolder(config), Tiny()
        folder.path.mkdir(exist_ok=True)
        step = TrainingStep(model, config.run, torch.device("cpu"))
        return RunState(folder, model, step, Progress(), Quarantine(folder.path))

    return make


def train(state: RunState, steps: int = 3) -> None:
    """Steps of the optimiser about nothing; progress and quarantine go on with them."""
    for _ in range(steps):
        loss = state.model.speech_llama_proj(torch.ones(3)).pow(2).sum()
        result = {"loss": loss, "total": torch.tensor(1.0), "cut": torch.tensor(0.0)}
        state.step.backward(result, ["a.wav"], 1)
        state.step.finish(1)
        state.progress.iteration += 1
        state.progress.epoch_iteration += 1
        state.progress.samples += 2
        broken = unreadable_verdict(f"{state.progress.iteration}.wav", "undecodable")
        state.quarantine.add({"unreadable": [broken], "tried": 2})


def taken_up(state: RunState, found) -> RunState:
    resumed, content = found
    state.progress = resumed.progress
    state.restore(resumed, content)
    return state


def held(state: RunState) -> dict:
    """All that a step depends on."""
    values = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    moments = state.step.optimizer.state_dict()["state"]
    return values | {f"{i} {name}": value for i, of in moments.items() for name, value in of.items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_saved_is_taken_up_equal_and_the_next_steps_are_the_same(make_state, clock):
    first = make_state()
    train(first)
    clock.now += 60
    first.save(epoch=2)
    assert first.is_saved
    second = make_state(seed=1)
    assert not equal(held(second), held(first))
    clock.now += 1000  # nobody trained
    second = make_state(seed=1)
    taken_up(second, find_resumed(second.folder))
    assert equal(held(second), held(first))
    assert (second.progress.epoch_iteration, second.progress.iteration, second.progress.samples) == (3, 3, 6)
    assert (second.quarantine.tried, second.quarantine.unreadable, [*second.quarantine.files]) == (
        6,
        3,
        ["1.wav", "2.wav", "3.wav"],
    )
    clock.now += 5
    assert second.seconds == 65  # of both
    for state in (first, second):
        train(state, 2)
    assert equal(held(second), held(first))


def test_a_checkpoint_says_where_it_was_written(make_state):
    state = make_state()
    train(state)
    state.save(epoch=2)
    content = checkpoint.read(state.folder.path / "checkpoint_last.pth")
    assert (content["epoch"], content["step"]) == (2, 3)
    assert content["config"]["run"]["exp_name"] == "stage1"
    assert {"model", "optimizer", "scaler", "progress"} <= content.keys()


def test_changes_of_the_configuration_are_told_when_a_run_goes_on(make_state, caplog):
    state = make_state()
    train(state)
    state.save(epoch=0)
    other = make_state("run.optims.weight_decay=0.5")
    with caplog.at_level("INFO"):
        taken_up(other, find_resumed(other.folder))
    assert "checkpoint_last.pth: epoch 0, iteration 3, 6 samples seen" in caplog.text
    assert "the configuration has changed: run.optims.weight_decay: 0.05 -> 0.5" in caplog.text
    assert other.step.optimizer.param_groups[0]["weight_decay"] == 0.5  # as configured now


def test_an_optimiser_that_does_not_fit_is_told_with_its_file(make_state):
    state = make_state()
    train(state)
    state.save(epoch=0)
    other = make_state("run.optims.lora_lr_factor=2")
    other.model.lora_a = nn.Parameter(torch.ones(2, 2))
    other.step = TrainingStep(other.model, other.folder.config.run, torch.device("cpu"))
    found = find_resumed(other.folder)
    del other.model.lora_a
    with pytest.raises(UserError, match=r"checkpoint_last\.pth: its optimiser does not fit this configuration"):
        taken_up(other, found)


def full_disk(*_, **__) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize("is_best", [False, True])
def test_a_failed_write_leaves_the_checkpoints_before_and_is_told(make_state, monkeypatch, caplog, is_best):
    state = make_state()
    state.save(epoch=0, is_best=True)
    before = {path.name: path.read_bytes() for path in state.folder.path.glob("*.pth")}
    assert before.keys() == {"checkpoint_last.pth", "checkpoint_best.pth"}
    train(state)
    monkeypatch.setattr(checkpoint, "write_content", full_disk)
    state.save(epoch=1, is_best=is_best)
    assert not state.is_saved
    assert "NO CHECKPOINT WAS WRITTEN: No space left on device. The one before it is kept" in caplog.text
    assert {path.name: path.read_bytes() for path in state.folder.path.glob("*.pth")} == before
    with pytest.raises(UserError, match=r"^nothing could be written to .*stage1 .*make room"):
        state.require_saved("nothing could be written")
    monkeypatch.undo()
    state.save(epoch=1, is_best=is_best)
    state.require_saved("nothing could be written")
    assert (state.folder.path / "checkpoint_last-1.pth").read_bytes() == before["checkpoint_last.pth"]


def test_where_the_first_rank_could_not_write_none_has_saved(make_state, monkeypatch):
    state = make_state()
    monkeypatch.setattr(run_state.distributed, "from_main", lambda _: (False, False))
    state.save(epoch=0)
    assert not state.is_saved


def test_a_best_checkpoint_that_was_written_is_the_best_also_where_the_last_was_not(make_state, monkeypatch):
    """Else the next validation, worse than what the file holds, would replace it."""
    state = make_state()
    monkeypatch.setattr(state.folder, "save", full_disk)
    state.progress.valid = {"epoch": 0, **VALID}
    state.save(epoch=0, is_best=True)
    assert not state.is_saved
    assert state.progress.best == {"epoch": 0, **VALID}


def test_the_best_checkpoint_is_written_before_the_last(make_state, monkeypatch):
    """Killed in between, a run validates that epoch again; the other way round it would never keep it."""
    state, written = make_state(), []
    monkeypatch.setattr(state.folder, "save_best", lambda *_, **__: written.append("best"))
    monkeypatch.setattr(state.folder, "save", lambda *_, **__: written.append("last"))
    state.save(epoch=0, is_best=True)
    state.save(epoch=1)
    assert written == ["best", "last", "last"]


def test_a_summary_is_there_as_soon_as_there_is_a_validation(make_state):
    state = make_state()
    train(state)
    state.save(epoch=0)
    assert not (state.folder.path / "summary.json").exists()
    state.progress.valid, state.progress.best = VALID, {"epoch": 0, **VALID}
    state.save(epoch=0)
    summary = json.loads((state.folder.path / "summary.json").read_text())
    assert (summary["iterations"], summary["tried"], summary["bad"], summary["bad_files"]) == (3, 6, 3, 3)
    assert (summary["trainable_parameters"], summary["valid_loss"], summary["best"]["epoch"]) == (8, 1.5, 0)


def test_what_led_to_a_loss_that_is_not_finite_is_kept_or_why_not_is_told(make_state, monkeypatch):
    state = make_state()
    train(state)
    path = state.folder.path / "not_finite.pth"
    error = NotFiniteError("loss is nan on rank 0", ["a.wav"])
    assert str(path) in state.keep_not_finite(error, epoch=1, iteration=4)
    content = checkpoint.read(path)
    assert (content["problem"], content["epoch"], content["iteration"]) == ("loss is nan on rank 0", 1, 4)
    assert content["samples"] == ["a.wav"]
    assert torch.equal(content["model"]["speech_llama_proj.bias"], state.model.speech_llama_proj.bias)
    monkeypatch.setattr(checkpoint, "write_content", full_disk)
    assert "could not be saved: No space left" in state.keep_not_finite(error, epoch=1, iteration=4)


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("config", []), ("config", "x"), ("config", {"run": 3}), ("config", {"run": {"batch_size_train": "8"}}),
        ("config", {"run": {"optims": None}}), ("config", {"model": {"a": nested(100)}}), ("progress", None),
        ("progress", {"best": {"loss": 1.0}}), ("progress", {"valid": {"accuracy": "high"}}),
        ("progress", {"epoch": "1"}), ("progress", {"epoch": -1}), ("progress", {"seconds": float("nan")}),
        ("progress", {"best": {"accuracy": float("nan")}}), ("progress", {"best": {"accuracy": 1.0, "loss": b"x"}}),
        ("config", {"run": {"batch_seconds": torch.ones(2)}}), ("config", {"run": {"optims": {"beta2": b"x"}}}),
        ("progress", {"best": 0.5}), ("progress", {"seconds": []}), ("scaler", 1),
        ("progress", {"best": {"accuracy": 1.0, "loss": "low"}}),
        ("optimizer", torch.ones(2)), ("optimizer", {}), ("optimizer", {"state": [], "param_groups": 3}),
        ("optimizer", {"state": {}, "param_groups": [{"params": 5}, 2]}),
        ("optimizer", {"state": {}, "param_groups": [torch.tensor(3), torch.tensor(3)]}),
    ],
)  # fmt: skip
def test_a_checkpoint_with_parts_of_another_kind_is_told_by_its_name(make_state, tmp_path, key, wrong):
    require_told_by_name(make_state, tmp_path, lambda content: content.update({key: wrong}))


@pytest.mark.parametrize("name", ["maximize", "amsgrad", "differentiable", "capturable", "lr", "betas", "fused"])
@pytest.mark.parametrize("wrong", [[1, 2], 1.5, b"x", torch.ones(2)])
def test_how_the_optimiser_works_is_what_this_run_says(make_state, name, wrong):
    state = make_state()
    train(state)
    state.save(0)
    path = state.folder.path / "checkpoint_last.pth"
    content = checkpoint.read(path)
    for group in content["optimizer"]["param_groups"]:
        group[name] = wrong
    checkpoint.save(path, content)
    again = taken_up(make_state(), find_resumed(state.folder))
    for one in (state, again):
        train(one, 1)
    assert equal(held(again), held(state))


@pytest.mark.parametrize(
    "wrong", [torch.ones(3), torch.ones(2), torch.ones(1, 8, 8), torch.eye(2).to_sparse(), "x", [1.0]]
)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_moments_of_another_shape_are_told_before_a_step_is_made_with_them(make_state, tmp_path, name, wrong):
    require_told_by_name(make_state, tmp_path, lambda content: content["optimizer"]["state"][0].update({name: wrong}))


def lose(content, name):
    """Take the second parameter's moments out of a checkpoint, all or one of them."""
    if name:
        del content["optimizer"]["state"][1][name]
    else:
        del content["optimizer"]["state"][1]


BROKEN_MOMENTS = {
    "NaN in one": (
        lambda content: content["optimizer"]["state"][0]["exp_avg"][0].fill_(float("nan")),
        "it holds NaN or infinite values in 1 of 6 tensors, e.g. 0 exp_avg: ",
    ),
    "infinite": (
        lambda content: content["optimizer"]["state"][1]["exp_avg_sq"].fill_(float("inf")),
        "it holds NaN or infinite values in 1 of 6 tensors, e.g. 1 exp_avg_sq: ",
    ),
    "NaN steps": (
        lambda content: content["optimizer"]["state"][1]["step"].fill_(float("nan")),
        "it holds NaN or infinite values in 1 of 6 tensors, e.g. 1 step: ",
    ),
    "none of one": (lambda content: lose(content, ""), "it lacks the moments of 1 of 2 parameters, which had steps"),
    "half of one": (lambda content: lose(content, "exp_avg_sq"), "it lacks the moments of 1 of 2 parameters"),
    "none at all": (lambda content: content["optimizer"]["state"].clear(), "it lacks the moments of 2 of 2 parameters"),
    "empty": (lambda content: content["optimizer"]["state"][0].clear(), "it lacks the moments of 1 of 2 parameters"),
}


@pytest.mark.parametrize("kind", BROKEN_MOMENTS)
def test_moments_that_would_spoil_the_model_are_told_before_and_when_a_run_goes_on(make_state, kind):
    change, told = BROKEN_MOMENTS[kind]
    state = make_state()
    train(state)
    state.save(epoch=0)
    path = state.folder.path / "checkpoint_last.pth"
    content = checkpoint.read(path)
    change(content)
    checkpoint.save(path, content)
    again = make_state()
    for look in (require_same_experiment, lambda folder: taken_up(again, find_resumed(folder))):
        with pytest.raises(UserError) as error:  # the dry run says it by the first of these
            look(again.folder)
        assert f"checkpoint_last.pth: its optimiser cannot go on: {told}" in str(error.value)
        assert "take an earlier file" in str(error.value)


def test_before_the_first_step_and_of_an_encoder_that_drops_layers_moments_may_be_missing(make_state):
    state = make_state()
    state.save(epoch=0)
    taken_up(make_state(), find_resumed(state.folder))
    train(state)
    state.save(epoch=0)
    path = state.folder.path / "checkpoint_last.pth"
    content = checkpoint.read(path)
    lose(content, "")
    content["config"]["model"]["freeze_beats"] = False
    checkpoint.save(path, content)
    taken_up(make_state("model.freeze_beats=False"), find_resumed(state.folder))


def require_told_by_name(make_state, folder, change):
    """A run from a checkpoint whose content was changed is refused, and the file named."""
    state = make_state()
    train(state)
    state.save(0)
    path = folder / "odd.pth"
    content = checkpoint.read(state.folder.path / "checkpoint_last.pth")
    change(content)
    checkpoint.save(path, content)
    again = make_state(f"run.resume={path}", "run.exp_name=other")
    with pytest.raises(UserError, match=r"odd\.pth"):
        taken_up(again, find_resumed(again.folder))


def test_a_run_knows_the_runs_that_its_parameters_come_from(tmp_path):
    before = [Training("stage1", "one.json", ("asr", "audiocaption"), 30)]
    torch.save({"model": {}, LINEAGE: written(before)}, tmp_path / "stage1.pth")
    ckpt = f"model.ckpt={tmp_path}/stage1.pth"
    config = load_config("configs/mini/stage2.yaml", [ckpt])
    this = Training("stage2", "stage2_train.json", ("asr", "QA"))
    assert lineage_of_run(config, ["asr", "QA"], None) == [*before, this]
    (tmp_path / "stage1.pth").unlink()  # a run that goes on needs it no more
    saved = {LINEAGE: written([*before, Training("stage2", "old.json", ("asr",), 7)])}
    assert lineage_of_run(config, ["asr", "QA"], saved) == [*before, this]
    assert lineage_of_run(config, ["asr", "QA"], {}) == [Training("stage1.pth"), this]  # of an earlier version
    assert known_tasks(lineage_of_run(config, ["asr", "QA"], {})) is None
    alone = load_config("configs/mini/stage1.yaml", ["run.objective=ctc", "run.ctc_tasks=[asr]"])
    assert lineage_of_run(alone, ["asr", "audiocaption"], None)[-1].tasks == ("asr",)
