"""Preparers of multiple-choice benchmarks, each from a tiny tree in the layout in which it is published."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.tasks import load_tasks
from tests.fixtures.paths import ROOT

sys.path.insert(0, str(ROOT))

from util.eval_sets.catalogue import SETS
from util.prepare_eval_sets import default_out, main, parse_arguments

WAV = b"RIFF\x24\0\0\0WAVE"


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Writes {path: content} below a folder, runs the command on it; returns the entries and what it printed."""

    def run(name: str, files: dict[str, Any], *options: object) -> tuple[list[dict], str]:
        for path, content in files.items():
            file = tmp_path / "root" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        out = tmp_path / "out.json"
        arguments = [name, "--root", tmp_path / "root", "--out", out, "--overwrite", *options]
        monkeypatch.setattr(sys, "argv", ["prepare_eval_sets.py", *map(str, arguments)])
        main()
        annotations = Annotations(out)
        return [annotations.as_written(i) for i in range(len(annotations))], capsys.readouterr().out

    return run


def mmau(name: str, choices: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "audio_id": f"./test-mini-audios/{name}.wav", "question": "Who speaks?", "choices": choices,
        "dataset": "AudioSet", "task": "sound", "split": "test-mini", "category": "Reasoning", "difficulty": "easy",
    } | more  # fmt: skip


def test_mmau_is_read_as_published_and_what_is_odd_is_counted(prepare, tmp_path):
    rows = [
        mmau("a", ["Man", "Woman", "Robot"], answer="Man"),
        mmau("b", ["(A) Man", "(B) Woman"], answer="(B) Woman"),
        mmau("c", ["Man", "Woman"], answer="woman "),
        mmau("d", ["Man", "Woman", "Man"], answer="B"),
        mmau("e", ["Man", "Woman"], answer="Child"),
        mmau("f", ["Man", "Woman"]),
        mmau("g", ["Man"], answer="Man"),
    ]
    files = {"mmau-test-mini.json": rows, "test-mini-audios/a.wav": WAV}
    entries, told = prepare("mmau", files)
    assert entries[0] == {
        "path": "/root/test-mini-audios/a.wav",
        "text": "Man",
        "task": "QA",
        "Q": "Who speaks?",
        "choices": ["Man", "Woman", "Robot"],
        "testset_id": "a",
    }
    assert [entry["text"] for entry in entries] == ["Man", "Woman", "Woman", "Woman", "Child", ""]
    assert entries[1]["choices"] == entries[3]["choices"] == ["Man", "Woman"]
    assert "6 clips" in told
    for line in (
        "1 clips with an option that stands there twice", "1 clips left out: they have fewer than two options",
        "1 clips whose right answer is none of their options", "1 clips whose right answer is withheld",
    ):  # fmt: skip
        assert line in told
    lines = "".join(f"{json.dumps(row)}\n" for row in rows[:2])
    assert prepare("mmau", {"more.jsonl": lines}, "--table", tmp_path / "root/more.jsonl")[0] == entries[:2]


def test_the_test_split_has_its_own_file_and_annotation(prepare):
    entries, _ = prepare("mmau", {"mmau-test.json": [mmau("x", ["1", "2"])]}, "--split", "test")
    assert [entry["testset_id"] for entry in entries] == ["x"]
    with pytest.raises(UserError, match="--split dev: one of test-mini, test"):
        prepare("mmau", {}, "--split", "dev")


def test_mmar_is_read_as_published(prepare):
    row = {
        "id": "BV1_00-00-10_00-00-20", "audio_path": "./audio/BV1_00-00-10_00-00-20.wav", "question": "Which bird?",
        "choices": ["Owl", "Rooster"], "answer": "Owl", "modality": "sound", "category": "Semantic Layer",
        "sub-category": "Speaker Analysis", "language": "en", "source": "youtube", "url": "u", "timestamp": "t",
    }  # fmt: skip
    entries, _ = prepare("mmar", {"MMAR-meta.json": [row]})
    assert (entries[0]["path"], entries[0]["text"]) == ("/root/audio/BV1_00-00-10_00-00-20.wav", "Owl")


