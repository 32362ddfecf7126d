"""What a run's folder allows, keeps and goes on from; what its log survives."""

import os
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.model import checkpoint
from salmonn.training import resume, run_folder
from salmonn.training.progress import Progress
from salmonn.training.resume import Resumed, find_resumed, require_same_experiment
from salmonn.training.run_content import build_content
from salmonn.training.run_folder import RunFolder
from salmonn.training.run_log import RunLog
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.commands import json_lines

STATE = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {}}


@pytest.fixture
def folder_of(tmp_path):
    """The folder of a run with these options."""

    def make(*options: str) -> RunFolder:
        return RunFolder(load_config("configs/mini/stage1.yaml", [f"run.output_dir={tmp_path}", *options]))

    return make


def save(folder: RunFolder, model: nn.Module, progress: Progress) -> None:
    folder.save(build_content(model, folder.config, progress, **STATE))


def resumed(folder: RunFolder) -> Resumed | None:
    found = find_resumed(folder)
    return found and found[0]


def epoch_of(found: Resumed | None) -> int | None:
    return None if found is None else found.progress.epoch


@pytest.mark.parametrize("name", ["checkpoint_last-copy.pth", "checkpoint_last-1.bak.pth", "checkpoint_last--1.pth"])
def test_a_copy_that_somebody_has_made_beside_is_left_alone(folder_of, name):
    folder = folder_of("run.keep_checkpoints=2")
    for epoch in range(3):
        save(folder, nn.Linear(2, 2), Progress(epoch=epoch))
    copied = (folder.path / "checkpoint_last.pth").read_bytes()
    (folder.path / name).write_bytes(copied)
    assert epoch_of(resumed(folder)) == 2
    save(folder, nn.Linear(2, 2), Progress(epoch=3))
    assert epoch_of(resumed(folder)) == 3
    assert (folder.path / name).read_bytes() == copied


@pytest.mark.parametrize("option", ["run.overwrite=True", "run.resume=none"])
@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_after_a_restart_the_commands_own_checkpoint_counts(folder_of, monkeypatch, option, variable):
    """A restart repeats the command; what it says of a run that was there before is no longer meant."""
    model = nn.Linear(2, 2)
    save(folder_of(), model, Progress(epoch=1))  # of an earlier run
    assert epoch_of(resumed(folder_of(option))) is None
    monkeypatch.setenv(variable, "1")
    assert epoch_of(resumed(folder_of(option))) is None  # killed before it saved anything itself
    save(folder_of(option), model, Progress(epoch=2))
    assert epoch_of(resumed(folder_of(option))) == 2
    monkeypatch.setenv(variable, "0")
    assert epoch_of(resumed(folder_of(option))) is None


def test_a_command_that_names_a_checkpoint_goes_on_with_what_it_has_saved_itself(folder_of, tmp_path):
    model, elsewhere = nn.Linear(2, 2), tmp_path / "elsewhere.pth"
    save_checkpoint(elsewhere, model, progress={"epoch": 7}, config={}, **STATE)
    named = f"run.resume={elsewhere}"
    assert epoch_of(resumed(folder_of(named))) == 7
    save(folder_of(named), model, Progress(epoch=9))
    assert epoch_of(resumed(folder_of(named))) == 9


def test_a_run_of_an_earlier_version_goes_on_without_a_key_that_is_gone(folder_of, caplog):
    folder = folder_of()
    config = OmegaConf.to_container(folder.config)
    config["run"]["length_grouped"] = True
    save_checkpoint(folder.path / run_folder.LAST, nn.Linear(2, 2), progress={"epoch": 3}, config=config, **STATE)
    with caplog.at_level("INFO"):
        found, content = find_resumed(folder)
    assert (found.progress.epoch, found.changes) == (3, [])
    assert "length_grouped" not in content["config"]["run"]
    assert f"{found.path} names keys that are gone; they are left out: run.length_grouped = True" in caplog.text
    with pytest.raises(UserError, match=r"run\.length_grouped"):  # where a person sets it, it is an error
        folder_of("run.length_grouped=True")


