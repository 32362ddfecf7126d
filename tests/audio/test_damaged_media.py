"""No damaged file stops a run, hangs it or gets into it; no good file is lost."""

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from salmonn.audio.decode import decode_all, inspect_header, load_audio
from salmonn.config.loading import load_config
from salmonn.data import integrity
from salmonn.data.annotations import Annotations
from salmonn.data.filtering import usable_entries
from salmonn.data.integrity import check_files, version_of
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.damaged_media import ALL_KINDS, make_damaged, must_fail
from tests.fixtures.deadly import check_or_die
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from tests.fixtures.whole_media import flac_without_length, make_good

N_DAMAGED, N_GOOD = 155, 80  # in training: each kind of damage, and good clips of each format
N_READ = 1550  # damaged files in the tests of the readers: each kind ten times
SEED = 20

MAX_MEMORY = 300  # MB, beside what the process held before
MAX_SECONDS_PER_FILE = 1200  # hangs

# Reads files one after another with all readers, and writes what each said as a line of JSON.
READ_ALL = r"""
import faulthandler, json, re, sys
import numpy as np
from salmonn.audio.decode import AudioError, decode_all, inspect_header, load_audio

def memory(what):
    return int(re.search(what + r":\s*(\d+) kB", open("/proc/self/status").read())[1]) / 1000

open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten: this process came with PyTorch in it
before = memory("VmRSS")
for path in json.load(open(sys.argv[1])):
    line = {"path": path}
    for reader in (inspect_header, load_audio, decode_all):
        faulthandler.dump_traceback_later(int(sys.argv[2]), exit=True)
        try:
            result = reader(path)
            finite = not isinstance(result, np.ndarray) or bool(len(result) and np.isfinite(result).all())
            line[reader.__name__] = ["taken" if finite else "taken, but not finite", ""]
        except AudioError as error:
            named = error.path == path and error.reason and path in str(error)
            line[reader.__name__] = ["refused" if named else "refused without path or reason", error.reason]
        except BaseException as error:
            line[reader.__name__] = [f"raised {error!r}", ""]
    print(json.dumps(line), flush=True)
print(json.dumps({"taken": memory("VmHWM") - before}))
"""

# train.py, of which each rank writes down what it trained on and how it ended.
RECORDED_TRAINING = """
import json, os, runpy
from salmonn.training.runner import Runner

next_samples, run = Runner._next_samples, Runner.run
record = open(os.path.join(os.environ["RECORDS"], os.environ["RANK"]), "w", buffering=1)

def recorded_samples(self):
    samples = next_samples(self)
    print(json.dumps({"ids": samples["id"] if samples else []}), file=record)  # none where the run is to end
    return samples

def recorded_run(self):
    end = None
    try:
        return run(self)
    except BaseException as error:
        end = [type(error).__name__, str(error)]
        raise
    finally:
        print(json.dumps({"end": end}), file=record)

Runner._next_samples, Runner.run = recorded_samples, recorded_run
runpy.run_path("train.py", run_name="__main__")
"""


# ---- the readers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return SimpleNamespace(
        damaged=make_damaged(folder / "damaged", N_READ, SEED), good=make_good(folder / "good", 70, SEED)
    )