def foundation(number: int, path: str, task: str = "Sound_AQA", **more: Any) -> dict[str, Any]:
    return {
        "path": path, "question": "What barks?", "choice_a": "dog", "choice_b": "cat", "answer_gt": "cat",
        "task_name": task, "dataset_name": "avqa", "uniq_id": number,
    } | more  # fmt: skip


def test_air_bench_has_two_to_four_options_and_grounding_is_stored_as_flac(prepare):
    rows = [
        foundation(1, "1.wav"),
        foundation(1, "2.wav", "Audio_Grounding", choice_c="bird", choice_d="fish"),
        foundation(3, "3.wav", choice_c="bird", choice_d=None),
    ]
    entries, told = prepare(
        "air_bench", {"Foundation/Foundation_meta.json": rows, "Foundation/Audio_Grounding_avqa/2.flac": b"fLaC"}
    )
    assert [entry["path"] for entry in entries] == [
        "/root/Foundation/Sound_AQA_avqa/1.wav",
        "/root/Foundation/Audio_Grounding_avqa/2.flac",
        "/root/Foundation/Sound_AQA_avqa/3.wav",
    ]
    assert [len(entry["choices"]) for entry in entries] == [2, 4, 3]
    assert "2 of 3 clips are absent" in told


MUCHOMUSIC = """dataset,dataset_identifier,genre,question,correct_answer,distractor_1_answer,distractor_2_answer,\
distractor_3_answer,music_knowledge,music_reasoning
sdd,1415607.json,Reggae,"What, if any, leads?",Horns,Drums,A flute,Voice,[],"['mood']"
sdd,1415607.json,Reggae,How fast?,Slow,Fast,Very fast,No pulse,[],[]
musiccaps,-0G_x_30.json,Pop,Who sings?,A man,A woman,A choir,Nobody,[],[]
"""
CAPTIONS = "ytid,start_s,end_s,caption\n-0G_x,30,40,slow\n"


def test_muchomusic_deals_the_options_the_same_each_time(prepare):
    files = {"muchomusic.csv": MUCHOMUSIC, "musiccaps/musiccaps-public.csv": CAPTIONS}
    entries, _ = prepare("muchomusic", files)
    assert [entry["path"] for entry in entries] == [
        "/root/sdd/audio/07/1415607.2min.mp3",
        "/root/sdd/audio/07/1415607.2min.mp3",
        "/root/musiccaps/audio/[-0G_x]-[30-40].wav",
    ]
    assert [entry["testset_id"] for entry in entries] == ["1415607_1", "1415607_2", "-0G_x_1"]
    assert [sorted(entry["choices"])[0] for entry in entries] == ["A flute", "Fast", "A choir"]
    assert len({entry["choices"].index(entry["text"]) for entry in entries}) > 1  # not always first, as in the file
    assert prepare("muchomusic", {})[0] == entries
    (named,) = [entry for entry in prepare("muchomusic", {}, "--name", "{ytid}.wav")[0] if "caps" in entry["path"]]
    assert named["path"] == "/root/musiccaps/audio/-0G_x.wav"


