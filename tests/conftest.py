"""Shared by the tests: the golden models of `tests/golden/` and a tiny random miniature world."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
from filelock import FileLock
from omegaconf import OmegaConf

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
CASES = ("base", "no_beats")
pytest_plugins = ["stub_model", "convert_fixtures", "runners"]


# These start many processes, and come first: else a worker may be alone with one of them at the end.
LONG_FILES = {f"test_{name}.py" for name in ("resume", "stages", "distributed", "damaged_media", "train", "table3")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


def golden_config(case: str):
    """The `model` section of a golden case with its paths made absolute."""
    config = OmegaConf.load(GOLDEN / case / "config.yaml").model
    for key in ("llama_path", "whisper_path", "beats_path", "ckpt"):
        if config[key]:
            config[key] = str(GOLDEN / case / config[key])
    return config


@pytest.fixture(scope="session")
def golden():
    """Loader of a golden case: model, arrays, samples, waveforms; each case is loaded once."""
    from salmonn import SALMONN

    loaded = {}

    def load(case: str) -> SimpleNamespace:
        if case not in loaded:
            folder = GOLDEN / case
            loaded[case] = SimpleNamespace(
                model=SALMONN.from_config(golden_config(case)).eval(),
                expected=np.load(folder / "expected.npz"),
                batch_expected=np.load(folder / "batch_expected.npz"),
                wavs={k: torch.from_numpy(v) for k, v in np.load(folder / "inputs.npz").items()},
                meta=json.loads((folder / "samples.json").read_text(encoding="utf-8")),
            )
        return loaded[case]

    return load


def golden_sample(case: SimpleNamespace, i: int) -> dict:
    """Sample i of a golden case as a batch of one."""
    sample = case.meta["samples"][i]
    wav = case.wavs[sample["wav"]][None]
    return {
        "raw_wav": wav,
        "padding_mask": torch.zeros_like(wav, dtype=torch.bool),
        "text": [sample["text"]],
        "task": [sample["task"]],
        "Q": [sample["question"]],
        "id": [sample["wav"]],
        "prompts": [sample["prompt"]],
    }


@pytest.fixture(scope="session")
def mini_world(tmp_path_factory) -> Path:
    """A small miniature world with random (not pretrained) weights: files and formats, no skill.

    Made once, also where several processes of pytest-xdist share the tests.
    """
    shared = tmp_path_factory.getbasetemp()
    out = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "mini" / "world"
    out.parent.mkdir(exist_ok=True)
    with FileLock(out.parent / ".lock"):
        if not (out.parent / "done").exists():
            command = [sys.executable, "util/make_mini_world.py", "--out", str(out), "--seed", "0"]
            command += ["--train-clips", "120", "--test-clips", "24", "--broken", "0.1", "--pretrain-scale", "0"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
            (out.parent / "done").touch()
    return out


def mini_options(world: Path, output: Path) -> list[str]:
    """Overrides that point a mini config at a world somewhere else and make it short."""
    return [
        f"model.llama_path={world}/weights/llama",
        f"model.whisper_path={world}/weights/whisper",
        f"model.beats_path={world}/weights/beats.pt",
        f"datasets.prefix={world}/audio",
        f"run.output_dir={output}",
        "run.num_workers=0",
    ]


def train_options(world: Path, output: Path, stage: str = "stage1") -> list[str]:
    """`mini_options`, and the annotation files of a stage of that world."""
    ann = (f"datasets.{split}_ann_path={world}/ann/{stage}_{split}.json" for split in ("train", "valid"))
    return [*mini_options(world, output), *ann]


def json_lines(path: Path) -> list[dict]:
    """What the lines of a file hold."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_command(
    *arguments: str, cwd: Path = ROOT, timeout: float = 240, ranks: int = 1, **env: str
) -> subprocess.CompletedProcess:
    """Run a command to its end as a user would, in processes of its own (`warm.py`: without its start's 7 s)."""
    return warm.run(arguments, cwd, {**os.environ, "OMP_NUM_THREADS": "1", **env}, timeout, ranks)


def torchrun(processes: int = 2) -> list[str]:
    """The beginning of a command that torchrun starts."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]


@pytest.fixture
def judge(monkeypatch):
    """A small OpenAI-compatible endpoint on this machine, its key in the environment, and short waits between tries."""
    from judge_server import KEY, Judge

    from salmonn.evaluation import judge_endpoint

    monkeypatch.setattr(judge_endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Judge()
    yield server
    server.stop()
