"""Annotation files: defaults, checks, and an index that is made once and shared."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

from salmonn.common import packed, processes
from salmonn.common.errors import UserError
from salmonn.data import annotation_index, annotation_scan
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import LoadingError, load
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG


def write_annotations(path, entries):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        json.dump({"annotation": entries}, file)
    return path


def test_entries_come_back_with_defaults(tmp_path):
    for name in ("a.json", "a.json.gz"):
        path = write_annotations(
            tmp_path / name, [{"path": "/a.wav", "text": "ä 你好", "testset_id": "7"}, {"path": "b", "text": ""}]
        )
        annotations = Annotations(path)
        assert len(annotations) == 2
        assert annotations[0] == {
            "path": "/a.wav", "text": "ä 你好", "task": "asr", "Q": "", "expand_wav": [], "testset_id": "7",
        }  # fmt: skip
        with pytest.raises(IndexError):
            annotations[2]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"text": "x"}, "entry 1: no 'path'"),
        ({"path": "x"}, "entry 1: no 'text'"),
        ({"path": "x", "text": 3}, "entry 1: 'text' must be a string, got int"),
        ({"path": "", "text": "x"}, "entry 1: 'path' is empty"),
        ({"path": "x", "text": "x", "expand_wav": "y"}, "entry 1: 'expand_wav' must be a list"),
        ({"path": "x", "text": "x", "expand_wav": ["y", ""]}, "entry 1: 'expand_wav' holds an empty name"),
        ("x", "entry 1: expected an object"),
    ],
)
def test_a_bad_entry_is_named_with_file_number_and_field(tmp_path, entry, what):
    path = write_annotations(tmp_path / "a.json", [{"path": "a", "text": "b"}, entry])
    with pytest.raises(UserError) as error:
        Annotations(path)
    assert str(path) in str(error.value)
    assert what in str(error.value)


def test_many_bad_entries_are_counted_not_listed(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"text": "x"}] * 1000)
    with pytest.raises(UserError, match="1000 problems in all") as error:
        Annotations(path)
    assert len(str(error.value).splitlines()) < 10


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": []}', '{"annotation": {}}', '{"annotation": []}'])
def test_foreign_json_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        Annotations(path)


def test_text_may_be_absent_where_it_is_not_needed(tmp_path):
    path = write_annotations(tmp_path / "a.json", [{"path": "a.wav"}])
    assert Annotations(path, need_text=False)[0]["text"] == ""


# ---- the index


def index_of(path):
    return path.with_name(f".{path.name}.index")


def some_entries(n):
    return [{"path": f"/{i}.wav", "text": f"ä{{ }} {i}" * (i % 5), "task": ("asr", "QA")[i % 2]} for i in range(n)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut files as if they had hundreds of megabytes."""
    monkeypatch.setattr(annotation_scan, "candidate_ranges", partial(annotation_scan.candidate_ranges, size=300))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_file_read_in_pieces_gives_the_entries_of_json(tmp_path, indent, ascii_only):
    entries = some_entries(500)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotation": entries}, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    annotations = Annotations(path)
    assert [annotations.as_written(i) for i in range(len(annotations))] == entries
    assert [(entry.path, entry.text, entry.task) for entry in annotations.entries()] == [
        (e["path"], e["text"], e["task"]) for e in entries
    ]
    assert annotations.text_lengths.tolist() == [len(e["text"]) for e in entries]
    assert annotations.tasks == {"asr": 0, "QA": 1}


@pytest.mark.usefixtures("small_chunks")
def test_a_text_that_looks_like_the_end_of_an_entry_cuts_nothing(tmp_path):
    entries = [{"path": f"/{i}", "text": '}, {"path": "x"}, {' * 40, "extra": [{"a": {}}, {}]} for i in range(50)]
    annotations = Annotations(write_annotations(tmp_path / "a.json", entries))
    assert [annotations.as_written(i) for i in range(len(annotations))] == entries