def test_a_key_that_came_after_a_run_is_no_change_of_it(folder_of):
    """Code that was updated in the middle of a run: the run had what is the default now."""
    folder = folder_of()
    save(folder, nn.Linear(2, 2), Progress(epoch=1))
    state = torch.load(folder.kept()[0], weights_only=True)
    del state["config"]["run"]["valid_every_steps"]
    torch.save(state, folder.kept()[0])
    assert resumed(folder_of()).changes == []
    assert resumed(folder_of("run.valid_every_steps=3")).changes == ["run.valid_every_steps: 0 -> 3"]


@pytest.mark.parametrize(
    "change",
    [
        "run.batch_size_train=2", "run.accum_grad_iters=3", "run.seed=7", "run.optims.beta2=0.98", "run.amp=True",
        "run.iters_per_epoch=9", "datasets.train_ann_path=other.json", "datasets.prefix=elsewhere",
        "datasets.valid_ann_path=other.json", "model.lora_alpha=7", "model.llama_path=other", "model.prompt_path=x",
        "model.ckpt=other.pth", "model.freeze_speech_QFormer=True", "run.loss_average=batch", "datasets.channel=mean",
    ],
)  # fmt: skip
def test_another_experiment_needs_a_word_to_go_on(folder_of, change):
    save(folder_of(), nn.Linear(2, 2), Progress(epoch=1))
    with pytest.raises(UserError, match=rf"holds another experiment:\n  {change.partition('=')[0]}: .* -> "):
        require_same_experiment(folder_of(change))
    require_same_experiment(folder_of(change, "run.resume=auto"))
    require_same_experiment(folder_of(change, "run.overwrite=True"))


@pytest.mark.parametrize(
    "change",
    [
        "run.optims.max_epoch=50", "run.num_workers=3", "run.log_freq=9", "run.save_every_steps=7", "run.device=cuda",
        "run.keep_checkpoints=5", "run.valid_every_steps=3", "run.encoder_cache=cache", "run.compile=True",
        "run.batch_size_eval=3", "evaluate.name=x", "generate.num_beams=2", "datasets.test_ann_path=x.json",
        "model.gradient_checkpointing=True", "run.timeout_minutes=3", "datasets.max_bad_fraction=0.5",
    ],
)  # fmt: skip
def test_what_does_not_make_another_experiment_goes_on_by_itself(folder_of, change):
    save(folder_of(), nn.Linear(2, 2), Progress(epoch=1))
    require_same_experiment(folder_of(change))


@pytest.mark.parametrize("key", ["train_ann_path", "valid_ann_path"])
@pytest.mark.parametrize("epoch", [1, 9])
def test_an_annotation_file_with_another_content_makes_another_experiment(folder_of, tmp_path, key, epoch):
    file = tmp_path / "own.json"

    def write(word: str) -> None:
        file.write_text(f'{{"annotation": [{{"path": "a.wav", "text": "{word}"}}]}}')

    write("one")
    options = (f"datasets.{key}={file}",)
    folder = folder_of(*options)
    content = build_content(nn.Linear(2, 2), folder.config, Progress(epoch=epoch), **STATE)
    folder.save({**content, "annotations": resume.contents_of_data(folder.config)})
    write("one")  # again: another time, the same content
    require_same_experiment(folder_of(*options))
    write("two")
    with pytest.raises(UserError, match=rf"datasets\.{key}: {file} has another content than it had\n"):
        require_same_experiment(folder_of(*options))
    if epoch == 1:
        require_same_experiment(folder_of(*options, "run.resume=auto"))
        assert f"{key}: {file} has another content" in resumed(folder_of(*options)).changes[0]  # is told
    folder.save(content)  # as earlier versions wrote it
    require_same_experiment(folder_of(*options))
    file.unlink()
    require_same_experiment(folder_of(*options))  # that is told elsewhere


def test_a_run_of_before_the_question_was_asked_goes_on_by_itself(folder_of):
    save(folder_of("run.resume=auto"), nn.Linear(2, 2), Progress(epoch=1))
    require_same_experiment(folder_of())


