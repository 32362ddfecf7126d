"""The small model's report: what it says and what it does not claim."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from salmonn.common.files import write_json
from tests.fixtures.small import arguments
from util.small_model import job, parts, recordings, records, report, voices

pytestmark = pytest.mark.usefixtures("installed_packages")


def write_result(out: Path, name: str, scores: dict, intervals: dict, n: int) -> None:
    folder = out / "results/table3" / name
    folder.mkdir(parents=True)
    metric = "wer" if "wer" in scores else "exact"
    content = {"scores": scores, "intervals": intervals, "n": n + 1, "scored_clips": {metric: n}}  # one is unreadable
    (folder / "report.json").write_text(json.dumps(content))
    answer = {"path": "a.flac", "references": ["one"], "text": "won"}
    (folder / "predictions.jsonl").write_text(json.dumps(answer) + "\n")


def write_texts(out: Path, said: dict[str, list[str]]) -> None:
    """Annotation files of these texts, empty ones of the other sets."""
    (out / "ann").mkdir(exist_ok=True)
    for name in ("stage1_train", *(f"test_{name}" for name in report.SPEECH | report.AGREEMENT)):
        entries = [{"path": f"{i}.flac", "text": text, "task": "asr"} for i, text in enumerate(said.get(name, []))]
        (out / f"ann/{name}.json").write_text(json.dumps({"annotation": entries}))


def test_a_test_set_of_a_single_clip_ends_no_report(tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one two"], "test_corpus": ["three"]})
    write_result(tmp_path, "corpus", {"wer": 0.5}, {"wer": None}, 1)
    write_result(tmp_path, "QA", {"exact": None, "exact_shuffled": 0.25}, {"exact_shuffled": [0.125, 0.5]}, 8)
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert (summary["wer_corpus"], summary["wer_corpus_shuffled"], summary["accuracy_QA"]) == (0.5, None, None)
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    assert ["", report.SPEECH["corpus"], "1", "50.0%", "-", "-", ""] in rows
    assert ["", report.TASKS["QA"], "8", "-", "25.0% (12.5% to 50.0%)", ""] in rows


def test_the_summary_says_how_near_the_test_is_to_what_was_trained_on(tmp_path):
    trained, tested = ["press one to go on", "the number two"], ["Press one to go home.", "two", "good morning"]
    write_texts(tmp_path, {"stage1_train": trained, "test_prompt": tested, "test_librivox": ["two three four five"]})
    write_result(tmp_path, "prompt", {"wer": 0.25}, {"wer": [0.1, 0.4]}, 3)
    write_result(tmp_path, "librivox", {"wer": 0.5}, {"wer": None}, 1)
    folder = tmp_path / "results/table3/prompt"
    answers = [{"path": f"{i}.flac", "references": [text], "text": "won"} for i, text in enumerate(tested)]
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(answer)}\n" for answer in answers))
    counted = {"score": 0.25, "rows": [0, 1, 2], "values": [[1, 5], [1, 1], [0, 2]]}
    (folder / "statistics.json").write_text(json.dumps({"wer": counted}))
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert summary["real_prompts_inside_training"] == pytest.approx(1 / 3)
    assert summary["real_prompts_known_4grams"] == 0.5
    assert summary["wer_real_prompts_not_inside"] == pytest.approx(1 / 7)
    assert summary["clips_real_prompts_not_inside"] == 2
    assert summary["librivox_inside_training"] == summary["librivox_known_4grams"] == 0
    assert "wer_librivox_not_inside" not in summary
    assert summary["corpus_inside_training"] is summary["corpus_known_4grams"] is None
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    [row] = [row for row in rows if row[1:4] == [report.SPEECH["prompt"], "33.3%", "50.0%"]]
    assert row[4].startswith("14.3% (")
    assert ["", report.SPEECH["librivox"], "0.0%", "0.0%", "as above", ""] in rows


def test_without_transcripts_the_prompts_are_told_as_agreement_with_whisper(tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one"], "test_agreement": ["one two three four"]})
    write_result(tmp_path, "agreement", {"wer": 0.25, "wer_shuffled": 1.5}, {"wer": [0.125, 0.5]}, 9)
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert summary["agreement_errors_whisper_real_prompts"] == 0.25
    assert summary["agreement_errors_whisper_real_prompts_shuffled"] == 1.5
    assert summary["whisper_real_prompts_inside_training"] == summary["whisper_real_prompts_known_4grams"] == 0
    for key in ("wer_real_prompts", "wer_real_prompts_shuffled", "wer_whisper_real_prompts"):
        assert summary[key] is None
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    assert ["", report.AGREEMENT["agreement"], "9", "25.0% (12.5% to 50.0%)", "150.0%", "-", ""] in rows
    assert ["", report.AGREEMENT["agreement"], "0.0%", "0.0%", "as above", ""] in rows


@pytest.mark.parametrize("of_a_folder", [True, False])
def test_the_report_claims_that_a_speaker_is_new_only_where_it_is_known(of_a_folder, tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one"], "test_librivox": ["two"]})
    write_result(tmp_path, "librivox", {"wer": 0.5}, {"wer": None}, 1)
    report.write_report(tmp_path, report.summarise(tmp_path, {}, {}), [], "clips", of_a_folder)
    told = (tmp_path / "report.md").read_text()
    assert ("nothing is trained on" in told) != of_a_folder
    assert ("was not looked at" in told) == of_a_folder


def test_the_report_says_what_was_trained_on_and_no_more(tmp_path, monkeypatch):
    def told(found: list[recordings.Recording], *given: object) -> str:
        made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--clips", 24_000, *given))
        records.write_records(made.data / "recordings.json", found)
        records.write_records(made.data / "spoken_train.json", [voices.Spoken("0.flac", "one", "joe", 1.0)] * 3)
        return parts.trained_on(made)

    test, train = (recordings.Recording("a.flac", split, 1.0, "word", "one") for split in ("test", "train"))
    assert told([test]) == "3 clips of synthetic voices"
    assert told([test, train]) == "3 clips of synthetic voices and recorded prompts"
    assert told([], "--corpus", "/libri") == "/libri"
    assert told([train], "--corpus", "/libri") == "/libri and recorded prompts"


def test_the_minutes_of_the_report_are_in_the_summary(tmp_path, monkeypatch):
    clock = [0.0]

    def whisper_errors(*_: object) -> dict[str, float]:
        clock[0] += 90
        return {}

    write_texts(tmp_path, {"stage1_train": ["one two"]})
    noted = {"asked": {}, "minutes": {"stage1": 2.0}, "stopped": {"report": 0.25}}
    write_json(tmp_path / "state.json", noted)
    records.write_records(tmp_path / "data/recordings.json", [])
    monkeypatch.setattr(parts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(report, "whisper_errors", whisper_errors)
    parts.tell(job.Small(arguments(monkeypatch, "--out", tmp_path, "--corpus", "/libri", "--recordings", "none")))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["minutes_of_parts"] == {"stage1": 2.0, "report": 1.75}
    assert summary["minutes"] == 3.8
    assert "trained in stages 0 to 3 on /libri. *Shuffled*" in (tmp_path / "report.md").read_text()


def test_a_clip_that_cannot_be_read_ends_no_report(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "whole.wav", 0.1 * np.sin(np.arange(16_000)), 16_000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:9000])
    (tmp_path / "ann").mkdir()
    for name in report.SPEECH:
        paths = {"corpus": ("whole.wav", "half.wav", "none.wav"), "prompt": ("half.wav",)}.get(name, ())
        entries = [{"path": path, "text": "one two", "task": "asr"} for path in paths]
        (tmp_path / f"ann/test_{name}.json").write_text(json.dumps({"annotation": entries}))

    def whisper_answers(_: Path, paths: list[str]) -> list[str]:
        return ["one" for path in paths if len(report.load_audio(path))]

    monkeypatch.setattr(report, "whisper_answers", whisper_answers)
    monkeypatch.setattr(report, "normaliser", lambda *_: SimpleNamespace(function=list))
    assert report.whisper_errors(tmp_path, tmp_path / "ann", tmp_path) == {"corpus": 0.5}