@pytest.mark.usefixtures("small_chunks")
def test_other_keys_may_stand_around_the_entries(tmp_path):
    entries = some_entries(100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"info": {"annotation": [1]}, "annotation": entries, "licence": ["x", {}]}))
    annotations = Annotations(path)
    assert [annotations.as_written(i) for i in range(len(annotations))] == entries


@pytest.mark.usefixtures("small_chunks")
def test_malformed_json_is_told_with_file_and_entry(tmp_path):
    path = write_annotations(tmp_path / "a.json", some_entries(200))
    text = path.read_text()
    at = text.index('"/150.wav"')
    path.write_text(text[:at] + text[at:].replace(":", ";", 1))
    with pytest.raises(UserError, match=r"a\.json cannot be read: .*near entry 150"):
        Annotations(path)
    path.write_text(text[:at])
    with pytest.raises(UserError, match=r"a\.json cannot be read: .*truncated.*near entry 150"):
        Annotations(path)


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"annotation": [{"path": "a", "text": "b", "extra": "\xff"}]}')
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        Annotations(path)


def test_a_file_that_is_not_there_may_be_another_one(tmp_path):
    (tmp_path / "own.json").touch()
    with pytest.raises(UserError, match=r"own\.jsn does not exist; did you mean .*/own\.json\?"):
        Annotations(tmp_path / "own.jsn")


def test_the_second_open_reads_the_index_and_not_the_file(tmp_path, monkeypatch):
    path = write_annotations(tmp_path / "a.json", some_entries(10))
    first = Annotations(path)
    monkeypatch.setattr(annotation_index, "scan", lambda *_: pytest.fail("scanned again"))
    second = Annotations(path)
    assert [second[i] for i in range(10)] == [first[i] for i in range(10)]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_changed_file_gets_a_new_index(tmp_path, name):
    path = write_annotations(tmp_path / name, some_entries(10))
    assert len(Annotations(path)) == 10
    write_annotations(path, some_entries(12))
    assert len(Annotations(path)) == 12


@pytest.mark.parametrize("damage", [b"", b"{}", b"rubbish\n" * 100])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    path = write_annotations(tmp_path / "a.json", some_entries(10))
    Annotations(path)
    index_of(path).write_bytes(damage)
    assert Annotations(path)[9]["path"] == "/9.wav"


def flipped(at: float) -> Callable[[bytes], bytes]:
    """One bit at a share of a file."""

    def flip(content: bytes) -> bytes:
        i = min(int(at * len(content)), len(content) - 1)
        return content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :]

    return flip


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize(
    "damage",
    [
        *map(flipped, (0.001, 0.005, 0.02, 0.55, 0.75, 0.95, 1)),
        lambda content: content[:-1], lambda content: content[: len(content) // 2], lambda content: content[:4096],
        lambda content: content + b"x", lambda content: content[:-3000] + bytes(3000), lambda _: bytes(9000),
    ],
)  # fmt: skip
def test_an_index_with_any_damage_is_told_and_made_anew(tmp_path, caplog, name, damage):
    """Where it is believed, texts are silently others, or there is a traceback for ever."""
    entries = some_entries(400)
    path = write_annotations(tmp_path / name, entries)
    Annotations(path)
    whole = index_of(path).read_bytes()
    index_of(path).write_bytes(damage(whole))
    annotations = Annotations(path)
    assert [annotations.as_written(i) for i in range(400)] == entries
    assert [record.message for record in caplog.records if "is damaged and made anew" in record.message]
    assert len(caplog.records) == 1
    assert index_of(path).read_bytes() == whole


def test_an_index_of_another_version_is_made_anew_without_a_word(tmp_path, caplog):
    path = write_annotations(tmp_path / "a.json", some_entries(10))
    index_of(path).write_bytes(b'{"version":3,"source_size":10,"n":1}\n' + bytes(5000))
    assert Annotations(path)[9]["path"] == "/9.wav"
    assert not caplog.records


@pytest.mark.usefixtures("small_chunks")
def test_a_compressed_file_is_unpacked_once_into_its_index(tmp_path):
    path = write_annotations(tmp_path / "a.json.gz", some_entries(300))
    Annotations(path)
    annotations = Annotations(path)
    assert [annotations.as_written(i) for i in range(300)] == some_entries(300)
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock") == [
        ".a.json.gz.index",
        "a.json.gz",
    ]


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(tmp_path, monkeypatch):
    path = write_annotations(tmp_path / "a.json", some_entries(10))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        annotation_index, "_writable", lambda folder: folder.mkdir(parents=True, exist_ok=True) or folder != tmp_path
    )
    assert len(Annotations(path)) == 10
    assert not index_of(path).exists()
    assert [file.suffix for file in (tmp_path / "cache/salmonn").iterdir() if file.suffix != ".lock"] == [".index"]
    monkeypatch.setattr(annotation_index, "scan", lambda *_: pytest.fail("scanned again"))
    assert len(Annotations(path)) == 10


