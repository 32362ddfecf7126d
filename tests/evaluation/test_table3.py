"""Many tasks by one command, as a user runs it: the same answers however it is cut, and after a kill."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.evaluation import answer_store
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.normalisers import NAMES
from salmonn.evaluation.published import Published
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.table3 import earlier_reports, rows_of, terminal_summary
from salmonn.evaluation.tasks import EvalTask, load_tasks, named_tasks
from salmonn.model.prompts import load_test_prompts
from salmonn.model.salmonn import SALMONN
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.commands import run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import n_lines, wait_until
from util.eval_sets.catalogue import SETS

TASKS = {task.name: task for task in load_tasks(ROOT / "configs/eval_tasks.yaml")}
NAMES_OF_ROWS = ["asr", "er", "sv", "story"]


@pytest.fixture(scope="module")
def command(mini_world, tmp_path_factory):
    """evaluate.py --mode table3 on the small world, with a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = OmegaConf.load(ROOT / "configs/mini/eval_tasks.yaml")
    for task in tasks.values():
        task.annotation = f"{mini_world}/ann/{Path(task.annotation).name}"
        if "generate" in task:
            task.generate.max_new_tokens = 12  # more than the others have, and not ten times as many
    tasks.absent = {"title": "not here", "annotation": "nowhere.json", "metrics": ["wer"]}
    OmegaConf.save(tasks, folder / "tasks.yaml")
    options = [*mini_options(mini_world, folder), f"evaluate.tasks_file={folder}/tasks.yaml"]
    options += ["generate.max_new_tokens=8", f"model.ckpt={folder}/random.pth"]
    config = load_config("configs/mini/evaluate.yaml", [*options, "model.ckpt="])
    save_checkpoint(folder / "random.pth", SALMONN.from_config(config.model))

    def make(results: Path, *more: str, names=NAMES_OF_ROWS) -> list[str]:
        chosen = ["--tasks", ",".join(names)] if names else []
        arguments = ["evaluate.py", "--mode", "table3", "--cfg-path", "configs/mini/evaluate.yaml", *chosen]
        arguments += ["--options", *options, f"evaluate.results_dir={results}", *more]
        return arguments

    return make


def report(results: Path, names=NAMES_OF_ROWS) -> dict:
    found = json.loads((results / "table3/report.json").read_text())
    for name in names:
        del found[name]["provenance"]["processes"], found[name]["provenance"]["batch_size"]
    return {name: found[name] for name in names}


def predictions(results: Path, names=NAMES_OF_ROWS) -> dict[str, str]:
    return {name: (results / f"table3/{name}/predictions.jsonl").read_text() for name in names}


@pytest.fixture(scope="module")
def all_rows(command, tmp_path_factory):
    """Where the results of a command without a choice are, and what it printed."""
    results = tmp_path_factory.mktemp("whole")
    result = run_command(*command(results, "run.batch_size_eval=8", names=None))
    assert result.returncode == 0, result.stderr
    return results, result.stdout


@pytest.fixture(scope="module")
def whole(all_rows):
    return all_rows[0]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (3, 2)])
def test_batch_size_and_number_of_ranks_change_no_answer(command, whole, tmp_path, batch_size, processes):
    result = run_command(*command(tmp_path, f"run.batch_size_eval={batch_size}"), ranks=processes)
    assert result.returncode == 0, result.stderr
    assert predictions(tmp_path) == predictions(whole)
    assert report(tmp_path) == report(whole)


