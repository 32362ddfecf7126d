"""What an installation holds, and what the files around the code say of it."""

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import salmonn
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PROJECT["project"]["scripts"]
OURS = ("salmonn", "util", "experiments", "dev")


def requirements(name: str) -> dict[str, Requirement]:
    """The lines of a requirements file that name a package."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {requirement.name: requirement for requirement in parsed}


def run_script(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Call a console script as an installation does; returns its exit code."""
    module, _, attribute = SCRIPTS[name].partition(":")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), attribute)()
    return ended.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_console_script_shows_its_help(name, monkeypatch, capsys):
    assert run_script(name, monkeypatch, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "salmonn-doctor"])  # tells it in its block
def test_a_console_script_tells_bad_input_in_one_line(name, monkeypatch, capsys):
    mode = ["--mode", "valid_asr"] if name == "salmonn-evaluate" else []
    assert run_script(name, monkeypatch, *mode, "--cfg-path", "nowhere.yaml") == 2
    assert capsys.readouterr().err == "error: config file nowhere.yaml does not exist; the ready ones are in configs/\n"


def test_in_another_folder_a_console_script_takes_the_configs_that_were_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = ["--mode", "table3", "--tasks", "nope"]
    assert run_script("salmonn-evaluate", monkeypatch, *named) == 2
    assert "nope" in (told := capsys.readouterr().err)
    assert "asr_clean" in told  # of configs/eval_tasks.yaml
    assert run_script("salmonn-train", monkeypatch, "--cfg-path", "configs/stage9.yaml") == 2
    ready = ROOT / "salmonn/configs"
    assert capsys.readouterr().err == (
        f"error: config file configs/stage9.yaml does not exist; the ready ones are in {ready}/\n"
    )
    (tmp_path / "configs").mkdir()  # of one's own: nothing else is looked for then
    assert run_script("salmonn-train", monkeypatch, "--cfg-path", "configs/stage1.yaml") == 2
    assert "configs/stage1.yaml does not exist; the ready ones are in configs/" in capsys.readouterr().err


def test_a_wheel_holds_every_package():
    assert PROJECT["tool"]["setuptools"]["packages"]["find"] == {"include": ["salmonn*"]}
    folders = {path.parent for path in (ROOT / "salmonn").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []  # these would not be found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this tree is installed, alone; built of a copy, from nothing but the disk."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml needs: make install")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("salmonn", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*pip, "--target", site, source], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return site


def run_installed(site: Path, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a console script of an installed wheel in a folder of its own."""
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, site / "bin" / name, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG)


def test_an_installed_wheel_works_in_another_folder(site: Path, tmp_path: Path, mini_world: Path):
    assert {path.relative_to(site) for path in (site / "salmonn/configs").rglob("*.*")} >= {
        Path("salmonn", path) for path in map(Path, ("configs/base.yaml", "configs/prompts/train_prompt.json"))
    }
    asked = run_installed(site, "salmonn-evaluate", "--mode", "table3", "--tasks", "nope", cwd=tmp_path)
    assert (asked.returncode, "asr_clean" in asked.stderr) == (2, True), asked.stderr
    listed = run_installed(site, "salmonn-train", "--keys", "run.optims", cwd=tmp_path)
    assert "run.optims.init_lr" in listed.stdout
    (tmp_path / "output/mini").mkdir(parents=True)
    (tmp_path / "output/mini/world").symlink_to(mini_world)
    checked = run_installed(site, "salmonn-train", "--cfg-path", "configs/mini/stage1.yaml", "--dry-run", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_every_name_that_is_imported_from_the_project_is_there():
    """Also inside functions that no other test calls."""
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                missing = [name for name in missing if importlib.util.find_spec(f"{node.module}.{name}") is None]
                assert not missing, (path, node.lineno, missing)
                assert "SALMONN" not in [a.name for a in node.names] or node.module != "salmonn", path  # for users


def test_the_ranges_of_an_installation_hold_the_versions_that_were_tested():
    pinned = requirements("requirements.txt")
    ranges = {one.name: one for one in map(Requirement, PROJECT["project"]["dependencies"])}
    assert list(ranges) == list(pinned)
    for name, requirement in pinned.items():
        assert str(ranges[name].marker) == str(requirement.marker)
        if {specifier.operator for specifier in requirement.specifier} == {"=="}:  # else both say a range
            (pin,) = requirement.specifier
            assert ranges[name].specifier.contains(pin.version), name
        else:
            assert ranges[name].specifier == requirement.specifier
        assert all(one.operator != ">=" for one in ranges[name].specifier) or len(ranges[name].specifier) == 2, name


def test_one_version_everywhere():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "salmonn.common.version.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == salmonn.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == salmonn.__version__


def test_one_licence_everywhere():
    licence = PROJECT["project"]["license"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert licence == citation["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in PROJECT["project"]["license-files"])


def test_commit_hooks_and_lint_run_the_same_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = [repo for repo in hooks["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    assert f"=={ruff['rev'].removeprefix('v')}" == str(requirements("requirements-dev.txt")["ruff"].specifier)


def test_ci_runs_what_a_person_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    versions = job["strategy"]["matrix"]["python"]
    allowed = PROJECT["project"]["requires-python"]
    assert (versions, allowed) == (["3.11", "3.12"], ">=3.11,<3.13")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", script, re.MULTILINE) == ["lint", "test"]