def test_processes_that_start_together_make_one_index(tmp_path):
    path = write_annotations(tmp_path / "a.json", some_entries(20_000))
    code = (
        "import sys; from salmonn.data import annotation_index as index\n"
        "from salmonn.data.annotations import Annotations\n"
        "made, scan = [], index.scan\n"
        "index.scan = lambda *a: made.append(1) or scan(*a)\n"
        f"print(len(Annotations({str(path)!r})), len(made))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) for _ in range(4)]
    answers = [process.communicate(timeout=HANG)[0].split() for process in running]
    assert [int(n) for n, _ in answers] == [20_000] * 4
    assert sum(int(made) for _, made in answers) == 1
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("rewritten", ["x" * 10, "[" + "1, " * 3000 + "1]", '"' + "x" * 9000 + '"', "", " " * 9000])
def test_a_file_changed_in_place_while_in_use_is_told_with_the_remedy_and_gives_no_wrong_entry(tmp_path, rewritten):
    path = write_annotations(tmp_path / "a.json", some_entries(50))
    annotations = Annotations(path)
    path.write_text(rewritten)
    for read in (lambda: annotations[40], lambda: list(annotations.entries())):
        with pytest.raises(
            UserError, match=r"a\.json was changed while it was in use(.|\n)*Start the same command again"
        ):
            read()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_whose_file_is_rewritten_ends_as_by_any_trouble_of_its_loader(tmp_path, num_workers):
    """Which it saves before."""
    path = write_annotations(tmp_path / "a.json", some_entries(50))
    dataset = SALMONNDataset(Annotations(path), ClipPaths(str(tmp_path)), max_seconds=1.0)
    path.write_text("{}")
    with pytest.raises(LoadingError, match=r"a\.json was changed while it was in use"):
        next(load(dataset, [[0, 1]], num_workers))


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_annotations_travel_to_other_processes_small_and_as_they_were_opened(tmp_path, name):
    path = write_annotations(tmp_path / name, some_entries(2000))
    annotations = Annotations(path)
    last = annotations[1999]  # reads the index
    path.unlink()
    Annotations(write_annotations(path, some_entries(3)))  # a new index in the old one's place
    [(_, found)] = processes.in_processes(annotations.__getitem__, [(1999,)], jobs=1)
    assert found == last
    parcel = processes.Parcel(annotations.__getitem__)
    assert os.fstat(parcel.file.fileno()).st_size < 2000
    with pytest.raises(TypeError, match=r"processes\.Parcel"):
        pickle.dumps(annotations)


A, B = (json.dumps({"path": f"{name}.wav", "text": "said"}) for name in "ab")
TWO_LISTS = {
    "one after the other": f'{{"annotation": [{A}], "annotation": [{B}]}}',
    "something between": f'{{"annotation": [{A}], "info": {{"annotation": [1]}}, "annotation": [{A}, {B}]}}',
    "the same twice": f'{{"annotation": [{A}], "annotation": [{A}]}}',
    "the last empty": f'{{"annotation": [{A}], "annotation": []}}',
    "the first empty": f'{{"annotation": [], "annotation": [{A}]}}',
    "the first null": f'{{"annotation": null, "annotation": [{A}]}}',
    "in other letters": f'{{"annot\\u0061tion": [{A}], "annotation": [{B}]}}',
}


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("kind", TWO_LISTS)
def test_of_two_lists_in_a_file_none_is_lost_in_silence(tmp_path, kind, name):
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt") as file:
        file.write(TWO_LISTS[kind])
    with pytest.raises(UserError, match=rf"{name}: the key 'annotation' stands there more than once"):
        Annotations(tmp_path / name)


def test_a_list_is_the_only_one_where_the_key_stands_again_inside_something_else(tmp_path):
    path = tmp_path / "a.json"
    for text in (
        f'{{"annotation": [{A}], "info": {{"annotation": [{B}]}}}}',
        f'{{"info": "\\"annotation\\": []", "annotation": [{A}], "copy": [{A}]}}',
        f'{{"copy": [{A}], "annotation": [{A}]}}',
        f'{{"annotation": [{A[:-1]}, "annotation": [{B}]}}]}}',
    ):
        path.write_text(text)
        assert [entry["path"] for entry in map(Annotations(path).as_written, range(1))] == ["a.wav"]
        assert len(Annotations(path)) == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("more", ['"text": "other"', '"path": "other.wav"', '"Q": "one?", "Q": "two?"', '"text": null'])
def test_of_two_values_of_one_key_none_is_lost_in_silence(tmp_path, more):
    path = write_annotations(tmp_path / "a.json", some_entries(300))
    path.write_text(path.read_text().replace('"/150.wav"', f'"/150.wav", {more}'))
    key = more[1:].partition('"')[0]
    if more.endswith("null"):  # the value behind it counts, as it should
        assert Annotations(path)[150]["text"] == some_entries(300)[150]["text"]
        return
    with pytest.raises(UserError, match=rf"a\.json:\n  entry 150: a key stands twice: '{key}', of which only the last"):
        Annotations(path)


def test_known_names_inside_other_values_are_no_repeated_keys(tmp_path):
    more = {"meta": {"path": "x", "text": "y", "Q": [{"Q": "z"}]}, "kind": "text", "Q": None, "expand_wav": []}
    entries = [{"path": "a", "text": 'he wrote "text": twice'} | more, {"path": "b", "text": "", **more}]
    found = Annotations(write_annotations(tmp_path / "a.json", entries)).entries()
    assert [entry.path for entry in found] == ["a", "b"]


@pytest.mark.usefixtures("small_chunks")
def test_a_wrong_value_behind_a_repeated_key_loses_no_entries(tmp_path):
    path = write_annotations(tmp_path / "a.json", some_entries(300))
    path.write_text(path.read_text().replace('"/150.wav"', '"/150.wav", "Q": 5, "Q": "x"'))
    with pytest.raises(UserError, match="entry 150: a key stands twice"):
        Annotations(path)


@pytest.mark.usefixtures("small_chunks")
def test_lists_of_objects_inside_entries_are_joined_and_not_read_as_a_whole(tmp_path, monkeypatch):
    entries = [{"path": f"/{i}", "text": "t", "segments": [{"a": 1}, {"b": 2}] * 5} for i in range(200)]
    path = write_annotations(tmp_path / "a.json", entries)
    monkeypatch.setattr(annotation_scan, "whole_array", lambda *_: pytest.fail("read as a whole"))
    annotations = Annotations(path)
    assert [annotations.as_written(i) for i in range(200)] == entries


@pytest.mark.parametrize(
    "content",
    ['{"path": "/a", "text": "t"}', '{"path": "/a"}, {"path": "/b"}', '{"annotation": {"a": 1}}', '"x"', "[]"],
)
def test_a_file_without_the_annotation_list_is_told_as_such(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json(: expected| cannot be read)"):
        Annotations(tmp_path / "a.json")


def test_numbers_beyond_any_type_do_no_harm(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"annotation": [{"path": "a", "text": "b", "score": 1e999, "n": 123456789012345678901234567890}]}')
    assert Annotations(path)[0]["path"] == "a"


def test_damage_in_a_compressed_file_is_one_message(tmp_path):
    path = write_annotations(tmp_path / "a.json.gz", some_entries(1000))
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) - 20, 50):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.json\.gz cannot be read"):
        Annotations(path)


