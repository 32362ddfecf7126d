"""docs/own-data.md: every command of the page, in its order, in a folder like the repository's root."""

import json
import shlex
from pathlib import Path

import pytest

from tests.dev.test_docs import blocks
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

PAGE = "docs/own-data.md"
SHORT = ["run.optims.max_epoch=1", "run.num_workers=0"]


@pytest.fixture
def repository(tmp_path: Path, mini_world: Path) -> Path:
    """The code, and what `make quickstart` leaves, with a model that has learned nothing."""
    from salmonn import SALMONN
    from salmonn.config import load_config

    for name in ("configs", "salmonn", "util", "train.py", "evaluate.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "output/mini/stage3").mkdir(parents=True)
    (tmp_path / "output/mini/world").symlink_to(mini_world)
    config = load_config(ROOT / "configs/mini/base.yaml", mini_options(mini_world, tmp_path))
    save_checkpoint(
        tmp_path / "output/mini/stage3/checkpoint_best.pth", SALMONN.from_config(config.model, device="cpu")
    )
    return tmp_path


def test_every_command_of_the_page_runs(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)
    (example,) = blocks(PAGE, "python")
    exec(example, {})
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in blocks(PAGE, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert len(commands) == 7
    heard = next((repository / "output/my/recordings").iterdir())  # the world of the tests has other names
    commands = [[str(heard) if word.endswith(".ogg") else word for word in words] for words in commands]
    for words in commands:
        options = [] if "--options" in words else ["--options"]
        full_size = "configs/own.yaml" in words
        more = [*options, *SHORT] if words[0] == "train.py" and not full_size else []
        done = run_command(*words, *more, cwd=repository)
        if full_size:  # its weights are not here: that is all that is missing, and it is told before anything is read
            assert done.returncode == 2
            assert "weights/salmonn_v1.pth" in done.stderr
            assert "not known" not in done.stderr
        else:
            assert done.returncode == 0, (words, done.stderr)
        if words[0] == "train.py" and not full_size:  # what is broken among the reader's own is known before training
            assert "entries are usable (datasets.integrity: header)" in done.stderr
    assert len(json.loads((repository / "output/my/own_valid.json").read_text())["annotation"]) >= 1
    assert (repository / "output/my/verdicts.jsonl").exists()
    assert (repository / "output/my/own/checkpoint_best.pth").exists()
    assert list((repository / "output/my/results").glob("*/report.json"))
