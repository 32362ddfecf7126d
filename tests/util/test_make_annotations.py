"""Recordings listed in the ways that people have become an annotation file; what does not fit is told."""

import csv
import gzip
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from tests.fixtures.paths import ROOT
from util import make_annotations

RATE = 16_000  # Hz


def noise(path: Path, seconds: float = 1.0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate)), rate)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three recordings, which is where commands are typed."""
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a.wav", 1.0), ("b.flac", 2.0), ("c.mp3", 1.5)):
        noise(tmp_path / "rec" / name, seconds)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_annotations.py", *arguments, "--to", "ann/own.json"])
    make_annotations.main()


def made(capsys: pytest.CaptureFixture[str] | None = None) -> list[tuple[str, str]]:
    """(file name, text) of what was written; every clip lies where the prefix that was printed says."""
    entries = json.loads(Path("ann/own.json").read_text(encoding="utf-8"))["annotation"]
    if capsys:
        prefix = capsys.readouterr().out.split("datasets.prefix=")[1].split()[0]
        assert all(Path(ClipPaths(prefix).locate(entry["path"])).is_file() for entry in entries)
    return [(Path(entry["path"]).name, entry["text"]) for entry in entries]


THREE = [("a.wav", "one, two"), ("b.flac", 'he said "no"'), ("c.mp3", "drei für öl")]


def as_csv(header: list[str], rows: list[tuple[str, ...]], **dialect: str) -> str:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows([header, *rows])
    return text.getvalue()


TABLES = {
    "csv": ("rec/own.csv", as_csv(["path", "text"], THREE)),
    "csv with a byte order mark": ("rec/own.csv", "\ufeff" + as_csv(["File Name", "file_name", "Transcript"], [
        ("x", *row) for row in THREE])),
    "semicolons": ("rec/own.csv", as_csv(["audio", "sentence"], THREE, delimiter=";")),
    "quoted tsv, as Excel and pandas write it": ("rec/own.tsv", as_csv(["path", "text"], THREE, delimiter="\t")),
    "plain tsv, as Common Voice has it": ("cv.tsv", "client_id\tpath\tsentence\n" + "".join(
        f"x\trec/{path}\t{text}\n" for path, text in THREE)),
    "bars without header": ("rec/list.txt", "".join(f"{path}|{text}\n" for path, text in THREE)),
    "jsonl": ("rec/own.jsonl", "".join(json.dumps({"audio": p, "text": t}) + "\n" for p, t in THREE)),
    "one json list": ("rec/own.json", json.dumps([{"path": p, "text": t} for p, t in THREE])),
    "an annotation file": ("rec/own.json", json.dumps({"annotation": [{"path": f"/{p}", "text": t}
                                                                     for p, t in THREE]})),
    "nemo": ("manifest.json", "".join(
        json.dumps({"audio_filepath": f"rec/{p}", "duration": 1.0, "text": t}) + "\n" for p, t in THREE)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_list_becomes_an_annotation_file(kind, here, monkeypatch, capsys):
    name, content = TABLES[kind]
    (here / name).write_text(content, encoding="utf-8")
    run(monkeypatch, name)
    assert made(capsys) == THREE
    assert len(Annotations("ann/own.json")) == 3


def test_a_clip_that_is_left_out_for_another_of_its_entry_does_not_count(here, monkeypatch, capsys):
    (here / "rec/bad.wav").write_bytes(b"no sound")
    rows = [{"path": "a.wav", "text": "one", "expand_wav": ["bad.wav"]}, {"path": "b.flac", "text": "two"}]
    (here / "rec/own.json").write_text(json.dumps(rows))
    run(monkeypatch, "rec/own.json")
    assert "1 clips, 0.0 minutes, 2.0 to 2.0 s" in capsys.readouterr().out


def test_windows_paths_and_clips_in_a_folder_beside_the_list_are_found(here, monkeypatch, capsys):
    (here / "rec").rename(here / "clips")
    (here / "list.csv").write_text("path,text\nclips\\a.wav,one\nb.flac,two\nc,three\n/c.mp3,four\n")
    run(monkeypatch, "list.csv")
    assert [text for _, text in made(capsys)] == ["one", "two", "three", "four"]


def test_columns_are_named_or_counted(here, monkeypatch, capsys):
    (here / "rec/metadata.csv").write_text("a|x|one|1\nb|y|two|2\n")
    run(monkeypatch, "rec/metadata.csv", "--columns", "path=1", "text=3")
    assert made(capsys) == [("a.wav", "one"), ("b.flac", "two")]
    (here / "rec/metadata.csv").write_text("uri,said,text\na.wav,one,no\n")
    run(monkeypatch, "rec/metadata.csv", "--force", "--columns", "path=uri", "text=said")
    assert made(capsys) == [("a.wav", "one")]


# The first line of LJSpeech's metadata.csv has 314 characters: no file has so long a name.
LONG = "Printing, in the only sense with which we are at present concerned, differs from most, " * 3


@pytest.mark.parametrize("delimiter", ["|", "\t", ";"])
def test_a_first_line_may_be_longer_than_a_name_of_a_file(delimiter, here, monkeypatch, capsys):
    (here / "rec/metadata.csv").write_text("".join(f"{name}{delimiter}{LONG.strip()}\n" for name in "ab"))
    run(monkeypatch, "rec/metadata.csv", "--columns", "path=1", "text=2")
    assert made(capsys) == [("a.wav", LONG.strip()), ("b.flac", LONG.strip())]


@pytest.mark.parametrize("line", [LONG.replace(",", ""), "x" * 5000, ".", "/"])
def test_a_line_that_can_be_no_clip_is_left_out_of_a_list(line, here, monkeypatch, capsys):
    (here / "rec/a.txt").write_text("one")
    (here / "list.txt").write_text(f"{line}\nrec/a.wav\n")
    run(monkeypatch, "list.txt")
    assert "left out: list.txt, line 1: no text" in capsys.readouterr().out
    assert made() == [("a.wav", "one")]


def test_a_folder_and_a_bare_list_take_the_texts_beside_the_clips(here, monkeypatch, capsys):
    (here / "rec/a.txt").write_text("one\ntwo\n")
    (here / "rec/b.lab").write_text("three")
    run(monkeypatch, "rec")
    assert made() == [("a.wav", "one two"), ("b.flac", "three")]
    assert "left out: rec/c.mp3: no text" in capsys.readouterr().out
    (here / "list.txt").write_text("rec/b.flac\r\nrec/a.wav\r\n")
    run(monkeypatch, "list.txt", "--force")
    assert made(capsys) == [("b.flac", "three"), ("a.wav", "one two")]


def test_what_a_mac_leaves_beside_clips_and_texts_is_not_taken_for_any(here, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        (here / f"rec/{name}.txt").write_text(f"text of {name}")
    for name in ("._a.wav", "._a.txt", "._c.mp3", ".DS_Store", ".AppleDouble/b.flac", "._train.parquet"):
        (here / "rec" / name).parent.mkdir(exist_ok=True)
        (here / "rec" / name).write_bytes(b"\0\5\x16\7" + bytes(4000))
    run(monkeypatch, "rec")
    said = capsys.readouterr().out
    assert "left out" not in said
    assert "._" not in said
    assert made() == [("a.wav", "text of a"), ("b.flac", "text of b"), ("c.mp3", "text of c")]


@pytest.mark.usefixtures("here")
def test_clips_without_texts_are_for_answers_alone(monkeypatch):
    with pytest.raises(UserError, match="no text"):
        run(monkeypatch, "rec")
    run(monkeypatch, "rec", "--without-text")
    entries = json.loads(Path("ann/own.json").read_text())["annotation"]
    assert [sorted(entry) for entry in entries] == [["path", "task"]] * 3


def test_texts_that_are_not_wanted_are_not_looked_at(here, monkeypatch):
    (here / "x.jsonl").write_text('{"path": "rec/a.wav", "text": ["one", "two"]}')
    run(monkeypatch, "x.jsonl", "--without-text")
    assert [sorted(entry) for entry in json.loads(Path("ann/own.json").read_text())["annotation"]] == [["path", "task"]]


def test_kaldi_with_and_without_segments(here, monkeypatch, capsys):
    (here / "k").mkdir()
    (here / "k/wav.scp").write_text(f"r1 {here}/rec/a.wav\nr2 rec/b.flac\n")
    (here / "k/text").write_text("r1 one\nr2 two words\nr9 nine\n")
    run(monkeypatch, "k")
    assert "left out" in capsys.readouterr().out  # r9
    assert made() == [("a.wav", "one"), ("b.flac", "two words")]
    (here / "k/segments").write_text("u1 r2 0.0 0.5\nu2 r2 0.5 2.04\nu3 r2 1.0 9.0\n")
    (here / "k/text").write_text("u1 one\nu2 two\nu3 three\n")
    run(monkeypatch, "k", "--force")
    out = capsys.readouterr().out
    assert "a piece from 1.00 to 9.00 s" in out
    assert made() == [("u1.flac", "one"), ("u2.flac", "two")]
    whole = soundfile.read(here / "rec/b.flac")[0]
    assert np.abs(soundfile.read(here / "data/own/u1.flac")[0] - whole[: RATE // 2]).max() < 1e-3
    assert len(soundfile.read(here / "data/own/u2.flac")[0]) == len(whole) - RATE // 2


def lhotse_cut(number: int, path: str, start: float, duration: float, total: float, *texts: str) -> dict:
    said = [{"id": f"s{i}", "start": i, "duration": 1, "text": text} for i, text in enumerate(texts)]
    recording = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": path}], "duration": total}
    return {"id": f"cut-{number}", "start": start, "duration": duration, "channel": 0, "type": "MonoCut",
            "supervisions": said[::-1], "recording": recording}  # fmt: skip


def test_cuts_of_lhotse(here, monkeypatch, capsys):
    cuts = [lhotse_cut(0, "rec/a.wav", 0, 1.0, 1.0, "one", "two"), lhotse_cut(1, "rec/b.flac", 0.5, 1.0, 2.0, "three")]
    (here / "cuts.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    run(monkeypatch, "cuts.jsonl.gz")
    assert made(capsys) == [("a.wav", "one two"), ("cut-1.flac", "three")]
    (here / "cuts.jsonl").write_text(json.dumps({"id": "m", "type": "MixedCut", "tracks": []}))
    with pytest.raises(UserError, match=r"cuts.jsonl, line 1: a MixedCut"):
        run(monkeypatch, "cuts.jsonl", "--force")
    (here / "recordings.jsonl").write_text(json.dumps({"id": "r", "sources": [], "sampling_rate": 16000}))
    with pytest.raises(UserError, match="give its cuts"):
        run(monkeypatch, "recordings.jsonl", "--force")


def test_what_a_cut_says_without_times_is_said_in_its_order(here, monkeypatch, capsys):
    cut = lhotse_cut(0, "rec/a.wav", 0, 1.0, 1.0, "two", "one")
    cut["supervisions"] = [{**said, "start": None} for said in cut["supervisions"]]
    (here / "cuts.jsonl").write_text(json.dumps(cut))
    run(monkeypatch, "cuts.jsonl")
    assert made(capsys) == [("a.wav", "one two")]


def test_pieces_by_offset_and_duration(here, monkeypatch, capsys):
    rows = [{"audio_filepath": "rec/b.flac", "offset": at, "duration": 0.5, "text": str(at)} for at in (0, 0.75, 0.75)]
    (here / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(monkeypatch, "m.json")
    assert made(capsys) == [("b-00000000.flac", "0")] + [("b-00000750.flac", "0.75")] * 2


needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")


def hf_table(here: Path, labels: bool = False):
    import pyarrow as pa

    clips = [
        {"bytes": (here / "rec" / name).read_bytes(), "path": name if i else None} for i, (name, _) in enumerate(THREE)
    ]
    table = pa.table({"audio": clips, "sentence": [i % 2 for i in range(3)] if labels else [text for _, text in THREE]})
    features = {"sentence": {"names": ["man", "woman"], "_type": "ClassLabel"}}
    return (
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        if labels
        else table
    )


@needs_pyarrow
@pytest.mark.parametrize("told", ["[" * 5000 + "]" * 5000, "[]", "{", '{"info": 3}'])
def test_classes_that_cannot_be_read_are_told(here, monkeypatch, told):
    from pyarrow import parquet

    parquet.write_table(hf_table(here).replace_schema_metadata({"huggingface": told}), here / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet.*huggingface"):
        run(monkeypatch, "a.parquet")


@needs_pyarrow
def test_a_hugging_face_folder_gives_its_recordings(here, monkeypatch, capsys):
    from pyarrow import ipc, parquet

    for split in ("train", "test"):
        (here / "hf/data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(hf_table(here), here / f"hf/data/{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="holds the splits"):
        run(monkeypatch, "hf")
    run(monkeypatch, "hf/data/train-00000-of-00001.parquet", "hf/data/test-00000-of-00001.parquet")
    assert [text for _, text in made(capsys)] == [text for _, text in THREE] * 2
    clips = sorted((here / "data/own").iterdir())
    assert len(clips) == 6
    assert {clip.suffix for clip in clips} == {".wav", ".flac", ".mp3"}  # the first by its content

    (here / "disk").mkdir()
    table = hf_table(here, labels=True)
    with ipc.new_stream(str(here / "disk/data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    run(monkeypatch, "disk", "--force")
    assert [text for _, text in made(capsys)] == ["man", "woman", "man"]


@needs_pyarrow
@pytest.mark.parametrize("column", ["text", "question", "task"])
def test_a_list_in_a_table_is_no_text(column, here, monkeypatch):
    import pyarrow as pa
    from pyarrow import parquet

    values = {"path": ["rec/a.wav"], "text": ["one"], column: [["one", "two"]]}
    parquet.write_table(pa.table(values), here / "x.parquet")
    name = {"question": "Q"}.get(column, column)
    with pytest.raises(UserError, match=rf"x.parquet, row 1: {name} must be text, got \['one', 'two'\]"):
        run(monkeypatch, "x.parquet")


@needs_pyarrow
def test_no_number_in_a_table_is_no_text(here, monkeypatch, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"path": ["rec/a.wav", "rec/b.flac", "rec/c.mp3"], "label": [float("nan"), None, 2.5]})
    parquet.write_table(table, here / "x.parquet")
    run(monkeypatch, "x.parquet")
    assert made(capsys) == [("c.mp3", "2.5")]


def test_without_pyarrow_it_is_told_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (here / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="pip install pyarrow"):
        run(monkeypatch, "x.parquet")


def test_tables_of_one_name_do_not_write_over_each_others_clips(here, monkeypatch, capsys):
    for folder in ("x", "y"):
        noise(here / folder / "a.wav", 2.0, rate=RATE if folder == "x" else 2 * RATE)
        rows = [{"audio_filepath": "a.wav", "offset": 1, "duration": 0.5, "text": folder}]
        (here / folder / "m.json").write_text(json.dumps(rows))
    run(monkeypatch, "x/m.json", "y/m.json")
    assert made(capsys) == [("a-00001000.flac", "x"), ("a-00001000-1.flac", "y")]


def test_what_cannot_be_used_is_counted_and_the_rest_written(here, monkeypatch, capsys):
    (here / "rec/broken.wav").write_bytes(b"RIFF")
    (here / "own.csv").write_text("path,text\nrec/a.wav,one\nrec/gone.wav,two\nrec/b.flac,\nrec/broken.wav,four\n")
    run(monkeypatch, "own.csv")
    out = capsys.readouterr().out
    assert made() == [("a.wav", "one")]
    for told in ("line 3: no such file: rec/gone.wav", "line 4: no text", "line 5: ", "broken.wav", "1 entries"):
        assert told in out


def test_split_writes_files_that_share_no_clip(here, monkeypatch, capsys):
    for i in range(20):
        noise(here / f"many/{i}.wav", 0.2)
        (here / f"many/{i}.txt").write_text(f"text {i}")
    run(monkeypatch, "many", "--split", "0.8", "0.2", "0")
    counts = [len(json.loads(Path(f"ann/own_{part}.json").read_text())["annotation"]) for part in ("train", "valid")]
    assert counts == [16, 4]
    out = capsys.readouterr().out
    files = [f"datasets.{part}_ann_path={here}/ann/own_{part}.json" for part in ("train", "valid")]
    command = f"cd {ROOT} && python train.py --cfg-path configs/own.yaml --options datasets.prefix={here} "
    assert out.endswith(f"  {command}{' '.join(files)}\n")
    assert "   ann/own_train.json: 16 entries\n   ann/own_valid.json: 4 entries\n" in out
    assert "own_test.json" not in out
    with pytest.raises(UserError, match=r"own_train.json.*--force"):
        run(monkeypatch, "many", "--split", "0.8", "0.2", "0")


def test_a_task_without_prompt_and_a_task_without_question_are_told(here, monkeypatch, capsys):
    (here / "own.csv").write_text("path,text,task\nrec/a.wav,one,audiocaptions\nrec/b.flac,two,QA\nrec/c.mp3,three,\n")
    run(monkeypatch, "own.csv", "--task", "gender_recognition")
    out = capsys.readouterr().out
    assert "did you mean audiocaption?" in out
    assert "1 entries of the task QA ask nothing" in out
    assert json.loads(Path("ann/own.json").read_text())["annotation"][2]["task"] == "gender_recognition"
    assert "train.py" not in out  # it would be refused
    assert f"datasets.prefix={here}" in out


def test_in_the_projects_root_the_command_is_short(here, monkeypatch, capsys):
    monkeypatch.setattr(make_annotations, "ROOT", here)
    (here / "configs").symlink_to(ROOT / "configs")
    (here / "own.csv").write_text("path,text\nrec/a.wav,one\nrec/b.flac,two\n")
    run(monkeypatch, "own.csv", "--split", "0.5", "0.5", "0")
    (command,) = [line for line in capsys.readouterr().out.splitlines() if "train.py" in line]
    assert command.startswith("  python train.py --cfg-path configs/own.yaml --options datasets.prefix=")
    assert command.endswith("datasets.train_ann_path=ann/own_train.json datasets.valid_ann_path=ann/own_valid.json")


@pytest.mark.parametrize("split", [(), ("--split", "1", "0", "0"), ("--split", "0.5", "0", "0.5")])
def test_without_a_validation_file_it_is_told_how_to_get_one(here, monkeypatch, capsys, split):
    (here / "own.csv").write_text("path,text\nrec/a.wav,one\nrec/b.flac,two\n")
    run(monkeypatch, "own.csv", *split)
    out = capsys.readouterr().out
    assert "a validation file is needed, too: the same command with --split 0.9 0.1 0 --force" in out
    assert f"datasets.prefix={here}" in out
    assert "train.py" not in out


def test_clips_without_texts_come_with_the_command_that_has_them_answered(here, monkeypatch, capsys):
    run(monkeypatch, "rec", "--without-text")
    command = f"python evaluate.py --mode generate --ann {here}/ann/own.json --options datasets.prefix={here}\n"
    assert capsys.readouterr().out.endswith(command)


@pytest.mark.usefixtures("here")
def test_a_task_with_a_test_prompt_alone_can_be_answered(monkeypatch, capsys):
    run(monkeypatch, "rec", "--without-text", "--task", "lyrics_recognition")
    out = capsys.readouterr().out
    assert "--mode generate" in out
    assert "which has no prompt" not in out


def test_a_task_that_nobody_knows_gets_no_training_command(here, monkeypatch, capsys):
    (here / "own.csv").write_text("path,text\nrec/a.wav,one\nrec/b.flac,two\n")
    run(monkeypatch, "own.csv", "--task", "transcribe", "--split", "0.5", "0.5", "0")
    out = capsys.readouterr().out
    assert "'transcribe', which has no prompt" in out
    assert "to be mended before it can be used: what the notes say" in out
    assert "train.py" not in out


def test_a_clip_with_two_texts_is_told(here, monkeypatch, capsys):
    rows = ["rec/a.wav,one", "rec/a.wav,another", "rec/b.flac,two", "rec/b.flac,two", "rec/c.mp3,three"]
    (here / "own.csv").write_text("\n".join(["path,text", *rows]))
    run(monkeypatch, "own.csv")
    out = capsys.readouterr().out
    assert "1 clips come with different texts for the same question, such as /rec/a.wav: 'one' and 'another'" in out
    assert "1 entries stand twice" in out


@pytest.mark.parametrize("given", ["rec", "list.csv", "table.csv"])
def test_what_can_be_done_about_clips_without_text_is_told_once(here, monkeypatch, capsys, given):
    for i in range(20):
        noise(here / f"rec/{i}.wav", 0.1)
    names = [f"rec/{i}.wav" for i in range(20)]
    (here / "list.csv").write_text("\n".join(["path", *names]))
    (here / "table.csv").write_text("\n".join(["path,text", *(f"{name}," for name in names)]))
    with pytest.raises(UserError) as error:
        run(monkeypatch, given)
    assert str(error.value).count(": no text") == 3
    assert str(error.value).count("NAME.txt beside NAME.wav") == 1
    for way in ("--columns text=COLUMN", "--without-text"):
        assert way in str(error.value)
    (here / "rec/0.txt").write_text("zero")
    (here / "table.csv").write_text((here / "table.csv").read_text().replace("0.wav,", "0.wav,zero") + "\ngone.wav,x")
    run(monkeypatch, given)
    out = capsys.readouterr().out
    assert out.count(": no text") == (2 if given == "table.csv" else 3)  # of other reasons more is seen
    assert out.count("NAME.txt beside NAME.wav") == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "quoted tsv, as Excel and pandas write it", "jsonl", "one json list"])
def test_a_byte_order_mark_tells_the_encoding(here, monkeypatch, capsys, kind, encoding):
    name, content = TABLES[kind]
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"  # these write their own
    (here / name).write_bytes(f"{mark}{content}".encode(encoding))
    run(monkeypatch, name)
    assert made(capsys) == THREE


@pytest.mark.usefixtures("here")
def test_a_source_that_is_not_there_may_be_another_one(monkeypatch):
    with pytest.raises(UserError, match=r"rce does not exist; did you mean rec\?"):
        run(monkeypatch, "rce")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("shares", [("90", "10"), ("90%", "10%", "0"), ("90", "10", "0")])
def test_a_split_that_is_written_otherwise_is_told_its_form(monkeypatch, capsys, shares):
    with pytest.raises((UserError, SystemExit)) as error:
        run(monkeypatch, "rec", "--split", *shares)
    said = f"{error.value}\n{capsys.readouterr().err}"
    assert "0.9 0.1 0" in said
    assert "--split TRAIN VALID TEST" in said or "--split 0.9 0.1 0" in said


BAD = {
    "no such column": ("x.csv", "uri,said\nrec/a.wav,one\n", ("uri, said", "--columns path=COLUMN")),
    "no text column": ("x.csv", "path,said\nrec/a.wav,one\n", ("--columns text=COLUMN", "--without-text")),
    "three columns without header": ("x.txt", "rec/a.wav|7|one\nrec/b.flac|8|two\n", ("line 1", "3 'one'", "text=N")),
    "too many values": ("x.csv", "path,text\nrec/a.wav,one, two\n", ("x.csv, line 2", "3 values")),
    "no path": ("x.csv", "path,text\n,one\n", ("line 2", "path is empty")),
    "a quote too many": ("x.csv", 'path,text\nrec/a.wav,"he said "no""\n', ("x.csv, line", "quotation mark")),
    "empty": ("x.csv", "", ("no entry",)),
    "nothing between the commas": ("x.csv", ",,\n,,\n", ("no entry",)),
    "a header alone": ("x.csv", "path,text\n", ("no entry",)),
    "Latin-1": ("x.csv", "path,text\nrec/a.wav,für\n".encode("latin-1"), ("x.csv", "CSV UTF-8", "python -c")),
    "half of UTF-16": ("x.csv", "path,text\nrec/a.wav,one\n".encode("utf-16")[:-1], ("x.csv", "CSV UTF-8")),
    "half an object": ("x.jsonl", '{"path": "rec/a.wav", "text": "one"}\n{"path": ', ("x.jsonl, line 2", "no JSON")),
    "no object": ("x.jsonl", '{"path": "rec/a.wav", "text": "one"}\n7\n', ("line 2", "got '7'")),
    "a list for a text": ("x.jsonl", '{"path": "rec/a.wav", "text": ["one"]}\n', ("line 1", "text must be text")),
    "a command": ("wav.scp", "u1 sph2pipe -f wav x.sph |\n", ("line 1", "is a command")),
    "a name twice": ("wav.scp", "u1 rec/a.wav\n\nu1 rec/b.flac\n", ("wav.scp, line 3", "u1 stands already in line 1")),
    "a marker": ("x.csv", "path,text\nrec/a.wav,<SpeechHere> one\n", ("line 2", "'<SpeechHere>'", "take it out")),
    "the end": ("x.csv", "path,text\nrec/a.wav,one</s>\n", ("line 2", "'</s>'", "take it out")),
    "half a character": ("x.jsonl", '{"path": "rec/a.wav", "text": "\\ud83d"}\n', ("line 1", "UTF-8")),
    "time": ("x.jsonl", '{"path": "rec/a.wav", "text": "a", "offset": "1"}\n', ("line 1", "offset = '1'")),
    "compressed": ("x.csv.gz", gzip.compress(b"path,text\n"), ("gunzip",)),
    "a bomb": ("x.jsonl.gz", gzip.compress(b"[" + bytes(70_000_000)), ("x.jsonl.gz unpacks to more than 300 times",)),
    "a damaged .gz": ("x.jsonl.gz", gzip.compress(b'[{"path": "rec/a.wav"}]')[:-9], ("x.jsonl.gz cannot be read",)),
    "a recording": ("x.wav", b"RIFF", ("is a recording", "folder")),
    "no clip at all": ("x.csv", "path,text\ngone.wav,one\n", ("nothing is left", "gone.wav")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_with_the_place_and_writes_nothing(case, here, monkeypatch):
    name, content, told = BAD[case]
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as error:
        run(monkeypatch, name)
    assert [part for part in told if part not in str(error.value)] == []
    assert not Path("ann/own.json").exists()


def test_clips_that_are_silent_broken_or_too_short_for_their_text_are_told(here, monkeypatch, capsys):
    soundfile.write(here / "rec/mute.wav", np.zeros(3 * RATE), RATE)
    noise(here / "rec/blip.wav", 50 / RATE)
    noise(here / "rec/short.wav", 0.5)
    noise(here / "rec/cut.flac", 3)
    content = (here / "rec/cut.flac").read_bytes()
    (here / "rec/cut.flac").write_bytes(content[: len(content) // 2])
    names = ["a.wav", "mute.wav", "blip.wav", "short.wav", "cut.flac"]
    (here / "rec/own.csv").write_text("path,text\n" + "".join(f"{name},a clock ticks in a hall\n" for name in names))
    run(monkeypatch, "rec/own.csv")
    output = capsys.readouterr().out
    folder = here / "rec"
    assert f"note: 1 clips are silent, as of a muted microphone: {folder}/mute.wav\n" in output
    assert f"note: 1 clips are shorter than 0.1 s: {folder}/blip.wav\n" in output
    assert f"note: 1 clips break before their end: {folder}/cut.flac: " in output
    crammed = f"{folder}/short.wav (23 characters in 0.5 s)"
    assert f"note: 1 texts are longer than can be spoken in their clips' time: {crammed}\n" in output
    run(monkeypatch, "rec/own.csv", "--task", "audiocaption", "--force")  # a caption may be longer than its clip
    assert "longer than can be spoken" not in capsys.readouterr().out


def test_so_many_clips_are_not_decoded_and_that_is_told(here, monkeypatch, capsys):
    monkeypatch.setattr("util.own_data.clips._DECODED", (2, 3600.0))
    (here / "rec/own.csv").write_text("path,text\n" + "".join(f"{name},x\n" for name, _ in THREE))
    run(monkeypatch, "rec/own.csv")
    assert "not decoded here: util/anns_inspector.py --check-integrity" in capsys.readouterr().out