@pytest.mark.parametrize("depth", [1_100, 2_000, 100_000])
@pytest.mark.parametrize("where", ['[{"path": "a", "text": "b", "x": %s}]', '[{"path": %s, "text": "b"}]', "%s"])
@pytest.mark.parametrize("sign", ["[]", "{}"])
def test_deep_nesting_is_one_message(tmp_path, depth, where, sign):
    begin, end = ("[", "]") if sign == "[]" else ('{"a":', "}")
    deep = tmp_path / "deep.json"
    deep.write_text('{"annotation": ' + where % (begin * depth + "1" + end * depth) + "}")
    with pytest.raises(UserError, match=r"deep\.json"):
        Annotations(deep)


@pytest.mark.parametrize("filling", [" ", "\\n", '"}, {"path": "a", "text": "b'])
def test_a_small_compressed_file_of_very_much_text_is_refused(tmp_path, monkeypatch, filling):
    monkeypatch.setattr(packed, "_SMALL", 1 << 20)
    path = tmp_path / "a.json.gz"
    with gzip.open(path, "wb") as file:
        file.write(f'{{"annotation": [{{"path": "a", "text": "b{filling * (8_000_000 // len(filling))}"}}]}}'.encode())
    with pytest.raises(UserError, match=r"a\.json\.gz unpacks to more than 300 times its size"):
        Annotations(path)
    assert not list(tmp_path.glob(".a.json.gz.index"))


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_an_index_that_has_no_room_beside_the_file_goes_to_the_cache_folder(tmp_path, monkeypatch, name):
    (tmp_path / "ann").mkdir()
    path = write_annotations(tmp_path / "ann" / name, some_entries(3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build = annotation_index._build

    def full(source, status, place, end_symbols):
        if place.parent in fulls:
            raise OSError(28, "No space left on device")
        build(source, status, place, end_symbols)

    monkeypatch.setattr(annotation_index, "_build", full)
    fulls = [tmp_path / "ann"]
    assert len(Annotations(path)) == 3
    assert list((tmp_path / "cache/salmonn").glob(f"{name}.*.index"))
    fulls.append(tmp_path / "cache/salmonn")
    path.touch()
    with pytest.raises(UserError, match=r"no room for the index .* cannot be written .*No space left.*XDG_CACHE_HOME"):
        Annotations(path)


def test_what_cannot_be_written_is_not_said_of_the_annotation_file(tmp_path, monkeypatch):
    path = write_annotations(tmp_path / "a.json.gz", some_entries(3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = []

    class Full:
        def __init__(self, dir):
            folders.append(dir)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(annotation_index, "_writable", lambda folder: folder.mkdir(parents=True, exist_ok=True) is None)
    monkeypatch.setattr(annotation_index.tempfile, "TemporaryFile", Full)
    with pytest.raises(UserError, match="no room for the index"):
        Annotations(path)
    assert folders == [tmp_path, tmp_path / "cache/salmonn"]


def test_more_tasks_than_anybody_needs_are_kept_apart(tmp_path):
    entries = [{"path": "a", "text": "b", "task": f"task {i}"} for i in range(70_000)]
    annotations = Annotations(write_annotations(tmp_path / "a.json", entries))
    assert annotations.tasks["task 69999"] == 69_999


# ---- what would end a run in the middle of an epoch


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"task": ""}, "entry 1: 'task' is empty"),
        ({"task": " \t"}, "entry 1: 'task' is empty"),
        ({"task": "QA", "Q": "What is <SpeechHere>?"}, "entry 1: 'Q' holds '<SpeechHere>'"),
        ({"task": "QA", "Q": "<Speech>"}, "entry 1: 'Q' holds '<Speech>'"),
        ({"text": "a <SpeechHere> b"}, "entry 1: 'text' holds '<SpeechHere>'"),
        ({"text": "<Speech></Speech>"}, "entry 1: 'text' holds '</Speech>'"),
    ],
)
def test_what_would_break_a_prompt_is_found_when_the_file_is_indexed(tmp_path, name, entry, what):
    path = write_annotations(tmp_path / name, [{"path": "a", "text": "b"}, {"path": "a", "text": "b", **entry}])
    for need_text in (True, False):
        with pytest.raises(UserError) as error:
            Annotations(path, need_text)
        assert str(path) in str(error.value)
        assert what in str(error.value)


