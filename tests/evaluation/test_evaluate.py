"""evaluate.py with a stub in the model's place: what is asked, heard, scored, written and refused."""

from functools import partial
from pathlib import Path

import pytest

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.evaluation.answering import answer_all, generate_batch
from salmonn.evaluation.clips import clips_of
from salmonn.evaluation.pipeline import evaluate
from salmonn.evaluation.requests import Prediction, Request, plan_requests, shuffle_audio
from salmonn.evaluation.submission import check_submission
from salmonn.evaluation.tasks import EvalTask
from tests.fixtures.commands import run_command
from tests.fixtures.stub_model import WORDS, StubModel, config_for, entry, results


@pytest.mark.usefixtures("stub_model")
def test_valid_asr_scores_counts_and_lists(stub_world: Path, capsys: pytest.CaptureFixture):
    entries = [
        entry(2, text="Blue dog!"),
        entry("broken", text="never heard"),
        entry(1, text="a red dog"),
        entry(4, text="gray dog"),
        entry(3, text="green dog"),
    ]
    evaluate(config_for(stub_world, entries, "evaluate.shuffled_control=true"), "valid_asr")

    report, predictions = results(stub_world, "valid_asr")
    assert report["scores"]["wer"] == pytest.approx(2 / 9)  # "a" deleted, grey for gray
    assert report["scores_finished"] == {"wer": pytest.approx(1 / 4)}  # blue and grey
    # heard 2 1 4 3, shuffled by two: 4 3 2 1; three colours wrong and "a" deleted, and blue for gray
    assert report["scores"]["wer_shuffled"] == pytest.approx(5 / 9)
    assert [report[key] for key in ("n", "finished", "unfinished", "empty_outputs")] == [5, 2, 2, 0]
    assert [clip["path"] for clip in report["unreadable"]] == ["broken.wav"]
    assert report["unreadable"][0]["reason"]
    assert [line["text"] for line in predictions] == ["blue dog", "", "red dog", "grey dog", "green dog"]
    assert predictions[0]["text_shuffled"] == "grey dog"
    assert predictions[2]["prompt"] == "USER: <Speech><SpeechHere></Speech> Write it.\nASSISTANT:"
    shown = capsys.readouterr().out
    assert "22.22 %" in shown
    assert "broken.wav" in shown
    assert "22.22 %" in (stub_world / "results/valid_asr/report.md").read_text()


def test_entries_of_one_clip_are_references_and_the_clip_is_answered_once(stub_world: Path, stub_model: StubModel):
    entries = [
        entry(1, text="a dog", testset_id="x", task="audiocaption"),
        entry(2, text="Blue dog.", testset_id="y", task="audiocaption"),
        entry(1, text="Red dog", testset_id="x", task="audiocaption"),
    ]
    evaluate(config_for(stub_world, entries, key="valid_ann_path_aac"), "valid_aac")
    report, predictions = results(stub_world, "valid_aac")
    assert [answer for _, answer in stub_model.heard] == ["red", "blue"]
    assert [line["references"] for line in predictions] == [["a dog", "Red dog"], ["Blue dog."]]
    assert (report["entries"], report["n"], report["references"]) == (3, 2, 3)
    assert report["scores"]["exact"] == 1.0
    assert set(report["scores"]) == {"spider", "meteor", "cider_d", "rouge_l", "exact"}
    assert "aac-metrics-download" in report["unavailable"]["spider"]  # what is missing here, and how to get it
    assert any(note.startswith("Caption tokens: ") for note in report["notes"])


def test_entries_without_ids_are_one_clip_when_path_task_and_question_agree():
    entries = [
        entry(1, text="a"),
        entry(1, text="b"),
        entry(1, text="c", expand_wav=["2.wav"]),
        entry(1, text="d", Q="?"),
    ]
    clips = clips_of(entries, EvalTask("valid_asr", accepts=["asr"], metrics=["wer"]), "ann.json")
    assert [clip.references for clip in clips] == [("a", "b"), ("c",), ("d",)]


@pytest.mark.usefixtures("stub_model")
def test_submission_has_every_id_once_in_order_and_a_full_stop_for_an_unreadable_clip(stub_world: Path):
    entries = [entry(3, testset_id="c-3"), entry("broken", testset_id=7), entry(2, testset_id="a,2")]
    evaluate(config_for(stub_world, entries, key="test_ann_path"), "submission_asr")
    content = (stub_world / "results/submission_asr/submission.csv").read_bytes()
    assert content == b'testset_id,text\nc-3,green dog\n7,.\n"a,2",blue dog\n'
    report, _ = results(stub_world, "submission_asr")
    assert report["scores"] == {}
    assert any("without an answer" in note and "broken.wav" in note for note in report["notes"])
    assert any(
        "1 texts that the official validator takes for missing end in a full stop: 7 ('')" in n for n in report["notes"]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the header must be testset_id,text"),
        ("testset_id,text,score\na,x,1\nb,y,1\n", "the header must be"),
        ("testset_id,text\na,x,1\nb,y\n", "1 rows have not exactly two columns: row 1"),
        ("testset_id,text\na,x\na,y\nb,y\n", "1 ids occur more than once: a"),
        ("testset_id,text\na,x\n", "1 ids are missing: b"),
        ("testset_id,text\na,x\nb,y\nc,z\n", "1 ids are not in the set: c"),
        ("testset_id,text\nb,y\na,x\n", "2 ids are not in the order of the set: b, a"),
    ],
)
def test_a_wrong_submission_is_refused_with_what_is_wrong(content: str, message: str):
    check_submission("testset_id,text\na,x\nb,y\n", ["a", "b"], "s.csv")
    with pytest.raises(UserError, match=message):
        check_submission(content, ["a", "b"], "s.csv")