def test_audio_inside_parquet_files_is_written_as_it_is(prepare, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "root" / "data"
    folder.mkdir(parents=True)
    rows = [
        {
            "id": "a",
            "audio": {"bytes": WAV, "path": "a.wav"},
            "question": "Who?",
            "choices": "['x', 'y']",
            "answer": "y",
        },
        {
            "id": "b",
            "audio": {"bytes": b"fLaC", "path": None},
            "question": "Who?",
            "choices": "['x', 'y']",
            "answer": "",
        },
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test_mini-00000-of-00001.parquet")
    with pytest.raises(UserError, match="give --cut-to DIR"):
        prepare("mmau", {})
    entries, told = prepare("mmau", {}, "--cut-to", tmp_path / "root/clips")
    assert [(entry["path"], entry["text"]) for entry in entries] == [
        ("/root/clips/a.wav", "y"),
        ("/root/clips/b.flac", ""),
    ]
    assert (tmp_path / "root/clips/a.wav").read_bytes() == WAV
    assert "all clips are on this disk" in told

    other = [{"context": {"bytes": b"ID3", "path": None}, "instruction": "Who?", "choices": ["x", "y"], "answer": "x"}]
    table = folder.parent / "other.parquet"
    parquet.write_table(pa.Table.from_pylist(other), table)
    entries, _ = prepare("mmar", {}, "--table", table, "--cut-to", tmp_path / "root/clips")
    assert (entries[0]["path"], entries[0]["choices"]) == ("/root/clips/other_0.mp3", ["x", "y"])
    table.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="no table of Parquet or Arrow that can be read"):
        prepare("mmar", {}, "--table", table, "--cut-to", tmp_path / "root/clips")


@pytest.mark.parametrize(
    ("name", "files", "told"),
    [
        ("mmau", {"mmau-test-mini.json": [mmau("a", "Man or woman", answer="Man")]}, "'Man or woman' are no list"),
        ("mmau", {"mmau-test-mini.json": [mmau("a", "[1, 2]", answer="1")]}, "are no list of texts"),
        ("mmau", {"mmau-test-mini.json": {"a": 1}}, "Expected `array`"),
        ("mmau", {"mmau-test-mini.json": [{"id": "a"}]}, "missing required field"),
        ("mmau", {"mmau-test-mini.json": [mmau("a", ["x", "y"], audio_id="")]}, "neither audio_id nor audio_path"),
        ("mmar", {"README.md": ""}, "MMAR-meta.json: no such file"),
        ("air_bench", {"Foundation/Foundation_meta.json": [{"path": "a"}]}, "missing required field"),
        ("muchomusic", {"muchomusic.csv": "dataset,question\n"}, "no column dataset_identifier"),
        ("muchomusic", {"muchomusic.csv": MUCHOMUSIC.replace("musiccaps,", "fma,")}, "dataset 'fma'"),
        (
            "muchomusic",
            {"muchomusic.csv": MUCHOMUSIC, "musiccaps/musiccaps-public.csv": CAPTIONS.replace("-0G", "-1G")},
            "line 4: -0G_x is not in",
        ),
    ],
)
def test_what_is_no_such_file_is_told(prepare, name, files, told):
    with pytest.raises(UserError, match=told):
        prepare(name, files)


def test_a_choice_set_of_the_miniature_world_has_the_answers_of_other_clips_as_options(mini_world, prepare, tmp_path):
    (tmp_path / "root").symlink_to(mini_world)
    entries, _ = prepare("mini_choices", {}, "--prefix", tmp_path / "root" / "audio")
    questions = json.loads((mini_world / "ann/test_QA.json").read_text())["annotation"]
    assert len(entries) > len(questions) / 2
    for entry in entries:
        assert entry["text"] in entry["choices"]
        others = {one["text"] for one in questions if one["Q"] == entry["Q"]}
        assert set(entry["choices"]) <= others
        assert (mini_world / "audio" / entry["path"].lstrip("/")).is_file()


def test_every_benchmark_is_declared_with_the_file_that_its_preparer_writes():
    tasks = {task.annotation: task for task in load_tasks(ROOT / "configs/benchmarks.yaml")}
    sets = [("mmau", "test-mini"), ("mmau", "test"), ("mmar", ""), ("air_bench", ""), ("muchomusic", "")]
    assert set(tasks) == {str(default_out(*one)) for one in sets}
    assert all(task.has_choices for task in tasks.values())


@pytest.mark.parametrize("task", load_tasks(ROOT / "configs/benchmarks.yaml"), ids=lambda task: task.name)
def test_the_page_tells_how_a_benchmark_is_prepared_and_what_is_published(task, monkeypatch):
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| `{task.name}` \|.*$", page, re.MULTILINE)
    _, _, command, published = (cell.strip() for cell in line.strip("|").split(" | "))
    monkeypatch.setattr("sys.argv", ["prepare_eval_sets.py", *shlex.split(command.strip("`"))])
    args = parse_arguments()
    assert task.annotation == str(default_out(args.set, args.split or SETS[args.set].split))
    figures = [METRICS["choice_named"].show(one.value) for one in task.paper.get("choice_named", [])]
    assert published.split(",")[0] == (figures or ["-"])[0]