def test_escapes_hide_nothing(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"annotation": [{"path": "a", "text": "b", "Q": "\\u003cSpeechHere\\u003e"}]}')
    with pytest.raises(UserError, match="entry 0: 'Q' holds '<SpeechHere>'"):
        Annotations(path)
    path.write_text('{"annotation": [{"path": "a", "text": "one <\\/s> two"}]}')
    with pytest.raises(UserError, match="entry 0: 'text' holds the end symbol '</s>'"):
        Annotations(path, end_sym="</s>")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("symbol", ["</s>", "<|im_end|>", "[END]"])
def test_the_end_symbol_of_the_run_may_stand_in_no_text(tmp_path, symbol):
    entries = some_entries(300)
    entries[7]["text"] = f"one {symbol} two"
    for i in range(100, 130):
        entries[i] |= {"Q": f"{symbol}?"}
    path = write_annotations(tmp_path / "a.json", entries)
    assert len(Annotations(path, end_sym="<eos>")) == 300
    for _ in range(2):  # with an index that does not know the symbol, and with one that does
        with pytest.raises(UserError) as error:
            Annotations(path, end_sym=symbol)
        for part in (str(path), f"entry 7: 'text' holds the end symbol {symbol!r}", "entry 100: 'Q'", "31 problems"):
            assert part in str(error.value)
    assert len(Annotations(path)) == 300  # who asks for no answers may read it


