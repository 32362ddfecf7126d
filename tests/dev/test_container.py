"""The Dockerfile keeps the rules that hadolint checks, as far as they can be seen without Docker; CI runs hadolint."""

import json
import re
import shlex

import pytest
import yaml

from tests.fixtures.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
KNOWN = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD", "ARG", "EXPOSE", "LABEL", "ENTRYPOINT", "SHELL"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of each, continued lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def problems(text: str) -> list[str]:
    """What hadolint would say, by its numbers where it has one."""
    parts, found = instructions(text), []
    names = [name for name, _ in parts]
    found += [f"DL1000 {name} is none of {sorted(KNOWN)}" for name in names if name not in KNOWN]
    if not names or names[0] not in ("FROM", "ARG"):
        found.append("DL3061 begins with something else than FROM")
    for name, rest in parts:
        if name == "FROM" and not re.search(r":(?!latest\b)[\w.-]+|@sha256:", rest):
            found.append(f"DL3006 {rest} has no version")
        if name == "WORKDIR" and not rest.startswith("/"):
            found.append(f"DL3000 {rest} is no absolute folder")
        if name in ("CMD", "ENTRYPOINT") and not _is_list(rest):
            found.append(f"DL3025 {name} {rest} is no JSON list")
        if name == "RUN":
            found += _shell_problems(rest)
    users = [rest for name, rest in parts if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("DL3002 ends as root")
    if names.count("CMD") > 1:
        found.append("DL4003 several CMD")
    return found


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def _shell_problems(command: str) -> list[str]:
    found = []
    for words in map(shlex.split, re.split(r"&&|;", command)):
        if words[:1] == ["sudo"] or words[:1] == ["cd"]:
            found.append(f"DL3003/DL3004 {words[0]}")
        if words[:2] == ["apt-get", "install"]:
            flags = {"-y", "--no-install-recommends"} - set(words)
            found += [f"DL3014/DL3015 {flag} is missing" for flag in flags]
        if words[1:2] == ["install"] and words[0].endswith("pip") and "PIP_NO_CACHE_DIR=1" not in DOCKERFILE:
            found.append("DL3042 pip keeps a cache")
    if "apt-get install" in command and "rm -rf /var/lib/apt/lists/*" not in command:
        found.append("DL3009 apt's lists stay")
    if "|" in command.replace("||", ""):
        found.append("DL4006 a pipe hides what fails")
    return found


def test_the_dockerfile_has_no_fault():
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        (":12.8.1-base-ubuntu24.04", "", "DL3006"),
        (":12.8.1-base-ubuntu24.04", ":latest", "DL3006"),
        ("WORKDIR /salmonn", "WORKDIR salmonn", "DL3000"),
        ('CMD ["python", "-m", "salmonn.doctor"]', "CMD python -m salmonn.doctor", "DL3025"),
        ("--no-install-recommends ", "", "DL3014"),
        ("install -y ", "install ", "DL3014"),
        ("rm -rf /var/lib/apt/lists/*", "true", "DL3009"),
        ("USER 1000:1000\n", "", "DL3002"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("COPY . .", "COPPY . .", "DL1000"),
        ("RUN python3", "RUN curl example.org | sh && python3", "DL4006"),
        ("RUN python3", "RUN sudo python3", "DL3003"),
    ],
)
def test_each_fault_would_be_seen(old, new, number):
    assert old in DOCKERFILE
    assert any(problem.startswith(number) for problem in problems(DOCKERFILE.replace(old, new)))


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


def test_ci_runs_the_linter_itself():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["steps"]
    assert any("hadolint" in step.get("uses", "") for step in steps)
