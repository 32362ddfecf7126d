"""What an installation holds, and what the files around the code say of it."""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

import salmonn
from tests.fixtures.paths import ROOT

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


def test_in_another_folder_a_console_script_says_where_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_script("salmonn-chat", monkeypatch) == 2
    assert capsys.readouterr().err == (
        f"error: config file configs/decode.yaml does not exist; {tmp_path} has no configs/: "
        "run this in the root of the repository, where all paths begin\n"
    )


def test_a_wheel_holds_every_package():
    assert PROJECT["tool"]["setuptools"]["packages"]["find"] == {"include": ["salmonn*"]}
    folders = {path.parent for path in (ROOT / "salmonn").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []  # these would not be found


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


def test_an_installation_takes_its_versions_from_requirements_txt():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("-")] == []  # setuptools takes no options of pip
    for requirement in requirements("requirements.txt").values():  # one version, or all of a major one
        assert {specifier.operator for specifier in requirement.specifier} in ({"=="}, {">=", "<"})


def test_one_version_everywhere():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "salmonn.__version__"}
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
