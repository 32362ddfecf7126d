"""The quickstart's last part: what it gathers from the others, its bars, its pictures; and its options."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, load_stages
from salmonn.evaluation.pipeline import results_folder
from salmonn.evaluation.tasks import load_tasks
from util import jobs, quickstart
from util.quickstart import clear, overrides, parts, run_all, stages_file, state_of
from util.quickstart_report import EVALUATED_STAGES, STAGES, TASKS, Recipe, check_bars, summarise, write_report

GOOD = {"wer": 0.12, "wer_shuffled": 0.94, "exact": 0.82, "exact_shuffled": 0.11}
FAST, PUBLISHED = Recipe(42), Recipe(42, published=True)
RECIPES = {"fast": FAST, "published": PUBLISHED}
CAPTIONS = {"cider_d": 5.5, "cider_d_shuffled": 0.6, "rouge_l": 0.9, "rouge_l_shuffled": 0.3}


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished quickstart's folder, with the files that its parts write."""
    for stage in STAGES:
        folder = tmp_path / f"stage{stage}"
        run = {"trainable_parameters": 1000 + stage, "iterations": 10, "valid_loss": 0.5}
        run["valid_loss_shuffled"] = 2.0 + stage
        write(folder / "summary.json", run)
        train = [{"kind": "train", "step": step, "loss": 3 / step, "lr": 1e-3} for step in (1, 5, 10)]
        valid = {
            "kind": "valid",
            "step": 10,
            "loss": 0.5,
            "loss_shuffled": 2,
            "accuracy": 0.8,
            "accuracy_shuffled": 0.4,
        }
        write(folder / "log.jsonl", *train, valid)
        write(folder / "quarantine.jsonl", {"path": "always.wav"}, {"path": f"{stage}.wav"})
        for task in TASKS:
            evaluation = tmp_path / "results" / f"stage{stage}" / task
            write(evaluation / "report.json", {"scores": {**GOOD, **CAPTIONS}})
            answer = {"unreadable": "", "references": ["a | b"], "text": "a b", "text_shuffled": f"{task} c"}
            write(evaluation / "predictions.jsonl", answer, {"unreadable": "gone"})
    files = [{"file": f"w/stage{s}_train.json", "tasks": [{"task": "asr", "total": 9}]} for s in STAGES[1:]]
    write(tmp_path / "inspector.json", {"files": files})
    write(tmp_path / "world/world.json", {"broken": {f"{i}.wav": "missing" for i in range(5)}})
    return tmp_path


def test_summary_holds_the_scores_of_the_final_model_and_of_stage_1(out: Path):
    write(out / "results/stage1/asr/report.json", {"scores": {"wer": 0.2, "wer_shuffled": 0.9}})
    summary = summarise(out, Recipe(7), {"stage1": 70.0, "total": 71.0})
    assert summary["seed"] == 7
    assert (summary["asr_wer"], summary["stage1"]["asr_wer"]) == (0.12, 0.2)
    assert (summary["aac_cider_d"], summary["aac_exact_shuffled"]) == (5.5, 0.11)
    assert summary["valid_loss_shuffled"] == {"stage0": 2.0, "stage1": 3.0, "stage2": 4.0, "stage3": 5.0}
    assert summary["trainable_parameters"] == 1001
    assert summary["skipped_files"] == 5  # a file that all stages met counts once


def test_a_listening_model_passes_every_bar_and_a_deaf_one_fails(out: Path):
    assert all(verdict.passed for verdict in check_bars(summarise(out, FAST, {})))
    deaf = {"wer": 0.94, "wer_shuffled": 0.94, "exact": 0.11, "exact_shuffled": 0.11}
    write(out / "results/stage3/asr/report.json", {"scores": deaf})
    write(out / "results/stage3/aac/report.json", {"scores": {**deaf, **CAPTIONS}})
    failed = [verdict.line for verdict in check_bars(summarise(out, FAST, {})) if not verdict.passed]
    assert failed == [
        "FAIL  asr_wer after stage 3: 0.940 (at most 0.35)",
        "FAIL  aac_exact after stage 3: 0.110 (at least 0.65)",
    ]


def test_report_shows_scores_samples_and_a_picture_per_stage(out: Path):
    summary = summarise(out, FAST, {"stage1": 70.0, "total": 71.0})
    write_report(out, summary, check_bars(summary))
    page = (out / "report.md").read_text()
    for expected in ("PASS  asr_wer", "| 0.120", "asr 9 (loss of CTC)", "5 of the 5", "a \\| b", "aac c"):
        assert expected in page
    for stage in STAGES:
        assert f"](stage{stage}/training_curves.png)" in page
    assert json.loads((out / "summary.json").read_text()) == summary


