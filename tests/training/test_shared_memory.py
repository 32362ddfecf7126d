"""A small /dev/shm, which NCCL needs, is told by the doctor, the dry run and the run; the loader needs none."""

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common import shared_memory
from salmonn.config.schema import Config
from salmonn.doctor.findings import NOTE, OK
from salmonn.doctor.hardware import check_shared_memory
from salmonn.training import dry_run, stages

REMEDY = "--shm-size=1g --ulimit memlock=-1"


@pytest.fixture(autouse=True)
def _container(monkeypatch):
    """Docker's 64 MB, and two GPUs."""
    monkeypatch.setattr(shared_memory, "free_bytes", lambda _: 64e6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture
def config():
    return OmegaConf.structured(Config())


def test_the_doctor_names_what_is_there_who_needs_it_and_what_to_do(monkeypatch):
    [finding] = check_shared_memory()
    assert finding.state == NOTE
    assert all(part in finding.says for part in ("0.06 GB free in /dev/shm", "NCCL", "2 GPUs", REMEDY))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [finding.state for finding in check_shared_memory()] == [OK]


def test_the_dry_run_warns(config, monkeypatch, capsys):
    step = {"loss": 1.0, "grad_norm": 1.0, "tried": 9, "bad": 0, "seconds": 1.0}
    for name, value in {"require_all_ready": None, "describe": [], "tiny_step": step}.items():
        monkeypatch.setattr(dry_run, name, lambda *_, value=value: value)
    dry_run.dry_run([config])
    assert "warning: 0.06 GB free in /dev/shm" in capsys.readouterr().out
    config.run.device = "cpu"
    dry_run.dry_run([config])
    assert "/dev/shm" not in capsys.readouterr().out


@pytest.mark.parametrize(("processes", "warns"), [("2", True), ("1", False)])
def test_the_run_warns_where_several_processes_of_a_machine_train(config, monkeypatch, capsys, processes, warns):
    class Done:
        def __init__(self, _config):
            pass

        def run(self) -> bool:
            return True

    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(stages, "require_all_ready", lambda _: None)
    monkeypatch.setattr(stages, "Runner", Done)
    stages.run_stages([config])
    assert (REMEDY in capsys.readouterr().err) is warns