def test_runs_with_different_end_symbols_share_an_index(tmp_path, monkeypatch):
    path = write_annotations(tmp_path / "a.json", some_entries(10))
    for symbol in ("</s>", "<eos>"):
        Annotations(path, end_sym=symbol)
    monkeypatch.setattr(annotation_index, "scan", lambda *_: pytest.fail("scanned again"))
    for symbol in ("</s>", "<eos>", ""):
        Annotations(path, end_sym=symbol)


def test_entries_that_ask_nothing_are_known_by_task(tmp_path):
    entries = [{"path": "a", "text": "b", "task": "QA", "Q": q} for q in ("what?", "", " \n", None)]
    entries += [{"path": "a", "text": "b"}, {"path": "a", "text": "b", "task": "QA"}]
    annotations = Annotations(write_annotations(tmp_path / "a.json", entries))
    assert annotations.without_question("QA").tolist() == [1, 2, 3, 5]
    assert annotations.without_question("asr").tolist() == [4]
    assert annotations.without_question("absent").tolist() == []


def test_an_index_that_a_full_disk_cuts_is_none(tmp_path):
    """Numpy's own writer said nothing, and the index was believed: it fitted the checksum of what was there."""
    entries = [{"path": f"{i}.wav", "text": "x"} for i in range(200)]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": entries}))
    code = "import resource, sys; from pathlib import Path; from salmonn.common.errors import UserError\n"
    code += "from salmonn.data.annotations import Annotations\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"  # behind the first line, amid the records
    code += "try: print(len(Annotations(Path(sys.argv[1]))))\nexcept UserError as error: print(error)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path / "a.json")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "no room for the index" in result.stdout, result.stderr
    assert len(Annotations(tmp_path / "a.json")) == 200
