"""tests/chaos.py itself, in its shortest form: it disturbs, goes on, compares and counts."""

import random

from tests import chaos


def test_disturbed_commands_end_with_the_result_of_undisturbed_ones(mini_world, capsys):
    counts = chaos.run(mini_world, minutes=0, only=["split"], seed=3)
    assert counts["split", "same"] == 1
    assert "split: " in capsys.readouterr().out
    header, row = chaos.table(counts).splitlines()
    assert header.split()[:3] == ["same", "told", "WRONG"]
    assert row.split()[:4] == ["split", "1", "0", "0"]


def test_another_result_and_what_is_left_over_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "prepared", lambda folder, _: folder.mkdir() or folder)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "a").write_text("right")
    for text, name, outcome in (("right", "a", "same"), ("wrong", "a", "WRONG: a"), ("right", "b", "WRONG: a, b")):
        job = chaos.Job(
            "x", lambda f, t=text, n=name: ["sh", "-c", f"echo -n {t} > {f}/{n}"], chaos.partial(chaos._differs, "*")
        )
        assert chaos.run_round(job, tmp_path, whole, 0.1, random.Random(1))[0] == outcome


def test_damage_changes_a_file_and_neither_its_time_nor_the_input(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann/a.json").write_text("{}")
    for name in ("ann/.a.json.index", "b.pth"):
        (tmp_path / name).write_bytes(bytes(range(1, 200)))
    rng, hit = random.Random(0), set()
    for _ in range(20):
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        hit.add(chaos.damage(tmp_path, rng).split()[0])
        assert {path: path.stat().st_mtime_ns for path in times} == times
    assert hit <= {"ann/.a.json.index", "b.pth"}
    assert (tmp_path / "ann/a.json").read_text() == "{}"


def test_a_blow_that_hits_nothing_is_not_counted(monkeypatch):
    def blow(how, *command, seconds=0.0):
        monkeypatch.setattr(chaos, "DISTURBANCES", {how: chaos.DISTURBANCES[how]})
        monkeypatch.setattr(chaos.random.Random, "choice", lambda _, among: among[0])
        return chaos.disturb(command, seconds, random.Random(0))

    assert blow("a worker killed", "sleep", "0.5") == ""  # it has none
    monkeypatch.undo()
    assert blow("all killed", "sleep", "60") == "all killed"
    monkeypatch.undo()
    assert blow("all killed", "true", seconds=60) == ""  # over before


def test_every_kind_of_blow_and_of_job_is_there(tmp_path):
    assert {"all killed", "a rank killed", "the first alone killed", "a worker killed", "one stopped"} == set(
        chaos.DISTURBANCES
    )
    names = {job.name for job in chaos.jobs(tmp_path, tmp_path)}
    assert {"training", "table3", "inspector", "convert", "split", "to-folder", "export-lora", "export-merged"} == names
