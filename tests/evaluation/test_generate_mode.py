"""Answers to any annotation file, checks of any submission, and tasks of one's own in Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.evaluation import METRICS, EvalTask, Metric, evaluate_tasks, provenance
from salmonn.evaluation.perplexity import measure_perplexity, points_of
from salmonn.evaluation.pipeline import evaluate, generate_answers, results_folder
from salmonn.evaluation.submission import validate_submission
from salmonn.model.salmonn import load_for_inference
from salmonn.preflight import find_problems
from tests.fixtures.commands import json_lines
from tests.fixtures.mini_world import mini_options
from tests.fixtures.stub_model import StubModel, config_for, entry


def test_any_annotation_file_is_answered_each_entry_by_its_own_prompt(stub_world: Path, stub_model: StubModel):
    entries = [entry(1), entry(2, task="QA", Q="now", text="known"), entry("broken")]
    config = config_for(stub_world, entries)
    generate_answers(config, f"{stub_world}/ann.json")
    folder = stub_world / "results/generate_ann"
    lines = json_lines(folder / "predictions.jsonl")
    assert [line["text"] for line in lines] == ["red dog", "blue dog", ""]
    assert "Write it." in lines[0]["prompt"]
    assert "Answer: now" in lines[1]["prompt"]
    assert [line["references"] for line in lines] == [[], ["known"], []]
    assert lines[2]["unreadable"]
    assert json.loads((folder / "report.json").read_text())["scores"] == {}
    assert len(stub_model.heard) == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"task": "audiocaption", "Q": "<SpeechHere>"}, "entry 1: 'Q' holds '<SpeechHere>'"),
        ({"task": ""}, "entry 1: 'task' is empty"),
    ],
)
def test_an_entry_that_nothing_can_be_asked_about_is_told_before_it_is_asked(stub_world: Path, stub_model, wrong, told):
    config = config_for(stub_world, [entry(1), entry(2, **wrong)])
    with pytest.raises(UserError, match=rf"ann\.json:(.|\n)*{told}"):
        generate_answers(config, f"{stub_world}/ann.json")
    assert not stub_model.heard


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("mode", ["generate", "table3", "perplexity"])
def test_questions_that_a_prompt_asks_and_an_entry_lacks_are_refused_as_in_training(stub_world: Path, mode: str):
    entries = [entry(1, Q="who?"), entry(2), entry(3, Q=" "), entry(4, Q=None)]
    config = config_for(stub_world, [one | {"task": "QA", "text": "red"} for one in entries])
    task = EvalTask("qa", "questions", f"{stub_world}/ann.json", metrics=["wer"])
    ask = {
        "generate": lambda: generate_answers(config, task.annotation),
        "table3": lambda: evaluate_tasks(config, [task], stub_world / "results"),
        "perplexity": lambda: measure_perplexity(config, [task], points_of(config, [], []), stub_world / "results"),
    }
    told = r"ann\.json: 3 entries have no 'Q', .*prompts\.json asks: entry 1 \(QA\), entry 2 \(QA\), entry 3 \(QA\)"
    with pytest.raises(UserError, match=told):
        ask[mode]()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Evaluation up to the moment at which a model would be loaded."""
    request.getfixturevalue("stub_model")
    monkeypatch.setattr("salmonn.model.salmonn.SALMONN.from_config", lambda *_, **__: pytest.fail("a model is loaded"))


def foreign(path: Path, kind: str) -> str:
    """A file of which nothing can be heard, by another reason each."""
    if kind == "cut":  # its header is well: what is missing shows when it is decoded
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000, format="FLAC")
        path.write_bytes(path.read_bytes()[:9000])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "page": b"<html>404</html>"}[kind])
    return path.name


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "reason"), [
    ("missing", "file does not exist"), ("empty", "empty file"), ("page", "undecodable"),
    ("cut", "undecodable|truncated"),
])  # fmt: skip
def test_a_set_of_which_nothing_can_be_heard_is_told_before_a_model_is_loaded(
    stub_world: Path, kind: str, reason: str, workers: int
):
    if workers and kind != "missing":
        pytest.skip("a process each: one kind is enough")
    entries = [{"path": foreign(stub_world / f"{i}.bin", kind), "text": "red"} for i in range(3)]
    config = config_for(stub_world, entries, f"run.num_workers={workers}")
    task = EvalTask("all", "all", f"{stub_world}/ann.json", metrics=["wer"])
    for ask in (
        lambda: generate_answers(config, task.annotation),
        lambda: evaluate(config, "valid_asr"),
        lambda: evaluate_tasks(config, [task, task], stub_world / "results"),
        lambda: measure_perplexity(config, [task], points_of(config, [], []), stub_world / "results"),
    )[: 1 if workers else 4]:
        with pytest.raises(UserError, match=rf"ann\.json: none of the 3 clips can be read, e\.g\. 0\.bin: ({reason})"):
            ask()


