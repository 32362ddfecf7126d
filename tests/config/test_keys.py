"""`train.py --keys` lists the schema; a key of another name is answered with the one that was meant."""

import pytest
from omegaconf import OmegaConf

from salmonn import __version__
from salmonn.common.errors import UserError
from salmonn.config.listing import key_lines
from salmonn.config.loading import leaves, load_config
from salmonn.config.schema import Config
from salmonn.training.command import main
from tests.fixtures.paths import ROOT


def test_every_key_is_listed_with_its_type_its_default_and_a_line_of_doc():
    rows = [line.split("  ", 1) for line in key_lines()]
    defaults = dict(leaves(OmegaConf.to_container(OmegaConf.structured(Config))))
    assert [key for key, _ in rows] == list(defaults)
    assert [key for key, said in rows if len(said.split("  ")[-1].strip()) < 4] == []
    listed = {key: said.strip() for key, said in rows}
    assert listed["run.optims.init_lr"].startswith("float = 3e-05  ")
    assert listed["model.lora_scaling"].startswith("float | None = null  ")
    assert listed["model.prompt_template"].startswith(r'str = "USER: {}\nASSISTANT:"  ')
    assert "one of none, 8bit, nf4" in listed["model.llm_quantization"]


@pytest.mark.parametrize(
    ("prefix", "first"), [("run.optims", "run.optims.max_epoch"), ("generate.n", "generate.num_beams")]
)
def test_a_prefix_shows_a_part_and_needs_no_config(prefix, first, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--keys", prefix])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{first} ")
    assert all(line.startswith(prefix) for line in lines)


@pytest.mark.parametrize(
    ("prefix", "meant"), [("run.optim.init_lr", "run.optims.init_lr"), ("batch_size", "run.batch_size_train")]
)
def test_a_prefix_that_no_key_has_is_told_with_the_nearest(prefix, meant):
    with pytest.raises(UserError, match=rf"--keys {prefix}: .*{meant}"):
        key_lines(prefix)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("run.optims.lr", "run.optims.init_lr?"),
        ("run.lr", "run.optims.init_lr?"),
        ("run.batch_size", "run.batch_size_train or run.batch_size_eval?"),
        ("batch_size", "run.batch_size_train or run.batch_size_eval?"),
        ("run.epochs", "run.optims.max_epoch?"),
        ("run.optims.max_epochs", "run.optims.max_epoch?"),
        ("run.beams", "generate.num_beams"),
        ("generate.beams", "generate.num_beams?"),
        ("run.warmup", "run.optims.warmup_steps"),
        ("run.optims.weight_deacy", "run.optims.weight_decay?"),
        ("model.lora_r", "model.lora_rank?"),
        ("run.learning_rate", "run.optims.init_lr?"),
        ("model.prefix", "datasets.prefix?"),
    ],
)
def test_a_key_of_another_name_is_answered_with_what_was_meant(written, meant):
    with pytest.raises(UserError) as error:
        load_config(ROOT / "configs/mini/stage1.yaml", [f"{written}=1"])
    assert f"{written} (did you mean {meant}" in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"), [("--dry-rnu", "--dry-run"), ("--dryrun", "--dry-run"), ("--optoins=a", "--options")]
)
def test_an_option_of_another_name_is_answered_with_what_was_meant(typed, meant, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--cfg-path", "x.yaml", typed])
    with pytest.raises((SystemExit, UserError)) as end:
        main()
    assert meant in capsys.readouterr().err + str(end.value)


def test_a_command_tells_its_version(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == f"salmonn {__version__}\n"