@pytest.fixture(scope="module")
def readings(files, tmp_path_factory):
    """What the three readers say of each file, in a process of their own, which they may crash."""
    folder = tmp_path_factory.mktemp("readings")
    (folder / "files.json").write_text(json.dumps([*files.damaged, *files.good]))
    (folder / "read_all.py").write_text(READ_ALL)
    result = run_command(
        str(folder / "read_all.py"), str(folder / "files.json"), str(MAX_SECONDS_PER_FILE), PYTHONPATH=str(ROOT)
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"after {lines[-1:]}: {result.stderr[-3000:]}"
    return SimpleNamespace(by_path={line["path"]: line for line in lines[:-1]}, taken=lines[-1]["taken"])


def said_by_kind(files, readings, reader, *kinds_of_answers):
    """{kind: {answer: files}} of the answers that begin otherwise than they should."""
    unexpected = {}
    for path, kind in files.damaged.items():
        answer = readings.by_path[path][reader][0]
        if answer not in kinds_of_answers:
            unexpected.setdefault(f"{kind}: {answer}", []).append(path)
    return unexpected


def test_every_kind_of_damage_is_there_and_follows_from_the_seed(files, tmp_path):
    assert set(files.damaged.values()) == set(ALL_KINDS)
    again = make_damaged(tmp_path / "damaged", N_READ, SEED)
    assert list(again.values()) == list(files.damaged.values())
    for first, second in zip(files.damaged, again, strict=True):
        if "\0" not in first and not os.path.islink(first) and os.path.isfile(first):
            assert Path(first).read_bytes() == Path(second).read_bytes()


@pytest.mark.parametrize("reader", ["load_audio", "decode_all"])
def test_what_can_be_seen_to_be_damaged_is_refused_with_path_and_reason(files, readings, reader):
    unexpected = said_by_kind(files, readings, reader, "refused")
    assert {kind: paths for kind, paths in unexpected.items() if must_fail(kind.rpartition(": ")[0])} == {}


@pytest.mark.parametrize("reader", ["load_audio", "decode_all"])
def test_what_cannot_be_seen_gives_finite_samples_or_is_refused(files, readings, reader):
    unexpected = said_by_kind(files, readings, reader, "refused", "taken")
    assert {kind: paths for kind, paths in unexpected.items() if not must_fail(kind.rpartition(": ")[0])} == {}


def test_whole_files_of_all_formats_are_taken(files, readings):
    said = {path: {answer for answer, _ in list(readings.by_path[path].values())[1:]} for path in files.good}
    assert {path: answers for path, answers in said.items() if answers != {"taken"}} == {}


def test_flac_that_does_not_tell_its_length_is_read(tmp_path):
    (tmp_path / "a.flac").write_bytes(flac_without_length(SEED))
    assert 16_000 <= len(load_audio(tmp_path / "a.flac")) <= 32_000
    assert decode_all(tmp_path / "a.flac").rate == 16_000
    assert inspect_header(tmp_path / "a.flac").seconds < 3  # and not the largest number there is


def test_what_decoding_verified_loads_and_what_it_refused_does_not(files, readings):
    """Or else a verified data set still loses files in training, or files that training can use are left out."""
    differing = {}
    for path, kind in files.damaged.items():
        answers = [readings.by_path[path][reader][0] for reader in ("load_audio", "decode_all")]
        if answers[0] != answers[1]:
            differing.setdefault(kind, []).append((path, *answers))
    assert differing == {}


def test_header_inspection_lets_nothing_but_refusals_and_information_out(files, readings):
    assert said_by_kind(files, readings, "inspect_header", "refused", "taken") == {}


def test_damaged_headers_do_not_take_memory(readings):
    assert 0 <= readings.taken < MAX_MEMORY


# ---- many files in parallel processes


@pytest.mark.parametrize("how", ["header", "decode"])
def test_parallel_checks_give_one_verdict_per_file_and_it_is_the_readers(files, readings, how):
    reader = "decode_all" if how == "decode" else "inspect_header"
    paths = [*files.damaged, *files.good]
    verdicts = list(check_files(paths, how, jobs=2))
    assert Counter(verdict.path for verdict in verdicts) == Counter(paths)
    for verdict in verdicts:
        answer, reason = readings.by_path[verdict.path][reader]
        assert (verdict.ok, verdict.reason) == (answer == "taken", reason)
        assert verdict.version == version_of(verdict.path)


def test_files_that_kill_their_process_get_a_verdict_and_cost_no_other_file_its_own(files, monkeypatch):
    paths = [*files.damaged, *files.good][: 4 * 32 * 2 * 2]
    deadly = {path for i, path in enumerate(paths) if i in (0, 5, 6, 70, 300, len(paths) - 1)}
    monkeypatch.setattr(integrity, "_check_batch", partial(check_or_die, deadly))
    verdicts = list(check_files(paths, "decode", jobs=2))
    assert Counter(verdict.path for verdict in verdicts) == Counter(paths)
    assert {verdict.path for verdict in verdicts if verdict.reason == "crashes the decoder"} == deadly
    assert not any(verdict.ok for verdict in verdicts if verdict.path in deadly)


# ---- training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Good clips and damaged ones, annotated, and a validation set of a few good ones."""
    folder = tmp_path_factory.mktemp("corpus")
    damaged = make_damaged(folder / "damaged", N_DAMAGED, SEED + 1)
    good = make_good(folder / "good", N_GOOD, SEED + 1)
    entries = [
        {"path": path.removeprefix(str(folder)), "text": f"sound number {i}", "task": ("asr", "audiocaption")[i % 2]}
        for i, path in enumerate((*damaged, *good))
    ]
    (folder / "train.json").write_text(json.dumps({"annotation": entries}))
    (folder / "valid.json").write_text(json.dumps({"annotation": entries[-4:]}))
    many = 4 * entries  # before 500 are tried, no number of damaged ones is too many
    (folder / "many.json").write_text(json.dumps({"annotation": many}))
    visible = {path for path, kind in damaged.items() if must_fail(kind)}
    return SimpleNamespace(folder=folder, damaged=damaged, visible=visible, good=set(good), n_many=len(many))


def train(mini_world, corpus, output, *datasets):
    """Two epochs of train.py on two ranks; returns what it printed, left and trained on."""
    options = [
        *mini_options(mini_world, output),
        f"datasets.prefix={corpus.folder}",
        f"datasets.train_ann_path={corpus.folder}/train.json",
        f"datasets.valid_ann_path={corpus.folder}/valid.json",
        *datasets,
        "run.epoch_based=True", "run.optims.max_epoch=2", "run.num_workers=2", "run.batch_size_train=8",
        "run.batch_size_eval=4", "run.log_freq=10",
    ]  # fmt: skip
    records = output / "records"
    records.mkdir()
    (output / "train.py").write_text(RECORDED_TRAINING)
    result = run_command(
        str(output / "train.py"), "--cfg-path", "configs/mini/stage1.yaml", "--options", *options,
        RECORDS=str(records), PYTHONPATH=str(ROOT), ranks=2,
    )  # fmt: skip
    ranks = [json_lines(records / rank) for rank in ("0", "1")]
    quarantine = output / "stage1/quarantine.jsonl"
    listed = quarantine.read_text().splitlines() if quarantine.exists() else []
    config = load_config(str(ROOT / "configs/mini/stage1.yaml"), options)
    ids = [name for lines in ranks for line in lines for name in line.get("ids", ())]
    return SimpleNamespace(
        result=result,
        datasets=config.datasets,
        quarantined=[json.loads(line) for line in listed],
        trained_on={f"{corpus.folder}{name}" for name in ids},
        n_trained=len(ids),
        ends=[[line["end"] for line in lines if "end" in line] for lines in ranks],
        summary=output / "stage1/summary.json",
    )


@pytest.mark.parametrize("how", ["header", "'off'"])
def test_training_goes_on_past_every_damaged_file_and_uses_every_good_one(mini_world, corpus, tmp_path, how):
    run = train(mini_world, corpus, tmp_path, f"datasets.integrity={how}", "datasets.max_bad_fraction=1")
    assert run.result.returncode == 0, run.result.stderr[-5000:]
    assert run.ends == [[None], [None]]

    annotations = Annotations(corpus.folder / "train.json")
    usable = {corpus.folder.as_posix() + annotations[int(i)]["path"] for i in usable_entries(annotations, run.datasets)}
    quarantined = {verdict["path"] for verdict in run.quarantined}
    left_out = {*corpus.damaged, *corpus.good} - usable
    assert not corpus.good & (left_out | quarantined)
    assert corpus.good <= run.trained_on
    assert corpus.visible <= left_out | quarantined
    assert not corpus.visible & run.trained_on
    assert not run.trained_on & (left_out | quarantined)

    assert len(run.quarantined) == len(quarantined)
    assert all(verdict["reason"] and not verdict["ok"] for verdict in run.quarantined)
    assert json.loads(run.summary.read_text())["bad_files"] == len(quarantined)
    rows = [line.rpartition(": ")[2] for line in run.result.stderr.splitlines() if "left out [damaged]" in line]
    assert sum(map(int, rows)) == len(left_out)
    assert bool(left_out) == (how == "header")


def test_checks_are_switched_off_on_the_command_line_as_the_documentation_has_it():
    config = load_config(str(ROOT / "configs/stage1.yaml"), ["datasets.integrity=off"])  # YAML takes off for False
    assert config.datasets.integrity == "off"


def test_too_many_damaged_files_end_the_run_on_all_ranks_with_a_message(mini_world, corpus, tmp_path):
    default = OmegaConf.to_container(load_config(str(ROOT / "configs/stage1.yaml")).datasets)["max_bad_fraction"]
    options = [f"datasets.train_ann_path={corpus.folder}/many.json", f"datasets.max_bad_fraction={default}"]
    run = train(mini_world, corpus, tmp_path, "datasets.integrity='off'", *options)
    assert run.result.returncode == 2, run.result.stderr[-5000:]
    for ((kind, message),) in run.ends:
        assert kind == "LoadingError"
        assert f"datasets.max_bad_fraction = {default} allows" in message
        assert "quarantine.jsonl" in message
    assert "datasets.max_bad_fraction" in "\n".join(run.result.stderr.splitlines()[-24:])
    assert {verdict["path"] for verdict in run.quarantined} <= corpus.damaged.keys()
    assert 0 < run.n_trained < corpus.n_many / 2  # at once, not at the end of the epoch
