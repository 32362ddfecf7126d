"""README, "Your data": the whole way from one corpus on disk to a training run on what is ready."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import soundfile

from salmonn.audio.decode import SAMPLE_RATE, load_audio
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

INSPECTOR = str(ROOT / "util/anns_inspector.py")
PROMPTS = [
    f"model.prompt_path={ROOT}/configs/prompts/train_prompt.json",
    f"model.test_prompt_path={ROOT}/configs/prompts/test_prompt.json",
]


def librispeech_only(folder: Path, mini_world: Path) -> None:
    """data/ with a little of LibriSpeech, one file of it broken, and ann/stage1_train.json over two corpora."""
    clips = json.loads((mini_world / "ann/stage1_train.json").read_text())["annotation"]
    broken = set(json.loads((mini_world / "world.json").read_text())["broken"])
    spoken = [e for e in clips if e["task"] == "asr" and e["path"] not in broken][:12]
    entries = []
    for i, entry in enumerate(spoken):
        path = f"/LibriSpeech/train-clean-100/103/{i // 4}/103-{i // 4}-{i:04}.flac"
        target = Path(f"{folder}/data{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, load_audio(f"{mini_world}/audio{entry['path']}"), SAMPLE_RATE)
        entries.append({"path": path, "text": entry["text"], "task": "asr"})
    target.write_bytes(target.read_bytes()[:2000])
    entries += [{"path": f"/AudioCaps/train/{i}.wav", "text": "rain", "task": "audiocaption"} for i in range(5)]
    (folder / "ann").mkdir()
    (folder / "ann/stage1_train.json").write_text(json.dumps({"annotation": entries}))


def train(mini_world: Path, folder: Path, *options: str) -> CompletedProcess:
    """Two steps of miniature stage 1 on the data of a folder."""
    return run_command(
        str(ROOT / "train.py"), "--cfg-path", str(ROOT / "configs/mini/stage1.yaml"), "--options",
        *mini_options(mini_world, folder / "output"), *PROMPTS, *options,
        "run.optims.max_epoch=1", "run.iters_per_epoch=2", "run.batch_size_train=2", cwd=folder,
    )  # fmt: skip


def test_a_student_with_one_corpus_trains_on_what_is_ready(mini_world: Path, tmp_path: Path):
    librispeech_only(tmp_path, mini_world)
    inspected = run_command(INSPECTOR, "--prefix", "data", cwd=tmp_path)
    assert "[asr] LibriSpeech | ready: 12, not_ready: 0, total: 12 | ready_rate: 100.00%" in inspected.stdout
    assert "[audiocaption] AudioCaps | ready: 0, not_ready: 5, total: 5 | ready_rate: 0.00%" in inspected.stdout

    checked = run_command(INSPECTOR, "--prefix", "data", "--check-integrity", cwd=tmp_path)
    assert re.search(r"LibriSpeech +undecodable +1", checked.stdout)
    shares = ("--split", "0.8", "0.2", "0")
    split = run_command(INSPECTOR, "--prefix", "data", "--ann", "ann/stage1_train.json", *shares, cwd=tmp_path)
    assert split.returncode == 0, split.stderr
    counts = [
        len(json.loads(file.read_text())["annotation"]) for file in sorted(tmp_path.glob("ann/stage1_train_*.json"))
    ]
    assert sum(counts) == 11

    trained = train(
        mini_world, tmp_path, "datasets.prefix=data", "datasets.integrity=verified",
        "datasets.train_ann_path=ann/stage1_train_train.json", "datasets.valid_ann_path=ann/stage1_train_valid.json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert f"{counts[0]} of {counts[0]} entries are usable (datasets.integrity: verified)" in trained.stderr
    assert json.loads((tmp_path / "output/stage1/summary.json").read_text())["bad_files"] == 0


def test_without_a_split_the_missing_and_broken_are_left_out_by_themselves(mini_world: Path, tmp_path: Path):
    librispeech_only(tmp_path, mini_world)
    trained = train(
        mini_world, tmp_path, "datasets.prefix=ann", "datasets.path_map=[{from: /LibriSpeech, to: data/LibriSpeech}]",
        "datasets.integrity=decode", "datasets.train_ann_path=ann/stage1_train.json",
        "datasets.valid_ann_path=ann/stage1_train.json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    for line in ("11 of 17 entries", "left out [AudioCaps] file does not exist: 5", "[LibriSpeech] undecodable: 1"):
        assert line in trained.stderr