def test_a_folder_that_cannot_be_made_is_a_problem(folder_of, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below"):
        (problem,) = folder_of(f"run.output_dir={place}").problems()
        assert problem == f"run.output_dir = {place}: {tmp_path}/file is no folder that can be written to"


def test_a_folder_is_taken_while_another_process_trains_there(folder_of):
    folder = folder_of()
    assert not folder.is_taken()
    folder.claim()
    assert folder_of().is_taken()
    folder.release()
    assert not folder_of().is_taken()


def test_the_process_that_holds_a_folder_is_named(folder_of, monkeypatch, caplog):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0)
    folder = folder_of()
    folder.claim()
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with caplog.at_level("INFO"), pytest.raises(UserError, match=rf"training in .*/stage1 \({holder}\); end it, or"):
        folder_of().claim()
    assert f"waiting up to 0 s: another process is training in {folder.path} ({holder})" in caplog.text
    (folder.path / ".holder").write_bytes(b"\xff\0 damaged")
    with pytest.raises(UserError, match=r"another process is training in .*/stage1; end it, or"):
        folder_of().claim()
    folder.release()
    folder_of().claim()


def test_what_a_killed_run_was_writing_is_cleared_when_the_next_one_begins(folder_of):
    folder = folder_of()
    (folder.path / "evaluate").mkdir(parents=True)
    left = [".checkpoint_best.pth.7.tmp", ".checkpoint_last.pth.4194303.tmp", "evaluate/.summary.json.1.tmp"]
    for name in (*left, "notes.tmp"):
        (folder.path / name).write_bytes(b"half")
    folder.claim()
    assert not any((folder.path / name).exists() for name in left)
    assert (folder.path / "notes.tmp").exists()
    folder.release()


DAMAGES = [
    lambda content: content[:-100], lambda content: content[:-9000] + b"\1" * 300 + content[-8700:], lambda _: b"",
    lambda content: bytes(len(content)), lambda _: b"noise" * 999,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_checkpoint_is_noticed_and_comes_back_where_another_is_of_its_moment(folder_of, caplog, damage):
    folder, model = folder_of(), nn.Linear(64, 64)
    best = {"epoch": 0, "step": 5, "accuracy": 0.5}

    def content(step: int, **progress: dict) -> dict:
        return build_content(model, folder.config, Progress(iteration=step, **progress), **STATE, step=step)

    path = folder.path / "checkpoint_best.pth"
    folder.save(content(5))  # before it was validated
    folder.save(content(5, valid=best, best=best))
    folder.save_best(content(5, valid=best, best=best))
    whole = path.read_bytes()
    assert resume.mend_best(folder, best) == resume.mend_best(folder, {}) == ""
    assert not caplog.records
    path.write_bytes(damage(whole))
    assert resume.mend_best(folder, {**best, "step": 4})
    assert resume.mend_best(folder, best) == ""
    (record,) = caplog.records
    assert record.message.endswith(f"it is written anew from {folder.path / 'checkpoint_last.pth'}")
    assert checkpoint.read(path)["progress"]["best"] == best

    path.write_bytes(damage(whole))
    folder.save(content(6, valid={**best, "step": 6}, best=best))
    folder.save(content(7, valid={**best, "step": 6}, best=best))
    assert str(path) in resume.mend_best(folder, best)
    assert path.read_bytes() == damage(whole)
    path.unlink()  # somebody has moved it
    assert resume.mend_best(folder, best) == ""


def test_a_named_checkpoint_does_not_push_another_run_aside(folder_of, tmp_path):
    model, elsewhere = nn.Linear(2, 2), tmp_path / "elsewhere.pth"
    save_checkpoint(elsewhere, model, progress={"epoch": 7}, config={}, **STATE)
    save(folder_of(), model, Progress(epoch=1))
    with pytest.raises(UserError, match=r"already holds another run than run\.resume"):
        resumed(folder_of(f"run.resume={elsewhere}"))
    assert epoch_of(resumed(folder_of(f"run.resume={elsewhere}", "run.overwrite=True"))) == 7
    older = folder_of().path / "checkpoint_last.pth"  # going back in the same folder is meant
    assert epoch_of(resumed(folder_of(f"run.resume={older}", "run.seed=1"))) == 1


def test_a_folder_given_to_go_on_from_is_told_with_the_checkpoint_in_it(folder_of, tmp_path):
    save(folder_of(), nn.Linear(2, 2), Progress(epoch=1))
    (problem,) = folder_of(f"run.resume={folder_of().path}", "run.exp_name=other").problems()
    assert problem.endswith(f"or a checkpoint that exists; this folder has {folder_of().path}/checkpoint_last.pth")
    (problem,) = folder_of(f"run.resume={tmp_path}", "run.exp_name=other").problems()
    assert problem.endswith("or a checkpoint that exists")


def test_the_best_checkpoint_of_a_run_whose_others_are_gone_is_not_deleted(folder_of):
    folder = folder_of()
    save_checkpoint(folder.path / "checkpoint_best.pth", nn.Linear(2, 2))
    (problem,) = folder.problems()
    assert "holds checkpoint_best.pth but no checkpoint to go on from" in problem
    (problem,) = folder_of("run.resume=none").problems()
    assert "already holds a run" in problem
    assert folder_of("run.overwrite=True").problems() == []


def test_with_one_checkpoint_kept_there_is_one_at_every_moment(folder_of, monkeypatch):
    folder, model = folder_of("run.keep_checkpoints=1"), nn.Linear(2, 2)
    save(folder, model, Progress(epoch=1))
    replace = Path.replace

    def killed(_self, target):
        assert Path(target).name == "checkpoint_last.pth"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, model, Progress(epoch=2))
    monkeypatch.setattr(Path, "replace", replace)
    assert epoch_of(resumed(folder)) == 1
    save(folder, model, Progress(epoch=3))
    assert [path.name for path in folder.kept()] == ["checkpoint_last.pth"]


