"""What the doctor finds, on this machine and on one where packages, GPU and files are missing or broken."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from salmonn.common.errors import BROKEN
from salmonn.doctor import __main__ as doctor
from salmonn.doctor import hardware
from salmonn.doctor import packages as installed
from salmonn.doctor.__main__ import check_configs, check_disk, check_ffmpeg, examine, shown
from salmonn.doctor.findings import MISSING, NOTE, OK, WRONG, Finding, attempt
from salmonn.doctor.hardware import check_attention, check_gpus, check_quantised
from salmonn.doctor.packages import check_package, check_packages, check_torch_pair
from salmonn.evaluation.metrics import captions
from salmonn.evaluation.metrics.base import UnavailableError
from tests.fixtures.golden import golden_config
from tests.fixtures.paths import ROOT


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Callable[..., Requirement]:
    """Installs a package with this code."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str, code: str = "") -> Requirement:
        (tmp_path / f"{name}.py").write_text(code)
        metadata = tmp_path / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()
        return Requirement(f"{name}==2.0")

    return install


# ---- packages


def test_a_package_at_the_tested_version_is_fine(package):
    assert check_package(package("doctor_fine", "2.0")) == (OK, "doctor_fine", "2.0", "")


def test_of_a_package_that_is_not_pinned_the_tested_range_is_told(package):
    package("doctor_range", "2.1")
    found = check_package(Requirement("doctor_range>=2,<3"))
    assert (found.state, found.says) == (OK, "2.1 (<3,>=2)")


def test_another_version_is_told_with_the_tested_one(package):
    finding = check_package(package("doctor_old", "1.9"))
    assert (finding.state, finding.says) == (NOTE, "1.9; tested: doctor_old==2.0")


@pytest.mark.parametrize("error", [*BROKEN, SyntaxError, AssertionError])
def test_a_package_that_cannot_be_loaded_is_told_however_it_fails(package, error):
    name = error.__name__
    finding = check_package(package(f"doctor_{name.lower()}", "2.0", f"raise {name}('libcudart.so.13: cannot open')"))
    assert (finding.state, finding.says) == (WRONG, f"2.0 cannot be loaded: {name}: libcudart.so.13: cannot open")


def test_an_absent_package_is_wrong_or_costs_what_it_is_for(monkeypatch):
    needed = check_package(Requirement("no-such-package==1.0"))
    assert (needed.state, needed.says) == (WRONG, "not installed; get it: pip install no-such-package==1.0")
    monkeypatch.setitem(installed.COSTS, "no-such-package", "no songs")
    assert check_package(Requirement("no-such-package==1.0"))[::3] == (NOTE, "no songs")


@pytest.mark.parametrize("is_compiling", [True, False])
def test_what_a_package_has_compiled_as_it_is_loaded_is_compiled_when_it_is_called(package, monkeypatch, is_compiling):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    name = f"doctor_compiling_{is_compiling}".lower()
    monkeypatch.setattr(installed, "COMPILING", (name,) if is_compiling else ())
    finding = check_package(package(name, "2.0", "import torch\n@torch.compile\ndef double(x): return 2 * x"))
    assert (finding.state, len(compiled)) == (OK, 0 if is_compiling else 1)


def test_every_pinned_package_is_checked_against_its_pin(monkeypatch):
    monkeypatch.setattr(installed, "check_package", lambda wanted: Finding(NOTE, str(wanted), ""))
    found = [finding.name for finding in check_packages()]
    declared = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert len(found) == len([line for line in declared if line])
    assert found[0] == next(line for line in declared if line.startswith("torch=="))


def test_packages_as_they_should_be_are_one_line_and_each_other_one_has_its_own(monkeypatch):
    monkeypatch.setattr(installed, "declared", lambda: ("", ["a==1", "b==2", "c==3"]))
    states = {"a": OK, "b": WRONG, "c": OK}
    monkeypatch.setattr(installed, "check_package", lambda one: Finding(states[one.name], one.name, "7"))
    assert list(check_packages()) == [(WRONG, "b", "7", ""), (OK, "packages", "as tested: a 7, c 7", "")]


def test_packages_with_a_cost_are_declared():
    assert installed.COSTS.keys() <= {Requirement(line).name for line in installed.declared()[1]}