def test_who_asks_a_model_needs_no_training_prompts(mini_world: Path, tmp_path: Path):
    absent = [*mini_options(mini_world, tmp_path), "model.ckpt=", f"model.prompt_path={tmp_path}/absent.json"]
    config = load_config("configs/mini/evaluate.yaml", absent)
    assert find_problems(config, (), training=False) == []
    assert load_for_inference(config).test_prompts
    assert "model.prompt_path" in find_problems(config, (), training=True)[0]  # training does


@pytest.fixture
def submitted(stub_world: Path, request: pytest.FixtureRequest):
    """(config, a submission for two clips that is right)."""
    request.getfixturevalue("stub_model")
    entries = [entry(3, testset_id="c"), entry(2, testset_id="a")]
    config = config_for(stub_world, entries, key="test_ann_path_asr")
    evaluate(config, "submission_asr")
    (stub_world / "other.json").write_text(json.dumps({"annotation": [entry(1, testset_id="z")]}))
    config.datasets.test_ann_path_aac = f"{stub_world}/other.json"
    return config, stub_world / "results/submission_asr/submission.csv"


def test_a_submission_is_checked_against_the_set_that_it_answers(submitted):
    config, path = submitted
    told = validate_submission(path, config.datasets)
    valid = "a valid submission for " + config.datasets.test_ann_path_asr + ", 2 rows"
    assert told.endswith(f"{valid}; 2 ids are not as test0000, which the official validator asks for: c, a")
    with pytest.raises(UserError, match="1 ids are missing: z; 2 ids are not in the set: c, a"):
        validate_submission(path, config.datasets, config.datasets.test_ann_path_aac)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("testset_id,text", "testset_id,text,more"), "the header must be testset_id,text"),
        (lambda text: text + "c,again\n", "ids occur more than once: c"),
        (lambda text: text.replace("a,blue dog\n", ""), "ids are missing: a"),
        (lambda text: text.replace("blue dog", "blue dog,extra"), "not exactly two columns: row 2"),
    ],
)
def test_a_wrong_submission_is_told_with_its_file_and_its_set(submitted, change, told):
    config, path = submitted
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"submission\.csv, checked against .*ann\.json: .*{told}"):
        validate_submission(path, config.datasets)


def test_a_submission_for_no_set_here_and_one_from_a_spreadsheet_are_told(submitted):
    config, path = submitted
    content = path.read_text()
    path.write_text("testset_id,text\nother,1\n")
    with pytest.raises(UserError, match=r"shares no testset_id with .*Give --ann FILE"):
        validate_submission(path, config.datasets)
    path.write_text(content, encoding="utf-8-sig")
    with pytest.raises(UserError, match="byte-order mark"):
        validate_submission(path, config.datasets)
    path.write_text(content.replace("blue dog", ""))
    with pytest.raises(UserError, match=r"1 texts are missing values to the official validator.*: a \(''\)"):
        validate_submission(path, config.datasets)
    path.write_text(content.replace("blue dog", "=blue dog"))
    told = validate_submission(path, config.datasets)
    assert "2 rows; 1 texts begin as a formula: a spreadsheet would change them: a; " in told


def test_one_set_that_cannot_be_read_is_told_and_ends_no_other(stub_world: Path, stub_model: StubModel):
    config = config_for(stub_world, [entry(1, text="a"), entry(2, text="blue dog")])
    (stub_world / "gone.json").write_text(json.dumps({"annotation": [entry("broken", text="a")]}))
    gone, here = (EvalTask(name, name, f"{stub_world}/{name}.json", metrics=["wer"]) for name in ("gone", "ann"))
    with pytest.raises(UserError, match=r"gone: .*none of the 1 clips can be read"):
        evaluate_tasks(config, [gone, here], stub_world / "results")
    page = (stub_world / "results/report.md").read_text()
    assert "not evaluated: no clip could be read" in page
    assert "| ann " in page
    assert len(stub_model.heard) == 2