def test_another_folder_and_seed_are_passed_as_options_and_the_default_needs_none():
    assert overrides("evaluate.yaml", "output/mini", 42) == []
    moved = overrides("evaluate.yaml", "/tmp/elsewhere", 43)
    for expected in (
        "run.seed=43",
        "datasets.prefix=/tmp/elsewhere/world/audio",
        "model.beats_path=/tmp/elsewhere/world/weights/beats.pt",
        "evaluate.results_dir=/tmp/elsewhere/results",
        "run.output_dir=/tmp/elsewhere",
    ):
        assert expected in moved
    assert not any("configs/prompts" in option for option in moved)


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The parts that were run, each leaving its file and taking 3 s; training fails while "fail" is in the list."""
    names: list[str] = []

    def run(part: quickstart.Part) -> float:
        if part.name == "training" and "fail" in names:
            raise SystemExit(1)
        names.append(part.name)
        Path(part.product).parent.mkdir(parents=True, exist_ok=True)
        Path(part.product).touch()
        return 3.0

    monkeypatch.setattr(quickstart, "run", run)
    return names


def test_a_stopped_quickstart_goes_on_with_the_part_that_was_not_done_and_a_finished_one_does_nothing(ran, tmp_path):
    out, names = str(tmp_path), [part.name for part in parts(str(tmp_path), FAST)]
    ran.append("fail")
    with pytest.raises(SystemExit):
        run_all(out, FAST)
    ran.remove("fail")
    assert ran == names[: names.index("training")]
    seconds = run_all(out, FAST)
    assert ran == names  # each once
    assert seconds == {**dict.fromkeys(names, 3.0), "total": 3.0 * len(names)}
    assert run_all(out, FAST) == seconds
    assert ran == names
    (tmp_path / "stage3/training_curves.png").unlink()
    run_all(out, FAST)
    assert ran == [*names, *names[names.index("training") :]]


@pytest.mark.usefixtures("ran")
def test_no_run_is_overwritten_and_fresh_trains_anew(tmp_path):
    words = [word for part in parts(str(tmp_path), FAST) for command in part.commands for word in command]
    assert not any("overwrite" in word for word in words)
    run_all(str(tmp_path), FAST)
    (tmp_path / "results/mine").mkdir()
    clear(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()) == [
        "configs",
        "inspector.json",
        "results",
        "world",
    ]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["mine"]
    assert state_of(tmp_path, FAST) == {}


@pytest.mark.parametrize("name", ["quickstart.json", "summary.json"])
@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        ({"seed": 42, "published": False}, Recipe(43), "--seed 42"),
        ({"seed": 42, "published": False}, PUBLISHED, "--seed 42"),
        ({"seed": 42, "published": True}, FAST, "--seed 42 --published"),
        ({"seed": 42}, FAST, "--seed 42 --published"),  # of before there was a stage 0
    ],
)
def test_another_quickstart_does_not_destroy_what_is_there(ran, tmp_path, name, there, asked, told):
    write(tmp_path / name, {**there, "seconds": {}})
    with pytest.raises(UserError, match=rf"holds a quickstart of {told}: choose another --out, or add --fresh"):
        run_all(str(tmp_path), asked)
    assert ran == []


def test_the_published_quickstart_has_no_stage_0_and_its_stage_1_does_not_start_from_one(tmp_path):
    fast, published = (load_stages(stages_file(str(tmp_path / name), recipe)) for name, recipe in RECIPES.items())
    assert [config.run.objective for config in fast] == ["ctc", "answer", "answer", "answer"]
    assert [config.run.objective for config in published] == ["answer"] * 3
    assert (fast[1].model.ckpt, published[0].model.ckpt) == (f"{tmp_path}/fast/stage0/checkpoint_best.pth", "")


@pytest.mark.parametrize("name", RECIPES)
def test_stages_in_another_folder_differ_from_the_miniature_worlds_own_in_folder_and_seed_alone(tmp_path, name):
    out = f"{tmp_path}/a b"
    moved = load_stages(stages_file(out, RECIPES[name]._replace(seed=7)))
    own = load_stages(stages_file("output/mini", RECIPES[name]))
    for theirs, ours in zip(moved, own, strict=True):
        assert theirs.run.seed == 7
        theirs.run.seed = ours.run.seed
        assert _plain(theirs).replace(out, "output/mini") == _plain(ours)


def _plain(config: DictConfig) -> str:
    return json.dumps(OmegaConf.to_container(config))


def test_each_evaluated_stage_is_asked_about_the_worlds_own_sets_by_one_command(tmp_path):
    for out in ("output/mini", f"{tmp_path}/a b"):
        for command, stage in zip(parts(out, FAST)[-1].commands, EVALUATED_STAGES, strict=True):
            config = load_config(command[command.index("--cfg-path") + 1], command[command.index("--options") + 1 :])
            assert config.model.ckpt == f"{out}/stage{stage}/checkpoint_best.pth"
            assert results_folder(config, "table3") == Path(out, f"results/stage{stage}")
            found = load_tasks(config.evaluate.tasks_file, command[command.index("--tasks") + 1].split(","))
            sets = [f"{out}/world/ann/test_{name}.json" for name in ("asr", "audiocaption")]
            assert [(task.name, task.annotation) for task in found] == list(zip(TASKS, sets, strict=True))


def test_where_nothing_differs_the_files_of_the_project_are_used():
    files = {"fast": "configs/mini/fast/all_stages.yaml", "published": "configs/mini/all_stages.yaml"}
    assert {name: str(stages_file("output/mini", recipe)) for name, recipe in RECIPES.items()} == files


def test_what_is_told_to_come_next_names_the_model_that_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    usual = quickstart.what_comes_next("output/mini")
    talks = [f"  python -m salmonn.{name} --cfg-path configs/mini/decode.yaml" for name in ("chat", "web")]
    assert usual == [*talks, "Then teach it recordings of your own: docs/own-data.md"]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    assert quickstart.what_comes_next("output/mini") == ["  source .venv/bin/activate", *usual]
    _, chat, web = quickstart.what_comes_next("output/a b")
    words = shlex.split(chat)
    config = load_config(words[words.index("--cfg-path") + 1], words[words.index("--options") + 1 :])
    assert config.model.ckpt == "output/a b/stage3/checkpoint_best.pth"
    assert "output/mini" not in _plain(config.model)
    assert web == chat.replace("chat", "web")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"seed": 42, "seconds": 3}'])
def test_a_damaged_note_of_what_is_done_is_told(tmp_path, content):
    (tmp_path / "quickstart.json").write_text(content)
    with pytest.raises(UserError, match=r"quickstart\.json"):
        state_of(tmp_path, FAST)
