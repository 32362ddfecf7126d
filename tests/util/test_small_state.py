"""What util/small.py has done: stopped, killed, gone on with, asked for otherwise."""

import json
import time

import pytest

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder
from salmonn.config.loading import load_config
from tests.fixtures.paths import ROOT
from tests.fixtures.small import arguments, ending
from util.small_model import job, parts, state

pytestmark = pytest.mark.usefixtures("installed_packages")


def test_a_job_that_is_done_asks_for_nothing(tmp_path, monkeypatch):
    """What it was made of may be gone by then."""
    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, lambda _: None),))
    monkeypatch.chdir(ROOT)
    (tmp_path / "prompts.txt").write_text("; none\n")
    args = arguments(monkeypatch, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt")
    parts.run_all(args)
    (tmp_path / "prompts.txt").unlink()
    parts.run_all(args)


def test_a_part_that_was_stopped_counts_with_the_minutes_that_it_took_then(tmp_path, monkeypatch, capsys):
    clock, attempts = [0.0], []

    def work(_: job.Small) -> None:
        clock[0] += 600
        attempts.append(None)
        if len(attempts) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, work),))
    monkeypatch.setattr(parts.time, "monotonic", lambda: clock[0])
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            parts.run_all(args)
    parts.run_all(args)
    assert json.loads((tmp_path / "out/state.json").read_text())["minutes"] == {"models": 30.0}
    assert "30 minutes in all" in capsys.readouterr().out


def test_a_part_that_is_killed_loses_no_more_than_the_time_since_the_last_note(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "_NOTED_SECONDS", 0.01)
    note, left = tmp_path / "out/state.json", []

    def work(_: job.Small) -> None:
        while not note.exists() or json.loads(note.read_text())["stopped"].get("models", 0) < 0.01:
            time.sleep(0.01)
        left.append(note.read_bytes())  # what a kill leaves

    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, work),))
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    parts.run_all(args)
    assert json.loads(note.read_text())["stopped"] == {}
    note.write_bytes(left[0])
    before = json.loads(left[0])["stopped"]["models"]
    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, lambda _: None),))
    parts.run_all(args)
    assert json.loads(note.read_text())["minutes"]["models"] == pytest.approx(before, abs=0.011)


def test_minutes_left_follow_the_machines_pace_and_what_a_stopped_part_has_had(tmp_path, monkeypatch, capsys):
    made = [parts.Part("models", "models", 30, ending(None)), parts.Part("voices", "voices", 10, ending(None))]
    made.append(parts.Part("stage0", "stage 0", 20, ending(None)))
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "require_possible", lambda *_: None)
    # twice as slow as the measured one: 90 + 30 minutes for 30 + 30
    note = {"asked": {}, "configs": {}, "minutes": {"models": 90.0}, "stopped": {"voices": 5.0}}
    monkeypatch.setattr(parts, "read_state", lambda _: note)
    monkeypatch.setattr(parts, "note_prompts", lambda *_: None)
    monkeypatch.chdir(ROOT)
    parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))
    told = [line for line in capsys.readouterr().out.splitlines() if "left in all" in line]
    assert told[0] == "##### voices (about 55 minutes left in all)"


def test_what_was_asked_for_may_be_changed_until_a_part_has_gone_by_it(tmp_path, monkeypatch):
    stopped = UserError("stopped")
    parts_of_it = {
        "models": [stopped, None],
        "recordings": [None],
        "voices": [None],
        "stage0": [stopped, stopped, None],
        "stories": [stopped, None],
    }
    made = [parts.Part(name, name, 1, ending(*ends)) for name, ends in parts_of_it.items()]
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    monkeypatch.chdir(ROOT)

    def told(*given: object) -> str:
        with pytest.raises(UserError) as error:
            parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", *given))
        return str(error.value)

    assert told() == "stopped"
    assert told("--whisper", tmp_path, "--clips", 5) == "stopped"  # of stage 0: no hub, so that one is named
    given = ["--whisper", tmp_path, "--clips", 5]
    assert told(*given, "--options", "stage0:run.encoder_cache_gb=5") == "stopped"  # set lower
    given += ["--options", "stage0:run.seed=2"]
    assert told(*given) == "stopped"  # of the stories
    assert f"was made with --whisper {tmp_path}: ask for the same" in told("--clips", 5, *given[4:])
    assert "was made with --clips 5: ask for the same" in told(*given[:2], *given[4:])
    assert "was made with --options stage0 run.seed=2: ask" in told(*given[:4])
    again = [
        "--stories",
        5,
        *given,
        "stage0:run.encoder_cache_gb=3",
    ]  # the model tells fewer; how much is kept decides nothing
    parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", *again))


