"""The miniature world: the same from the same seed, nothing of the test sets in training, real formats; and the
commands that run on it."""

import csv
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from salmonn.audio.decode import AudioError, load_clip
from salmonn.common.errors import UserError
from salmonn.config.missing_files import has_mini_model
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options, train_options
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, wait_until
from util.benchmarks.measure import family
from util.mini_world import build, corpus, encoders, llama
from util.mini_world.render import Clip
from util.mini_world.scenes import Speech

# of the world of all tests
SETTINGS = ["--seed", "0", "--train-clips", "120", "--test-clips", "24", "--broken", "0.1", "--pretrain-scale", "0"]


def digests(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".ogg":  # each ogg stream has a random serial number, also one that was cut behind its head
            size = path.stat().st_size
            content = soundfile.read(path)[0].tobytes() if size > 200 else bytes(size)
        elif path.is_file() and path.name != "world.json":  # holds the seconds it took
            content = path.read_bytes()
        else:
            continue
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def test_the_same_seed_makes_the_same_world_and_another_seed_another(mini_world, tmp_path):
    result = run_command("util/make_mini_world.py", "--out", str(tmp_path / "again"), *SETTINGS)
    assert result.returncode == 0, result.stderr
    again, first = digests(tmp_path / "again"), digests(mini_world)
    assert again == {name: first.get(name) for name in again}
    for seed in (0, 1):  # of what is not rendered yet: a whole world takes long
        corpus.write_annotations(corpus.plan(120, 24, 0.1, seed), tmp_path / f"{seed}/ann", seed)
    same, other = (digests(tmp_path / str(seed)) for seed in (0, 1))
    assert same == {name: digest for name, digest in again.items() if name.startswith("ann/")}
    assert same["ann/stage1_train.json"] != other["ann/stage1_train.json"]


@pytest.mark.parametrize("error", [UserError("no room"), KeyboardInterrupt()])
def test_what_fails_is_told_at_once_whatever_the_workers_still_do(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(corpus, "write_audio", fail)
    settings = {"seed": 0, "train_clips": 40, "test_clips": 20, "broken": 0, "pretrain_scale": 1}
    with pytest.raises(type(error)):
        build.build(tmp_path / "world", settings)
    assert not list(tmp_path.rglob("model.safetensors"))  # LLaMA takes two minutes, and was not waited for


def test_its_processes_end_with_it(tmp_path):
    command = [sys.executable, str(ROOT / "util/make_mini_world.py"), "--out", str(tmp_path / "world")]
    script = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(family(script.pid)) > 4, script)  # with the tracker of multiprocessing
    started = family(script.pid)
    script.terminate()
    assert script.wait(HANG) == 1
    wait_until(lambda: not any(is_running(pid) for pid in started))


def is_running(pid):
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_only_a_validation_clip_holds_is_learned_by_name_too(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "fit", lambda *_: None)
    monkeypatch.setattr(encoders, "_wave", lambda *_: torch.zeros(1, 80_000))
    said = {"train": [(0.0, ""), (1.0, "a")], "valid": [(0.0, ""), (1.0, "b")]}
    clips = [Clip(split, "", Speech, 16_000, False, (), words=[track], phones=[track]) for split, track in said.items()]
    assert encoders.make_whisper(tmp_path, clips, tmp_path, 1, 0).keys() == {
        "frame_phone_accuracy",
        "frame_word_accuracy",
    }


def test_a_complete_world_is_left_as_it_is(mini_world):
    before = (mini_world / "world.json").stat().st_mtime_ns
    result = run_command("util/make_mini_world.py", "--out", str(mini_world), *SETTINGS)
    assert result.returncode == 0
    assert "complete already" in result.stdout
    assert (mini_world / "world.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b'{"complete": tr', b"\xff", b"[]", b'{"complete": true, "settings": {}}'])
def test_of_a_damaged_summary_the_world_is_made_anew(tmp_path, capsys, content):
    (tmp_path / "world.json").write_bytes(content)
    assert build._read_summary(tmp_path) is None
    assert "world.json is damaged" in capsys.readouterr().out


def spoken(annotations):
    """Sentences of the entries that say what is spoken."""
    entries = (annotations[i] for i in range(len(annotations)))
    return {line for e in entries if e["task"] in ("asr", "speech_separation") for line in e["text"].split("\n")}


def test_no_clip_and_no_sentence_of_a_test_set_is_in_training_or_validation(mini_world):
    paths, sentences = {"test": set(), "stage": set()}, {"test": set(), "stage": set()}
    for file in (mini_world / "ann").glob("*.json"):
        kind, annotations = re.match("test|stage", file.name).group(), Annotations(file)
        paths[kind] |= {str(p) for i in range(len(annotations)) for p in clips(annotations[i])}
        sentences[kind] |= spoken(annotations)
    assert paths["test"]
    assert sentences["test"]
    assert not paths["test"] & paths["stage"]
    assert not sentences["test"] & sentences["stage"]


def test_a_leak_is_found():
    clips = corpus.plan(train_clips=40, test_clips=20, broken=0.0, seed=0)
    clips = [dataclasses.replace(clip, digest=clip.path) for clip in clips]  # as if rendered
    spoken_test = next(clip for clip in clips if clip.split == "test" and clip.path.startswith("/speech"))
    corpus.check_splits(clips)
    with pytest.raises(corpus.LeakError, match="sentences"):
        corpus.check_splits([*clips, dataclasses.replace(spoken_test, split="train", path="/speech/new.wav")])


def test_the_tiny_llama_computes_what_predicts_answers_as_the_whole_model_does():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    slots = (llama.SLOTS, llama.BLEND)
    samples = [
        llama.Sample(
            [1, 2, *[0] * llama.SLOTS, 5, *answer], 2, len(answer), np.full(slots, 3), np.ones(slots, np.float32)
        )
        for answer in ([7, 8, 9], [4])
    ]
    torch.manual_seed(1)  # embeddings of slots are noisy
    hidden, targets = llama._hidden_and_targets(model, samples)
    torch.manual_seed(1)
    whole = model.model(inputs_embeds=llama.embed(model, samples)).last_hidden_state
    at = 2 + llama.SLOTS  # of the last token before the answer
    assert targets.tolist() == [7, 8, 9, 4]
    torch.testing.assert_close(hidden, torch.cat([whole[0, at : at + 3], whole[1, at : at + 1]]))


def clips(entry, prefix=""):
    return ClipPaths(prefix).of(entry["path"], entry["expand_wav"])


def test_good_clips_decode_and_one_in_ten_is_broken_as_listed(mini_world):
    world = json.loads((mini_world / "world.json").read_text())
    train = Annotations(mini_world / "ann" / "stage2_train.json")
    files = {Path(path) for i in range(len(train)) for path in clips(train[i], f"{mini_world}/audio")}
    broken = {mini_world / "audio" / path[1:] for path in world["broken"]}
    assert len(broken) == 12
    for file in files:
        if file in broken:
            continue
        assert 16_000 <= len(load_clip([file], 30.0)) <= 5 * 16_000
    unreadable = 0
    for file in broken:
        try:
            load_clip([file])
        except AudioError:
            unreadable += 1
    assert unreadable >= len(broken) - 2  # a truncated mp3 or ogg may still hold a readable beginning


def test_a_world_has_clips_of_every_format_and_rate():
    planned = [clip for clip in corpus.plan(600, 60, 0.1, 0) if not clip.broken]
    assert {Path(clip.path).suffix[1:] for clip in planned} == corpus.FORMATS.keys()
    assert {clip.rate for clip in planned} == corpus.RATES.keys()


@pytest.fixture(scope="module")
def trained(mini_world, tmp_path_factory):
    """A checkpoint of a short run, and the options that point the mini configs here."""
    output = tmp_path_factory.mktemp("trained")
    short = ["run.iters_per_epoch=2", "run.optims.max_epoch=1", "run.batch_size_train=2"]
    options = ["--options", *train_options(mini_world, output), *short]
    result = run_command("train.py", "--cfg-path", "configs/mini/stage1.yaml", *options)
    assert result.returncode == 0, result.stderr
    here = [*mini_options(mini_world, output), f"evaluate.results_dir={output}/results"]
    short = ["generate.max_new_tokens=8", "run.batch_size_eval=8"]
    return [*here, f"model.ckpt={output}/stage1/checkpoint_best.pth", *short]


def evaluate(mode, *options):
    arguments = ["evaluate.py", "--mode", mode, "--cfg-path", "configs/mini/evaluate.yaml", "--options", *options]
    return run_command(*arguments)


def results_folder(trained, name):
    from pathlib import Path

    [folder] = [option.split("=", 1)[1] for option in trained if option.startswith("evaluate.results_dir=")]
    return Path(folder) / name


def test_evaluate_scores_every_clip_once(mini_world, trained):
    options = [f"datasets.valid_ann_path_asr={mini_world}/ann/test_asr.json", "evaluate.name=asr"]
    result = evaluate("valid_asr", *trained, *options)
    assert result.returncode == 0, result.stderr
    assert "WER" in result.stdout
    report = json.loads((results_folder(trained, "asr") / "report.json").read_text())
    assert report["n"] == len(Annotations(mini_world / "ann/test_asr.json"))
    assert report["finished"] + report["unfinished"] == report["n"]


def test_evaluate_scores_captions_and_the_control(mini_world, trained):
    option = f"datasets.valid_ann_path_aac={mini_world}/ann/test_audiocaption.json"
    result = evaluate("valid_aac", *trained, option, "evaluate.name=aac")
    assert result.returncode == 0, result.stderr
    scores = json.loads((results_folder(trained, "aac") / "report.json").read_text())["scores"]
    for name in ("cider_d", "rouge_l", "exact"):
        assert {name, f"{name}_shuffled"} <= scores.keys()


def test_a_submission_names_every_id_once_in_order(mini_world, trained):
    option = f"datasets.test_ann_path_aac={mini_world}/ann/test_audiocaption.json"
    result = evaluate("submission_aac", *trained, option, "evaluate.name=sub")
    assert result.returncode == 0, result.stderr
    with (results_folder(trained, "sub") / "submission.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    test_set = Annotations(mini_world / "ann/test_audiocaption.json")
    assert header == ["testset_id", "text"]
    assert [row[0] for row in rows] == [test_set[i]["testset_id"] for i in range(len(test_set))]


def test_the_inspector_counts_what_is_ready(mini_world):
    files = [str(mini_world / "ann" / f"stage1_{split}.json") for split in ("train", "valid")]
    result = run_command("util/anns_inspector.py", "--prefix", f"{mini_world}/audio", "--ann", *files)
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r"\[(\w+)\] (\w+) +\| ready: +(\d+), not_ready: +(\d+), total: +(\d+) \| ready_rate:", result.stdout
    )
    assert {row[0] for row in rows} == {"asr", "audiocaption"}
    assert all(int(ready) + int(not_ready) == int(total) for _, _, ready, not_ready, total in rows)


def test_evaluate_without_weights_says_what_is_missing():
    result = run_command("evaluate.py", "--mode", "submission_aac")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) < 24
    here = "configs/mini/evaluate.yaml" if has_mini_model() else "make quickstart"
    for what in ("llama_path", "model.ckpt", here):
        assert what in result.stderr
