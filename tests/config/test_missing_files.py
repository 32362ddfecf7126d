"""What is told about files that a config names and that are not there: the way to get these, not others."""

from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.config import missing_files as missing
from salmonn.config.loading import load_config
from salmonn.config.missing_files import annotation_keys, missing_files
from salmonn.model import checkpoint
from salmonn.training.run_folder import RunFolder
from tests.fixtures.paths import ROOT


def told(config: str, *options: str) -> dict[str, str]:
    """{key: what is said about it} of what is missing."""
    loaded = load_config(ROOT / config, options)
    lines = missing_files(loaded, annotation_keys(loaded))
    return {line.partition(":")[0].partition(".")[2]: line for line in lines}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ann").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_ones_own_are_made_and_not_downloaded(here: Path):
    lines = told("configs/own.yaml")
    for key in ("train_ann_path", "valid_ann_path"):
        assert "util/make_annotations.py RECORDINGS --to ann/own.json --split 0.9 0.1 0" in lines[key]
        assert "docs/own-data.md" in lines[key]
        assert "salmonn_stageN" not in lines[key]
    other = told("configs/own.yaml", f"datasets.train_ann_path={here}/clips.json")["train_ann_path"]
    assert f"--to {here}/clips.json --split" in other
    assert "ann/README.md" in other  # a released file under another name is possible


@pytest.mark.parametrize("whole", ["own", "own_train"])
def test_a_validation_file_is_cut_from_what_is_there(here: Path, whole: str):
    (here / f"ann/{whole}.json").write_text("{}")
    line = told("configs/own.yaml")["valid_ann_path"]
    cut = f"util/anns_inspector.py --prefix PREFIX --ann ann/{whole}.json --split 0.9 0.1 0 makes {whole}_valid.json"
    assert cut in line


def test_a_file_to_test_on_is_given_a_share(here: Path):
    options = "run.evaluate=True", "datasets.test_ann_path=ann/own_test.json"
    assert "--to ann/own.json --split 0.8 0.1 0.1" in told("configs/own.yaml", *options)["test_ann_path"]
    (here / "ann/own.json").write_text("{}")
    line = told("configs/own.yaml", *options)["test_ann_path"]
    assert "--ann ann/own.json --split 0.8 0.1 0.1 makes own_test.json" in line


def test_released_files_are_linked_and_their_validation_files_cut(here: Path):
    lines = told("configs/stage1.yaml")
    assert "salmonn_stageN_data.json" in lines["train_ann_path"]
    assert "none was released" in lines["valid_ann_path"]
    (here / "ann/stage1_train.json").write_text("{}")
    line = told("configs/stage1.yaml")["valid_ann_path"]
    assert "--ann ann/stage1_train.json --split 0.99 0.005 0.005" in line


def test_files_of_the_small_worlds_are_made_by_their_commands(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(missing, "_REPOSITORY", here)  # the real one may have them
    for line in told("configs/small/stage1.yaml").values():
        assert "`make small`" in line
    for line in told("configs/mini/stage1.yaml").values():
        assert "`make quickstart`" in line


@pytest.mark.parametrize("key", ["train_ann_path", "valid_ann_path", "prefix", "ckpt", "beats_path", "llama_path"])
def test_a_slip_is_told_with_what_was_meant(here: Path, key: str):
    (here / "mine").mkdir()
    for name in ("own_train.json", "own_valid.json", "salmonn.pth", "beats.pt"):
        (here / "mine" / name).write_text("{}")
    (here / "mine/vicuna").mkdir()
    slips = {
        "train_ann_path": ("own_trian.json", "own_train.json"), "valid_ann_path": ("own_vaild.json", "own_valid.json"),
        "prefix": ("", ""), "ckpt": ("salmon.pth", "salmonn.pth"), "beats_path": ("baets.pt", "beats.pt"),
        "llama_path": ("vicunna", "vicuna"),
    }  # fmt: skip
    section = "datasets" if key in ("train_ann_path", "valid_ann_path", "prefix") else "model"
    typed, meant = slips[key]
    for folder in ("mine", "mein") if typed else ("mein",):
        line = told("configs/own.yaml", f"{section}.{key}={here}/{folder}/{typed}")[key]
        assert f"does not exist; did you mean {here / 'mine' / meant}?" in line


def test_another_file_of_nearly_that_name_does_not_hide_how_it_is_made(here: Path):
    (here / "own_en.json").write_text("{}")
    line = told("configs/own.yaml", f"datasets.train_ann_path={here}/own_de.json")["train_ann_path"]
    assert f"--to {here}/own_de.json --split" in line


def test_a_slip_in_the_name_of_a_config_or_of_a_checkpoint_is_told_too(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "last.pth").touch()
    with pytest.raises(UserError, match=r"did you mean last\.pth\?"):
        checkpoint.read("lats.pth")
    config = load_config(ROOT / "configs/own.yaml", ["run.resume=lsat.pth"])
    assert [problem for problem in RunFolder(config).problems() if problem.endswith("; did you mean last.pth?")]
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"onw\.yaml does not exist; the .*/; did you mean configs/own\.yaml\?"):
        load_config("configs/onw.yaml")
