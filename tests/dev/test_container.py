"""The Dockerfile has no fault that hadolint knows, and holds what its comments and .dockerignore say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of each, continued lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def test_the_dockerfile_has_no_fault():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("no hadolint here: pip install -r requirements-dev.txt")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_lint_runs_the_linter_itself():
    assert "\t$(BIN)/hadolint Dockerfile\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_its_comment_says_how_several_gpus_share_memory_and_names_what_there_is():
    head = DOCKERFILE.partition("FROM ")[0]
    assert "--shm-size=" in head
    assert "--gpus all" in head
    for name in re.findall(r"(?:train\.py|configs/\S+\.yaml|requirements\.txt)", head):
        assert (ROOT / name).is_file(), name
    inside = dict(re.findall(r'"\$PWD/(\w+):(/salmonn/\w+)"', head))
    assert inside == {name: f"/salmonn/{name}" for name in ("weights", "data", "ann", "output")}


def test_what_is_copied_is_there_and_what_is_big_or_secret_is_left_out():
    for name, rest in instructions(DOCKERFILE):
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv", "weights", "data", "output", "**/*.pth", "**/*.pt"} <= set(ignored)
    assert not {"requirements.txt", "configs", "salmonn", "util", "ann"} & set(ignored)