def test_clips_that_go_by_their_numbers_are_spoken_of_one_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", [parts.Part("voices", "voices", 1, ending(UserError("stopped"), None))])
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    with pytest.raises(UserError, match="stopped"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", "--clips", 9))
    with pytest.raises(UserError, match="was made with --clips 9"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))


OLD_STATE = {  # as version 3ef5f2e wrote it
    "asked": {
        "whisper": "None", "llm": "None", "corpus": "None", "train_split": "train-clean-5",
        "valid_split": "dev-clean-2", "prompts": "None", "recordings": "packages", "clips": "24000", "stories": "12",
        "min_story_words": "20", "options": "[]",
    },
    "minutes": {"models": 1.5, "recordings": 0.5},
    "stopped": {"voices": 13.5},
}  # fmt: skip


def test_a_note_of_an_earlier_version_is_gone_on_with(tmp_path, monkeypatch):
    note = tmp_path / "state.json"
    note.write_text(json.dumps(OLD_STATE | {"asked": {"out": str(tmp_path), **OLD_STATE["asked"]}}))
    found = state.read_state(arguments(monkeypatch, "--out", tmp_path, "--stories", 5))
    assert (found["minutes"], found["stopped"]) == (OLD_STATE["minutes"], OLD_STATE["stopped"])
    with pytest.raises(UserError, match=r"was made with --options \[\]: ask"):
        state.read_state(arguments(monkeypatch, "--out", tmp_path, "--options", "stage1:run.seed=2"))
    asked = {"out": str(tmp_path), "clips": "24000", "of a later version": "3"}  # and some arguments came later
    note.write_text(json.dumps(OLD_STATE | {"asked": asked}))
    assert state.read_state(arguments(monkeypatch, "--out", tmp_path))["minutes"] == OLD_STATE["minutes"]


def test_another_config_than_that_of_a_part_that_is_done_is_told(tmp_path, monkeypatch, capsys):
    made = [parts.Part(name, name, 1, ending(*ends)) for name, ends in {"models": [None], "stage1": [None]}.items()]
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    parts.run_all(args)
    parts.run_all(args)
    assert "stage1: done before\n" in capsys.readouterr().out
    monkeypatch.setattr(state, "load_config", lambda name: load_config(name, ["run.optims.init_lr=0.5"]))
    parts.run_all(args)
    told = capsys.readouterr().out
    assert "models: done before\n" in told
    assert "stage1: done before, by another configs/small/stage1.yaml than today's: another --out goes by" in told


def test_two_jobs_are_not_done_in_one_folder(tmp_path, monkeypatch):
    args = arguments(monkeypatch, "--out", tmp_path)

    def second(_: job.Small) -> None:
        parts.run_all(args)

    monkeypatch.setattr(parts, "PARTS", [parts.Part("models", "models", 1, second)])
    monkeypatch.setattr(parts, "require_possible", lambda *_: None)
    with pytest.raises(UserError, match=f"another util/small.py is at work in {tmp_path}: end it"):
        parts.run_all(args)
    monkeypatch.setattr(parts, "PARTS", [parts.Part("models", "models", 1, ending(None))])
    parts.run_all(args)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"asked": {}, "minutes": 3}'])
def test_a_damaged_note_of_what_is_done_is_told(content, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", ())
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path))