@pytest.mark.usefixtures("stub_model")
def test_the_page_keeps_what_an_earlier_command_evaluated(stub_world: Path):
    config = config_for(stub_world, [entry(1, text="a"), entry(2, text="blue dog")])
    tasks = [EvalTask(name, name, f"{stub_world}/ann.json", metrics=["wer"]) for name in ("one", "two", "three")]
    for task in tasks[:2]:
        evaluate_tasks(config, [task], stub_world / "results", others=tasks)
    reports = json.loads((stub_world / "results/report.json").read_text())
    assert set(reports) == {"one", "two"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../out", "without spaces, as out"), ("my run", "without spaces, as my_run"), ("a #b, c/d", "as a_b_c_d"),
        (" ", "a letter or digit first"), ("-x", "as x"), ("..", "a letter or digit first"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_one_is_refused_with_one_that_is(name, told):
    with pytest.raises(UserError, match="must be a folder's plain name") as error:
        results_folder(load_config("configs/mini/evaluate.yaml", [f"evaluate.name={name}"]), "valid_asr")
    assert told in str(error.value)
    assert repr(name) in str(error.value)


def test_a_submission_without_a_set_or_that_is_no_text_is_told(submitted):
    config, path = submitted
    config.datasets.test_ann_path_asr = config.datasets.test_ann_path_aac = ""
    with pytest.raises(UserError, match="give --ann FILE"):
        validate_submission(path, config.datasets)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        validate_submission(path, config.datasets)


@pytest.mark.usefixtures("stub_model")
def test_a_task_and_a_metric_of_ones_own_take_a_few_lines(stub_world: Path, monkeypatch: pytest.MonkeyPatch):
    def mentions_dogs(texts):
        return [("dog" in output, 1) for output in texts.outputs]

    monkeypatch.setitem(METRICS, "dogs", Metric("answers with a dog", mentions_dogs, needs="outputs"))
    config = config_for(stub_world, [entry(1), entry(2, text="blue dog")])
    task = EvalTask("dogs", "dogs heard", f"{stub_world}/ann.json", ["asr"], metrics=["dogs", "wer"])
    with pytest.raises(UserError, match="entry 0: no 'text'"):
        evaluate_tasks(config, [task], stub_world / "results")
    config = config_for(stub_world, [entry(1, text="a dog"), entry(2, text="blue dog")])
    reports = evaluate_tasks(config, [task], stub_world / "results")
    assert reports["dogs"]["scores"] == {"dogs": 1.0, "wer": 0.25}
    assert "answers with a dog" in (stub_world / "results/report.md").read_text()


def test_names_that_there_are_not_are_refused_in_python_too(stub_world: Path):
    config = config_for(stub_world, [entry(1, text="a")])
    for values, told in (
        ({"metrics": ["wre"]}, "metrics 'wre' is not known"),
        ({"normaliser": "none"}, "normaliser 'none' is not known"),
        ({"metrics": ["judged"]}, "needs judge"),
    ):
        task = EvalTask("mine", annotation=f"{stub_world}/ann.json", **values)
        with pytest.raises(UserError, match=f"task mine: .*{told}"):
            evaluate_tasks(config, [task], stub_world / "results")


def test_a_result_tells_which_answers_an_earlier_commit_gave(
    stub_world: Path, stub_model: StubModel, monkeypatch: pytest.MonkeyPatch
):
    config = config_for(stub_world, [entry(1, text="a"), entry(2, text="b")])
    monkeypatch.setattr(provenance, "commit", lambda: "old")
    evaluate(config, "valid_asr")
    monkeypatch.setattr(provenance, "commit", lambda: "new")
    evaluate(config, "valid_asr")
    report = json.loads((stub_world / "results/valid_asr/report.json").read_text())
    assert (report["provenance"]["commit"], report["provenance"]["answers_of_earlier_commits"]) == ("new", ["old"])
    assert len(stub_model.heard) == 2
    evaluate(config_for(stub_world, [entry(1, text="a"), entry(2, text="b")], "datasets.channel=mean"), "valid_asr")
    assert len(stub_model.heard) == 4  # other audio, other answers