@pytest.mark.parametrize("damage", ["values", "cut", "no archive", "another version"])
def test_a_damaged_or_foreign_checkpoint_gives_way_to_the_one_before(folder_of, damage, caplog):
    folder, model = folder_of(), nn.Linear(64, 64)
    save(folder, model, Progress(epoch=1))
    save(folder, model, Progress(epoch=2))
    last = folder.path / "checkpoint_last.pth"
    content = last.read_bytes()
    if damage == "values":  # the archive is whole, the library would load it
        with zipfile.ZipFile(last) as archive:
            member = max(archive.infolist(), key=lambda info: info.file_size)
        middle = member.header_offset + member.file_size // 2 + 128
        last.write_bytes(content[:middle] + bytes(256) + content[middle + 256 :])
        torch.load(last, weights_only=True)
    elif damage == "cut":
        last.write_bytes(content[:-100])
    elif damage == "no archive":
        last.write_bytes(b"\x80\x02}q\x00.")
    else:
        state = checkpoint.read(last)
        torch.save({**state, "progress": {"epochs": 3}}, last)
    assert epoch_of(resumed(folder)) == 1
    assert "checkpoint_last.pth" in caplog.text


def test_a_new_run_leaves_nothing_of_an_earlier_one(folder_of):
    folder = folder_of()
    save(folder, nn.Linear(2, 2), Progress())
    for name in run_folder._RUN_FILES:
        (folder.path / name).touch()
    (folder.path / "tensorboard").mkdir()
    (folder.path / "my_notes.txt").touch()
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["my_notes.txt"]


def test_a_full_disk_stops_neither_the_log_nor_the_run(tmp_path, caplog):
    log = RunLog(tmp_path)
    log.write("train", 1, loss=1.0)
    lines = log._lines
    log._lines = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    log._tensorboard.file_writer.event_writer._worker.stop()  # as its thread ends when it cannot write
    for step in range(2, 60):  # more than its queue holds
        log.write("train", step, loss=1.0)
    log._lines = lines
    log.write("train", 60, loss=1.0)
    log.close()
    steps = [line["step"] for line in json_lines(tmp_path / "log.jsonl")]
    assert steps == [1, 60]
    assert caplog.text.count("could not be written") == 1
    assert caplog.text.count("TensorBoard's curves stop here") == 1


def test_a_log_line_that_was_cut_does_not_keep_a_run_from_going_on(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "tr\n{"kind": "train", "step": 3}\n{"ki'
    )
    RunLog(tmp_path, step=2).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"kind": "train", "step": 1}\n'
