"""lmms-eval as a door: what it gives and asks for is understood, and its word error rate is evaluate.py's."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from salmonn.audio.decode import load_clip
from salmonn.common.errors import UserError
from salmonn.config.loading import generate_config
from salmonn.evaluation.normalisers import normaliser
from salmonn.serve.harness import cut_off, read_media, search_settings
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from tests.fixtures.served import message
from tests.fixtures.waiting import HANG

pytest_plugins = ["tests.fixtures.web", "tests.fixtures.served"]

PROMPT = "Write down what is said in the recording."  # of the task asr in configs/prompts/test_prompt.json

needs_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: docs/serving.md says how, it asks for older pins",
)


@pytest.mark.parametrize(
    ("wanted", "search", "until"),
    [
        ({}, {"num_beams": 4, "do_sample": False}, []),
        ({"temperature": 0, "top_p": None}, {"num_beams": 4, "do_sample": False}, []),
        ({"temperature": 0.2}, {"temperature": 0.2, "do_sample": True}, []),
        (
            {"temperature": 0, "do_sample": False, "num_beams": 1, "top_p": 1.0},
            {"num_beams": 1, "do_sample": False},
            [],
        ),
        ({"max_new_tokens": 8, "until": "\n"}, {"max_new_tokens": 8}, ["\n"]),
        ({"until": ["\n\n", "."]}, {"max_new_tokens": 200}, ["\n\n", "."]),
    ],
)
def test_what_a_task_wants_of_the_search_is_heeded(wanted, search, until):
    before = dict(wanted)
    settings, ends = search_settings(wanted, generate_config(None))
    assert {key: settings[key] for key in search} == search
    assert ends == until
    assert wanted == before  # the harness uses it again


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"num_beam": 2}, "num_beam: unknown here; there are max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
    ],
)
def test_what_cannot_be_heeded_is_refused(wanted, told):
    with pytest.raises(UserError, match=told):
        search_settings(wanted, generate_config(None))


def test_an_answer_ends_at_the_first_of_the_texts():
    assert cut_off("one. two\nthree", ["\n", ".", ""]) == "one"
    assert cut_off("one", ["\n"]) == "one"
    assert cut_off("one", []) == "one"


def test_a_clip_is_heard_in_whatever_form_a_task_gives_it(engine, clip, tmp_path):
    samples, rate = soundfile.read(clip, dtype="float32")
    expected = load_clip(clip)
    decoded = SimpleNamespace(data=torch.from_numpy(samples)[None], sample_rate=rate)
    for media in (
        clip,
        Path(clip),
        {"path": clip, "bytes": None},
        {"path": None, "bytes": Path(clip).read_bytes()},
        {"array": samples, "sampling_rate": rate},
        {"array": np.stack([samples, 0 * samples]).astype(np.float64), "sampling_rate": rate},  # channels first
        SimpleNamespace(get_all_samples=lambda: decoded),
    ):
        np.testing.assert_array_equal(read_media(engine, media, "set, 3"), expected)
    soundfile.write(tmp_path / "high.wav", np.repeat(samples, 3), 3 * rate)
    high = {"array": np.repeat(samples, 3), "sampling_rate": 3 * rate}
    np.testing.assert_allclose(read_media(engine, high, "x"), load_clip(tmp_path / "high.wav"), atol=1e-4)


@pytest.mark.parametrize(
    ("media", "told"),
    [
        ({"array": np.zeros(0), "sampling_rate": 16_000}, "set, 3: no samples"),
        ({"array": np.full(9, np.nan), "sampling_rate": 16_000}, "set, 3: not finite"),
        ({"bytes": b"RIFF"}, "set, 3: undecodable"),
        ("nowhere.wav", "set, 3: nowhere.wav: file does not exist"),
        (SimpleNamespace(), "set, 3: SimpleNamespace is no clip"),
        ({"path": None, "bytes": None}, "set, 3: NoneType is no clip"),
    ],
)
def test_what_is_no_clip_is_told_by_its_place(engine, media, told):
    with pytest.raises(UserError, match=re.escape(told)):
        read_media(engine, media, "set, 3")


def test_the_entry_point_names_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["salmonn"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert f"def {function}()" in source
    model, name = re.search(r'"(salmonn[\w.]+)\.(\w+)"', source).groups()
    assert f"class {name}(lmms)" in (ROOT / f"{model.replace('.', '/')}.py").read_text(encoding="utf-8")


# ---- the real one


@pytest.fixture
def options(mini_world, tmp_path) -> list[str]:
    few = ["model.ckpt=", "generate.max_new_tokens=12", "generate.num_beams=1", "run.batch_size_eval=4"]
    return [*mini_options(mini_world, tmp_path), *few]


@pytest.fixture
def ours(mini_world, tmp_path, options) -> tuple[float, list[str]]:
    """Word error rate in per cent and answers of evaluate.py."""
    own = [f"datasets.valid_ann_path_asr={mini_world}/ann/test_asr.json", f"evaluate.results_dir={tmp_path}/results"]
    mode = ["--mode", "valid_asr", "--cfg-path", "configs/mini/evaluate.yaml"]
    done = run_command("evaluate.py", *mode, "--options", *options, *own, "evaluate.shuffled_control=False")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/valid_asr"
    wer = json.loads((folder / "report.json").read_text(encoding="utf-8"))["scores"]["wer"]
    return 100 * wer, [line["text"] for line in json_lines(folder / "predictions.jsonl")]


def lmms_eval(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run it as with an installed project: the entry point is that of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tmp_path / "site/salmonn-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: salmonn\nVersion: 0\n")
    points = project["entry-points"]["lmms_eval.models"]
    (metadata / "entry_points.txt").write_text(
        "\n".join(["[lmms_eval.models]", *(f"{name} = {value}" for name, value in points.items())])
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}/site", "HF_HOME": f"{tmp_path}/hub", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmms_eval", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG, check=False)


def test_openais_client_counts_the_same_errors(serve, mini_world, ours):
    openai = pytest.importorskip("openai", reason="not installed: pip install -r requirements-dev.txt")
    client = openai.OpenAI(base_url=f"{serve(cut_long=True).url}/v1", api_key="none", timeout=HANG)
    entries = json.loads((mini_world / "ann/test_asr.json").read_text(encoding="utf-8"))["annotation"]
    asked = [message(f"{mini_world}/audio{entry['path']}", PROMPT) for entry in entries]
    said = [client.chat.completions.create(model="salmonn", messages=one) for one in asked]
    answers = [answer.choices[0].message.content for answer in said]
    assert answers == ours[1]
    english = normaliser("english", f"{mini_world}/weights/whisper").function
    wer = jiwer.wer(english([entry["text"] for entry in entries]), english(answers))
    assert 100 * wer == pytest.approx(ours[0])


@needs_lmms_eval
def test_lmms_eval_finds_the_model_and_counts_the_same_errors(mini_world, tmp_path, options, ours):
    tasks = tmp_path / "tasks"
    shutil.copytree(ROOT / "util/lmms_eval_tasks", tasks)
    for file in tasks.glob("*.*"):
        file.write_text(
            file.read_text().replace("output/mini/world", str(mini_world)).replace("tokens: 60", "tokens: 12")
        )
    settings = f"cfg_path=configs/mini/evaluate.yaml,options={' '.join(options)}"
    chosen = ["--model", "salmonn", "--model_args", settings, "--include_path", str(tasks), "--tasks", "mini_asr"]
    done = lmms_eval(tmp_path, *chosen, "--batch_size", "4", "--output_path", f"{tmp_path}/out", "--log_samples")
    (report,) = (tmp_path / "out").rglob("*_results.json")
    (samples,) = (tmp_path / "out").rglob("*_samples_mini_asr.jsonl")
    said = [line["filtered_resps"] for line in sorted(json_lines(samples), key=lambda line: line["doc_id"])]
    wer, answers = ours
    assert [text if isinstance(text, str) else text[0] for text in said] == answers, done.stdout + done.stderr
    results = json.loads(report.read_text(encoding="utf-8"))["results"]["mini_asr"]
    assert results["wer,none"] == pytest.approx(wer, abs=0.005)


@needs_lmms_eval
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model_args", "path=x"], "--model_args: path"),
        (["--batch_size", "auto"], "--batch_size auto: give a number"),
        (["--model_args", "cfg_path=nowhere.yaml"], "config file nowhere.yaml does not exist"),
    ],
)
def test_what_lmms_eval_is_told_wrongly_is_said(tmp_path, arguments, told):
    chosen = ["--model", "salmonn", "--include_path", str(ROOT / "util/lmms_eval_tasks"), "--tasks", "mini_asr"]
    done = lmms_eval(tmp_path, *chosen, *arguments)
    assert told in done.stdout + done.stderr