def test_without_the_repository_the_installed_package_says_what_it_needs(monkeypatch, tmp_path):
    wants = ["torch==0.1", 'gradio==9; extra == "web"']
    fake = SimpleNamespace(metadata={"Requires-Python": ">=3.0"}, requires=wants)
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    monkeypatch.setattr(installed, "distribution", lambda _: fake)
    [torch_finding] = check_packages()
    assert (torch_finding.state, torch_finding.says) == (
        NOTE,
        f"{importlib.metadata.version('torch')}; tested: torch==0.1",
    )
    monkeypatch.setattr(installed, "distribution", lambda _: SimpleNamespace(metadata=fake.metadata, requires=None))
    [nothing] = attempt("packages", check_packages, "")
    assert (nothing.state, "declares no packages" in nothing.says) == (WRONG, True)


@pytest.mark.parametrize(("torchaudio", "state"), [("2.11.0+cpu", OK), ("2.11.1", OK), ("2.10.0", NOTE)])
def test_torch_and_torchaudio_match_by_major_and_minor_number(monkeypatch, torchaudio, state):
    monkeypatch.setattr(installed, "version", {"torch": "2.11.0", "torchaudio": torchaudio}.__getitem__)
    [finding] = check_torch_pair()
    assert finding.state == state
    assert f"torch 2.11.0 and torchaudio {torchaudio} " in finding.says


# ---- hardware


def fake_gpu(monkeypatch, bf16: bool) -> None:
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda _: SimpleNamespace(name="NVIDIA V1", major=7, minor=0),
        "mem_get_info": lambda _: (30e9, 32e9),
        "device": lambda _: torch.no_grad(),
        "is_bf16_supported": lambda including_emulation: bf16 or including_emulation,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(hardware, "nvidia_driver", lambda: "580.1")


def test_a_gpu_is_described(monkeypatch):
    fake_gpu(monkeypatch, bf16=False)
    [gpu] = check_gpus()
    assert (gpu.state, gpu.name) == (NOTE, "GPU 0")
    described = "NVIDIA V1, 32.0 GB (30.0 free), compute capability 7.0, bf16 no, driver 580.1, torch is built for CUDA"
    assert gpu.says.startswith(described) or torch.version.cuda is None
    fake_gpu(monkeypatch, bf16=True)
    assert [gpu.state for gpu in check_gpus()] == [OK]


@pytest.mark.parametrize(
    ("driver", "cuda", "says"),
    [
        ("580.1", None, "driver 580.1 is there, torch is a build without CUDA"),
        ("", "13.0", "no NVIDIA driver"),
    ],
)
def test_without_a_gpu_it_is_told_what_is_missing(monkeypatch, driver, cuda, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "nvidia_driver", lambda: driver)
    [finding] = check_gpus()
    assert (finding.state, says in finding.says) == (NOTE, True)


def test_the_driver_is_asked_of_nvidia_smi_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.nvidia_driver() == ""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.1\necho 580.1\n")
    program.chmod(0o755)
    assert hardware.nvidia_driver() == "580.1"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert hardware.nvidia_driver() == ""


def test_attention_that_computes_something_else_is_wrong(monkeypatch):
    [usual] = check_attention()
    assert usual.state == OK
    assert "math" in usual.says
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, *_, **__: q)
    [finding] = check_attention()
    assert finding.state == WRONG


def test_quantised_layers_are_tried_out(monkeypatch):
    assert [finding.state for finding in check_quantised()] == [OK, OK]
    from bitsandbytes import nn

    def broken(*_, **__) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(nn.Linear8bitLt, "forward", broken)
    monkeypatch.setattr(nn.Linear4bit, "forward", lambda _, x: 0 * x)
    eight, four = check_quantised(WRONG)
    assert (eight.state, eight.says.endswith("no kernel image\nis available")) == (WRONG, True)
    assert (four.state, "relative error of a layer 1.000" in four.says) == (WRONG, True)


# ---- programs, disk, a config


def test_java_programs_and_ffmpeg_that_are_missing_cost_scores_and_formats(monkeypatch):
    def java_for(file: str) -> str:
        if file == captions.METEOR_FILE:
            raise UnavailableError("no Java; get one")
        return "/usr/bin/java"

    monkeypatch.setattr(captions, "java_for", java_for)
    meteor, spice, ptb, _mecab = doctor.check_scores()
    assert meteor == (NOTE, "METEOR", "no Java; get one", "METEOR is not scored")
    assert {spice, ptb} == {(OK, name, "runs with /usr/bin/java", "") for name in ("SPICE", "PTB tokens")}
    monkeypatch.setenv("PATH", "")
    assert [finding.state for finding in check_ffmpeg()] == [NOTE]