def test_after_a_kill_nothing_is_answered_twice_and_the_report_is_the_same(command, whole, tmp_path):
    arguments = [sys.executable, *command(tmp_path, "run.batch_size_eval=1", names=["asr"])]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = tmp_path / "table3/asr/answers"
    wait_until(lambda: any(n_lines(file) >= 3 for file in store.glob("*.jsonl")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (half,) = store.glob("*.jsonl")
    kept = [line for line in half.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    half.write_bytes(b"".join(kept) + b'{"position": 7, "te')  # as a kill in the middle of a line leaves it
    result = run_command(*arguments[1:])
    assert result.returncode == 0, result.stderr
    lines = half.read_bytes().splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    positions = [json.loads(line)["position"] for line in lines]
    assert len(positions) == len(set(positions)) > len(kept)
    assert predictions(tmp_path, ["asr"]) == predictions(whole, ["asr"])
    assert report(tmp_path, ["asr"]) == report(whole, ["asr"])


def test_answers_of_other_settings_are_not_taken_for_these(command, whole):
    """Another scaling gives another file of answers, and the report says which."""
    result = run_command(*command(whole.parent / "scaled", "model.lora_scaling=0", names=["er"]))
    assert result.returncode == 0, result.stderr
    plain, scaled = (
        json.loads((results / "table3/er/report.json").read_text())["provenance"]
        for results in (whole, whole.parent / "scaled")
    )
    assert (plain["lora_scaling"], scaled["lora_scaling"]) == (4.0, 0.0)
    names = [next((r / "table3/er/answers").iterdir()).name for r in (whole, whole.parent / "scaled")]
    assert names[0] != names[1]
    assert len(plain["checkpoint_sha256"]) == len(plain["annotation_sha256"]) == 64


def test_without_a_choice_what_is_there_is_evaluated_and_what_is_not_is_named(all_rows):
    results, printed = all_rows
    shown = printed[printed.rindex("| task ") :]
    assert "absent: not evaluated, no nowhere.json" in shown
    assert f"{results}/table3/report.md" in shown
    page = (results / "table3/report.md").read_text()
    for name in load_tasks(ROOT / "configs/mini/eval_tasks.yaml"):
        assert f"| {name.name} " in page


def test_a_choice_that_cannot_be_met_is_refused_before_the_model_is_loaded(command, tmp_path):
    (file,) = (option.partition("=")[2] for option in command(tmp_path) if option.startswith("evaluate.tasks_file="))
    config = load_config("configs/mini/evaluate.yaml", [f"evaluate.tasks_file={file}"])
    for names, told in ((["asr", "absent"], "absent: nowhere.json"), (["asr", "dowsing"], "--tasks dowsing: not in")):
        with pytest.raises(UserError, match=told):
            named_tasks(config, names)


def test_the_rows_of_the_papers_table_are_declared_with_known_names():
    assert len(TASKS) == 19  # three sets of speech recognition, two of phones, gender recognition, 13 others
    prompts = load_test_prompts(ROOT / "configs/prompts/test_prompt.json", "{}")
    for task in TASKS.values():
        assert task.normaliser in NAMES
        assert {*task.metrics, *task.paper, *task.reproduced} <= METRICS.keys()
        assert set(task.paper) <= set(task.metrics)
        assert set(task.accepts) <= prompts.keys()
        assert not task.prompt or task.prompt in prompts


def test_published_test_prompts_serve_every_row():
    """The keys of prompts/test_prompt.json in the published repository; its gender prompt is the entry's question."""
    published = {
        *("asr", "translation_ec", "translation_en2de", "translation_en2ja", "audiocaption", "audiocaption_v2"),
        *("QA", "gender_QA", "phone_recognition", "emotion_recognition", "music_description", "keywords"),
        *("speaker_verification", "speech_separation", "audio_story_telling", "slot_filling", "speech_query"),
        "speech_audio_coreasoning",
    }
    for task in TASKS.values():
        assert ({task.prompt} if task.prompt else set(task.accepts)) <= published


def test_every_row_reads_what_the_preparers_write():
    """Where util/prepare_eval_sets.py puts a set without --out, a row of the table looks for it."""
    made = {f"ann/{name}.json" for name in SETS}
    made |= {f"ann/{name}_{split}.json" for name in SETS for split in ("test-clean", "test-other", "eval", "Session5")}
    for task in TASKS.values():
        assert task.annotation in made | {"ann/sac.json"}  # speech and audio co-reasoning is in-house


def scored(n: int = 9, unfinished: int = 0, unread: int = 0, judge: str = "", **scores: float | tuple) -> dict:
    """A report with these scores: (over all, over finished answers), or one number for both."""
    both = {name: score if isinstance(score, tuple) else (score, score) for name, score in scores.items()}
    return {
        "n": n,
        "finished": n - unfinished - unread,
        "unfinished": unfinished,
        "scores": {name: over_all for name, (over_all, _) in both.items()},
        "scores_finished": {name: finished for name, (_, finished) in both.items()},
        "intervals": {name: [0.02, 0.04] for name in both},
        "scoring": {"substitute": dict.fromkeys(both, ""), "judge": judge},
    }


@pytest.mark.parametrize("name", ["asr_clean", "pr", "sqqa", "en2zh", "story"])
def test_what_the_terminal_shows_fits_it(name):
    """The real tasks with their published scores: no line above the width of a usual terminal window."""
    task, (n, unfinished, scores) = TASKS[name], REPRODUCTION[name]
    report = scored(n, unfinished, judge="some judge", **scores)
    report["scores"] |= {f"{metric}_shuffled": 1.2 for metric in scores}
    shown = terminal_summary([task, EvalTask("gone", "g", "ann/none.json", ["wer"])], {name: report})
    assert max(map(len, shown.splitlines())) <= 120
    for metric, published in task.paper.items():
        assert METRICS[metric].title in shown
        assert METRICS[metric].show(published[0].value) in shown
    assert "gone: not evaluated, no ann/none.json" in shown.splitlines()


def test_a_summary_without_published_scores_has_no_column_for_them():
    task = EvalTask("asr", "s", "a.json", metrics=["wer"])
    assert "paper" not in terminal_summary([task], {"asr": scored(wer=0.03)})
    assert terminal_summary([task], {}).endswith("asr: not evaluated, no a.json")


def of_edits(value: float, outputs: str = "all", clips: int = 9) -> Published:
    return Published(value, outputs, clips, tool="edit distance")


def test_a_row_shows_the_difference_to_the_paper():
    paper, reproduced = {"wer": [of_edits(0.021)]}, {"wer": [of_edits(0.0224)]}
    task = EvalTask("asr", "s", "a.json", metrics=["wer"], paper=paper, reproduced=reproduced)
    values = scored(unfinished=1, wer=(0.03, 0.02))
    (row,) = rows_of(task, values)
    shown = ["3.00 %", "2.00 % to 4.00 %", "2.00 %", "-"]
    assert row == ["asr", "WER", "9", "8", *shown, "2.10 % (+0.90 %)", "2.24 % (+0.76 %)"]
    nothing = {key: {"wer": None} for key in ("scores", "intervals", "scores_finished")}
    (row,) = rows_of(task, {**values, **nothing})
    assert row[4:] == ["no score", "-", "no score", "-", "2.10 %", "2.24 %"]
    (row,) = rows_of(task, {**values, "scores": {"wer": 0.03, "wer_shuffled": 1.2}})
    assert row[7] == "120.00 %"


def test_finished_answers_are_compared_with_finished_ones_and_all_with_all():
    published = {"wer": [of_edits(0.04, "finished"), of_edits(0.17)]}
    task = EvalTask("pr", "s", "a.json", metrics=["wer"], reproduced=published)
    (row,) = rows_of(task, scored(unfinished=2, wer=(0.18, 0.03)))
    assert row[-1] == "4.00 % finished (-1.00 %); 17.00 % all (+1.00 %)"


def test_a_score_over_all_or_finished_outputs_is_compared_where_every_answer_ends():
    task = EvalTask("pr", "s", "a.json", metrics=["wer"], paper={"wer": [of_edits(0.04, "all or finished")]})
    (row,) = rows_of(task, scored(wer=0.05))
    assert row[-2] == "4.00 % (+1.00 %)"
    (row,) = rows_of(task, scored(unfinished=2, wer=(0.17, 0.04)))
    assert row[-2] == "4.00 % (n/a: 2 unfinished, all or finished is not told)"


@pytest.mark.parametrize(
    ("report", "published", "why"),
    [
        (scored(12, unread=3, wer=0.03), of_edits(0.02, clips=12), "3 of 12 unread"),
        (scored(wer=0.03), of_edits(0.02, clips=10), "9 of 10 clips"),
        (scored(11, wer=0.03), of_edits(0.02, clips=10), "11 clips, not 10"),
        (scored(wer=0.03), of_edits(0.02, clips=0), "its number of clips is not told"),
        (scored(wer=0.03), of_edits(0.02, "those with two sentences"), "over those with two sentences"),
        (scored(wer=0.03), of_edits(0.02, ""), "which outputs is not told"),
        (scored(wer=0.03), Published(0.02, "all", 9, "edits with fillers"), "by edits with fillers"),
        (scored(wer=0.03), Published(0.02, "all", 9), "its tool is not told"),
        (scored(wer=0.03), Published(0.02), "its number of clips is not told"),
        (scored(judged=0.3, judge="x"), Published(0.4, "all", 9, "judge", "Qwen3"), "judged by Qwen3"),
        (scored(judged=0.3), Published(0.4, "all", 9, "judge", "Qwen3"), "judged by Qwen3"),
        ({**scored(wer=0.03), "scoring": {"substitute": {"wer": "no MeCab"}}}, of_edits(0.02), "no MeCab"),
    ],
)
def test_what_cannot_be_compared_with_the_paper_says_why(report, published, why):
    [name] = report["scores"]
    task = EvalTask("asr", "s", "a.json", metrics=[name], paper={name: [published]})
    (row,) = rows_of(task, report)
    assert row[-2].endswith(f" (n/a: {why})")


def test_a_judge_is_compared_with_itself():
    published = Published(0.4, "all", 9, "judge", "gpt at here, prompt 1")
    task = EvalTask("sqqa", "s", "a.json", metrics=["judged"], paper={"judged": [published]})
    (row,) = rows_of(task, scored(judged=0.5, judge="gpt at here, prompt 1"))
    assert row[-2] == "40.00 % (+10.00 %)"


# What the public reproduction's scripts and logs tell: {row: (clips, unfinished, {metric: (all, finished)})}.
REPRODUCTION = {
    "asr_clean": (2620, 0, {"wer": (0.0224, 0.0224)}),
    "asr_other": (2939, 0, {"wer": (0.0512, 0.0512)}),
    "asr_giga": (25619, 1165, {"wer": (0.5639, 0.1156)}),
    "en2zh": (15531, 58, {"bleu_zh": (35.20, 35.36)}),
    "en2de": (15531, 32, {"bleu": (20.28, 20.34)}),
    "en2ja": (15531, 121, {"bleu_ja": (11.86, 11.84)}),
    "aac": (4411, 25, {"meteor": (0.2153, 0.2159), "spider": (0.2327, 0.2333)}),
    "pr": (2620, 548, {"per": (0.173, 0.040)}),
    "pr_lexicon": (2620, 548, {"per": (0.173, 0.040)}),
    "er": (1241, 0, {"accuracy_er": (0.684, 0.684)}),
    "mc": (2828, 306, {"bleu": (3.07, 3.53), "rouge_l": (0.2183, 0.2262)}),
    "osr": (3000, 100, {"wer_separated": (0.3, 0.25)}),
    "ke": (500, 7, {"keywords": (0.3154, 0.3172)}),
    "sqqa": (633, 0, {"judged": (0.367, 0.367), "following": (1.0, 1.0)}),
    "sf": (6000, 0, {"judged": (0.392, 0.392), "following": (0.996, 0.996)}),
    "sac": (100, 0, {"judged": (0.5, 0.5), "not_transcribing": (0.9, 0.9)}),
    "story": (4411, 0, {"diversity": (82.58, 82.58), "following_story": (0.999, 0.999)}),
}


@pytest.mark.parametrize("name", REPRODUCTION)
def test_the_reproductions_own_totals_differ_from_it_nowhere(name):
    """Fed its unfiltered totals, every difference that is told to the reproduction is 0."""
    n, unfinished, scores = REPRODUCTION[name]
    rows = rows_of(TASKS[name], scored(n, unfinished, judge="some judge", **scores))
    told = [difference for row in rows for difference in re.findall(r"\(([+-][\d.]+)", row[-1])]
    assert not any(map(float, told))
    if name in ("asr_clean", "asr_other", "pr", "er", "story"):
        assert told  # like stands beside like, and is compared
    if unfinished:  # the paper does not tell what became of such answers
        assert not any(re.search(r"\([+-]", row[-2]) for row in rows)


def test_published_scores_are_a_list_one_of_them_or_a_bare_value(tmp_path):
    scores = ["{value: 0.1, outputs: all}", "[{value: 0.1, outputs: all}, {value: 0.2}]", "0.1", "[0.1, 0.2]"]
    (tmp_path / "tasks.yaml").write_text(
        "".join(
            f"t{i}: {{annotation: a.json, metrics: [wer], paper: {{wer: {one}}}}}\n" for i, one in enumerate(scores)
        )
    )
    first, second = Published(0.1, "all"), Published(0.2)
    expected = [[first], [first, second], [Published(0.1)], [Published(0.1), second]]
    assert [task.paper["wer"] for task in load_tasks(tmp_path / "tasks.yaml")] == expected


@pytest.mark.parametrize(
    ("paper", "told"),
    [
        ("{wer: {outputs: all}}", "paper.wer: value is not set"),
        ("{wer: {value: 0.1, output: all}}", "did you mean .*outputs"),
        ("{wer: two}", "value = 'two'"),
        ("{wer: {value: 0.1, clips: many}}", "clips = 'many'"),
        ("{were: 0.1}", "paper 'were' is not known"),
        ("0.1", "paper must be published scores by metric, got 0.1"),
    ],
)
def test_a_published_score_that_is_none_is_refused(tmp_path, paper, told):
    (tmp_path / "tasks.yaml").write_text(f"a: {{annotation: a.json, metrics: [wer], paper: {paper}}}\n")
    with pytest.raises(UserError, match=told):
        load_tasks(tmp_path / "tasks.yaml")


def test_a_tasks_file_with_mistakes_is_refused_with_all_of_them(tmp_path):
    lines = ["a: {metrc: [wer]}", "b: {metrics: wer}", "c: {annotation: c.json, metrics: [wer]}"]
    lines += ["../d: {annotation: d.json}", "e: {metrics: [wer]}"]
    (tmp_path / "tasks.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        load_tasks(tmp_path / "tasks.yaml")
    assert "metrc (did you mean" in str(error.value)
    assert "model." not in str(error.value)
    assert "'../d' is the name of a folder" in str(error.value)
    assert "task e: annotation is not set" in str(error.value)
    assert "task b" in str(error.value)
    assert "task c" not in str(error.value)


@pytest.mark.parametrize("other", ['{"text": "?"}\n', "noise\n", '{"position": 1, "commit": "x", "n": 1}\n', "[1]\n"])
def test_damaged_answers_are_given_again(tmp_path, caplog, other):
    store = AnswerStore(tmp_path, "x", "abc")
    store.add([(0, Prediction("a", 1, True)), (1, Prediction(unreadable="gone")), (2, Prediction("b", 1, True))])
    assert store.read() == {0: Prediction("a", 1, True), 2: Prediction("b", 1, True)}
    assert store.commits == {"abc"}
    (tmp_path / "x-rank1.jsonl").write_text(other)
    file = tmp_path / "x-rank0.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"b"', b'"c"'))
    assert store.read() == {0: Prediction("a", 1, True)}
    assert [record.message.partition(": ")[0] for record in caplog.records] == [str(file), f"{tmp_path}/x-rank1.jsonl"]


class FullDisk(io.FileIO):
    """Takes half of what it is given."""

    def write(self, data: bytes) -> int:
        super().write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_answers_before_a_disk_was_full_are_kept_and_those_after_it_are_added_behind(tmp_path, monkeypatch, caplog):
    store, answers = AnswerStore(tmp_path, "x", "abc"), [(i, Prediction("a dog", 1, True)) for i in range(5)]
    store.add(answers[:1])
    with monkeypatch.context() as patch:
        patch.setattr(answer_store, "appending", lambda path: FullDisk(path, "ab"))
        with pytest.raises(OSError, match="No space left"):
            store.add(answers[1:4])  # of the second of these a half is written
    assert store.read() == dict(answers[:2])
    store.add(answers[2:])
    assert store.read() == dict(answers)
    assert not caplog.records  # no line is damaged


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"n": 1}', "[" * 3000 + "]" * 3000, '{"name": "er", "scores": []}', "\udcff"],
)
def test_what_stands_in_the_place_of_an_earlier_report_is_told_and_left_out(tmp_path, caplog, content):
    tasks = [EvalTask(name, name, f"{name}.json") for name in ("er", "sv", "absent")]
    whole = {name: 1 for name in ("n", "entries", "finished", "unfinished", "empty_outputs")}
    whole |= {"unreadable": [], "notes": [], "annotation": "er.json"}
    whole |= {name: {} for name in ("scores", "scores_finished", "intervals", "scoring", "provenance")}
    for name, text in (("er", json.dumps(whole)), ("sv", content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text, errors="surrogateescape")
    assert earlier_reports(tmp_path, tasks) == {"er": whole}
    assert f"{tmp_path}/sv/report.json is" in caplog.text
    assert "it is left out of the page: evaluate sv again" in caplog.text


@pytest.mark.parametrize(
    "damaged",
    [
        {"scores": {"wer": "x"}}, {"scores": {"wer": [1]}}, {"scores": {"wer": {}}}, {"scores_finished": {}},
        {"scores": {"wer": 0.5, "wer_shuffled": "x"}}, {"intervals": {}}, {"intervals": {"wer": 3}},
        {"intervals": {"wer": ["a", "b"]}}, {"intervals": {"wer": {"a": 1}}},
    ],
)  # fmt: skip
def test_an_earlier_report_whose_scores_are_none_is_told_and_left_out(tmp_path, caplog, damaged):
    [task] = tasks = [EvalTask("asr", "asr", "asr.json")]
    whole = {name: 1 for name in ("n", "entries", "finished", "unfinished", "empty_outputs")}
    whole |= {"unreadable": [], "notes": [], "annotation": "asr.json", "scoring": {}, "provenance": {}}
    whole |= {"scores": {"wer": 0.5}, "scores_finished": {"wer": 0.5}, "intervals": {"wer": [0.4, 0.6]}}
    (tmp_path / "asr").mkdir()
    path = tmp_path / "asr/report.json"
    path.write_text(json.dumps(whole))
    assert earlier_reports(tmp_path, tasks) == {"asr": whole}
    assert rows_of(task, whole)
    path.write_text(json.dumps(whole | damaged))
    assert earlier_reports(tmp_path, tasks) == {}
    assert "it is left out of the page: evaluate asr again" in caplog.text