@pytest.mark.usefixtures("stub_model")
@pytest.mark.parametrize(
    ("mode", "entries", "message"),
    [
        ("submission_asr", [entry(1, testset_id="a"), entry(2)], r"1 entries have no testset_id: entry 1 \(2.wav\)"),
        ("submission_asr", [entry(1, testset_id="a"), entry(2, testset_id="a")], r"entry 0 \(a\), entry 1 \(a\)"),
        ("valid_asr", [entry(1, text="a", testset_id="a"), entry(2, text="b", testset_id="a")], "but not its clip"),
        ("valid_asr", [entry(1, text="a"), entry(2, text="b", task="QA")], r"another task than asr .*entry 1 \(QA\)"),
        ("valid_aac", [entry(1, text="a", task="asr")], "another task than audiocaption or audiocaption_v2"),
        ("valid_asr", [entry(1, text="a"), entry(2)], "entry 1: no 'text'"),
        ("valid_asr", [entry("broken", text="a")], "none of the 1 clips can be read"),
        ("valid_aac", [entry(1, text="a", task="audiocaption_v2")], "no prompt for the task audiocaption_v2"),
    ],
)
def test_bad_sets_are_refused_by_name(stub_world: Path, mode: str, entries: list[dict], message: str):
    with pytest.raises(UserError, match=message):
        evaluate(config_for(stub_world, entries, key="test_ann_path"), mode)
    assert not list((stub_world / "results").glob("**/*.*"))


def test_of_a_single_clip_the_control_is_left_out_and_the_report_says_so(stub_world: Path, stub_model: StubModel):
    entries = [entry(1, text="a"), {**entry(2, text="b"), "path": "gone.wav"}]
    evaluate(config_for(stub_world, entries, "evaluate.shuffled_control=true"), "valid_asr")
    report, _ = results(stub_world, "valid_asr")
    assert "wer" in report["scores"]
    assert not [name for name in report["scores"] if "shuffled" in name]
    assert len(stub_model.heard) == 1
    [note] = [note for note in report["notes"] if "shuffled_control" in note]
    assert note == (
        "evaluate.shuffled_control was not run: a single clip that can be heard has no other to exchange audio with."
    )


def test_the_mode_gives_the_task_where_the_entry_has_none_and_the_question_fills_the_prompt():
    clips = clips_of(
        [entry(1, testset_id=1, Q="now")], EvalTask("submission_aac", accepts=["audiocaption"]), "ann.json"
    )
    assert plan_requests(clips, {"audiocaption": "Describe {}"}, "p.json") == [Request(0, 0, "Describe now")]


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_shuffled_audio_leaves_no_clip_its_own_and_uses_each_once(n: int):
    requests = [Request(position, 10 * position, "p") for position in range(n)]
    shuffled = shuffle_audio(requests)
    assert all(request.audio_index != requests[request.position].audio_index for request in shuffled)
    assert sorted(request.audio_index for request in shuffled) == [request.audio_index for request in requests]


def test_two_ranks_answer_every_clip_exactly_once(
    stub_world: Path, stub_model: StubModel, monkeypatch: pytest.MonkeyPatch
):
    entries = [entry(level, text="x") for level in range(5)]
    config = config_for(stub_world, entries)
    annotations = Annotations(config.datasets.valid_ann_path_asr)
    dataset = SALMONNDataset.from_config(annotations, config.datasets, max_seconds=2.0, replace_unreadable=False)
    requests = [Request(position, position, "p") for position in range(5)]
    ask = partial(generate_batch, stub_model, config)
    shares: dict[int, list] = {}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda share: [*shares.values(), share])

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(RuntimeError, match="5 clips were to be answered, 2 answers came back"):
        answer_all(ask, dataset, requests, config, "rank 1 alone")
    shares[1] = [(1, Prediction("red dog")), (3, Prediction("green dog"))]
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    outputs = answer_all(ask, dataset, requests, config, "with rank 0")
    assert [outputs[position].text for position in range(5)] == [f"{word} dog" for word in WORDS[:5]]
    assert [word for _, word in stub_model.heard] == ["red", "green", "zero", "blue", "grey"]


def test_missing_files_are_told_in_one_message_with_exit_code_2(stub_world: Path):
    (stub_world / "empty.yaml").write_text("model: {llama_path: /nowhere/llama, whisper_path: /nowhere/whisper}")
    result = run_command("evaluate.py", "--mode", "valid_asr", "--cfg-path", str(stub_world / "empty.yaml"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for expected in ("/nowhere/llama", "/nowhere/whisper", "valid_ann_path_asr"):
        assert expected in result.stderr
    assert "this evaluation cannot start:" in result.stderr