def test_a_folder_that_cannot_be_written_to_is_wrong(monkeypatch, tmp_path):
    assert [finding.state for finding in check_disk(tmp_path / "a/b")] == [OK]
    (tmp_path / "file").touch()
    [finding] = check_disk(tmp_path / "file/run")
    assert (finding.state, finding.says.endswith(f"{tmp_path}/file is no folder that can be written to")) == (
        WRONG,
        True,
    )
    monkeypatch.setattr("os.access", lambda path, asked: path != tmp_path or not asked & os.X_OK)
    [finding] = check_disk(tmp_path / "a/b")
    assert (finding.state, finding.says.endswith(f"{tmp_path} is no folder that can be written to")) == (WRONG, True)


def write_config(folder: Path, **model: str | bool) -> str:
    """A config that names the golden model, with these changes."""
    values = {"model": {**OmegaConf.to_container(golden_config("base")), **model}, "run": {"device": "cpu"}}
    (folder / "config.yaml").write_text(json.dumps(values))
    return str(folder / "config.yaml")


def only(findings, name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without loading every package."""
    monkeypatch.setattr(doctor, "check_packages", list)
    monkeypatch.setattr(doctor, "check_scores", list)


@pytest.mark.usefixtures("quick")
def test_a_config_is_checked_by_what_every_run_checks(tmp_path):
    path = write_config(tmp_path)
    assert only(examine(path), "config") == [(OK, "config", f"{path}: all that it names is there and fits", "")]
    found = only(examine(path, ["model.whisper_path=/nowhere/whisper", "model.beats_path=/nowhere/beats.pt"]), "config")
    assert [finding.state for finding in found] == [MISSING, MISSING]
    assert found[0].says.startswith("model.whisper_path: /nowhere/whisper does not exist\n    get it: ")
    [device] = only(examine(path, ["run.device=cuda"]), "config")
    assert device.state == WRONG
    [unknown] = only(examine(path, ["model.wisper_path=a"]), "config")
    assert (unknown.state, "model.whisper_path" in unknown.says) == (WRONG, True)


def test_a_training_config_is_checked_with_its_data():
    from salmonn.config.loading import load_stages

    found = [finding.says for finding in check_configs("", load_stages(ROOT / "configs/all_stages.yaml"))]
    assert any(says.startswith("datasets.train_ann_path: ann/stage3_train.json does not exist") for says in found)
    assert len(set(found)) == len(found)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("quantisation", "state"), [("none", NOTE), ("int8", NOTE), ("nf4", WRONG)])
def test_broken_bitsandbytes_is_wrong_where_the_config_wants_it(monkeypatch, tmp_path, quantisation, state):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    [finding] = only(examine(write_config(tmp_path, llm_quantization=quantisation)), "quantised")
    assert finding.state == state


# ---- the block


def test_without_torch_every_check_is_still_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "torch.nn.attention", None)
    findings = list(examine())
    wrong = {finding.name for finding in findings if finding.state == WRONG}
    assert {"torch", "GPU", "attention"} <= wrong
    assert {"machine", "disk", "torch pair", "quantised"} <= {finding.name for finding in findings} - wrong


def test_the_name_of_the_user_is_left_out(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/alice"))
    text = shown(Finding(NOTE, "x", "/home/alice/.cache and /home/alice2/b", "c\nd"))
    assert text.splitlines()[0] == "note    x           ~/.cache and /home/alice2/b"
    assert text.splitlines()[1:] == [" " * 20 + "costs: c", " " * 20 + "d"]


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_on_this_machine(monkeypatch, capsys, broken):
    def no_package(name: str) -> str:
        raise PackageNotFoundError(name)

    if broken:
        monkeypatch.setattr(installed, "version", no_package)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    first, *lines, summary, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("```", "```")
    assert str(Path.home()) not in "\n".join(lines)
    assert ended.value.code == (2 if broken else 0)
    assert summary.endswith("wrong" if broken else "all that is needed works")
    assert (f" numpy {importlib.metadata.version('numpy')}" in " ".join(map(str.strip, lines))) is not broken


@pytest.mark.usefixtures("quick")
def test_what_a_config_lacks_is_told_first_and_counted_last(monkeypatch, capsys, tmp_path):
    path = write_config(tmp_path, whisper_path="/nowhere/whisper")
    monkeypatch.setattr(sys, "argv", ["doctor", "--cfg-path", path])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "missing config      model.whisper_path: /nowhere/whisper does not exist"
    assert (lines[-2], ended.value.code) == ("1 missing", 2)


def test_nothing_outside_the_standard_library_is_needed_to_begin():
    code = "import sys; before = set(sys.modules); import salmonn.doctor; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    foreign = {name.partition(".")[0] for name in loaded.split()} - sys.stdlib_module_names
    assert foreign == {"salmonn"}
