"""Files that break in training: listed once, counted over all, and too many of them stop the run."""

from salmonn.data.integrity import Verdict
from salmonn.data.quarantine import MIN_TRIED, Quarantine
from tests.fixtures.commands import json_lines


def batch(n_tried, *broken):
    return {"tried": n_tried, "unreadable": [Verdict(path, False, "undecodable: x") for path in broken]}


def listed(folder):
    return [line["path"] for line in json_lines(folder / "quarantine.jsonl")]


def test_a_file_is_listed_once_however_often_it_is_met(tmp_path):
    quarantine = Quarantine(tmp_path)
    quarantine.add(batch(8, "a", "b"))
    assert quarantine.sync() == {"tried": 8, "bad": 2, "bad_files": 2}
    quarantine.add(batch(8, "b", "c"))
    assert quarantine.sync() == {"tried": 16, "bad": 4, "bad_files": 3}
    assert listed(tmp_path) == ["a", "b", "c"]


def test_the_list_is_there_even_when_nothing_broke(tmp_path):
    Quarantine(tmp_path).sync()
    assert listed(tmp_path) == []


def test_more_than_the_allowed_share_stops_with_a_message(tmp_path):
    quarantine = Quarantine(tmp_path, max_bad_fraction=0.05)
    quarantine.add(batch(MIN_TRIED, *(f"{i}.wav" for i in range(int(0.05 * MIN_TRIED)))))
    quarantine.sync()
    assert quarantine.too_many() == ""  # exactly the share is allowed
    quarantine.add(batch(1, "one more.wav"))
    quarantine.sync()
    for part in ("max_bad_fraction = 0.05", "0.wav: undecodable", str(tmp_path / "quarantine.jsonl"), "verified"):
        assert part in quarantine.too_many()
    assert "one more.wav" in listed(tmp_path)


def test_few_tries_judge_nothing(tmp_path):
    quarantine = Quarantine(tmp_path, max_bad_fraction=0.05)
    quarantine.add(batch(MIN_TRIED - 1, *map(str, range(100))))
    assert quarantine.sync()["bad"] == 100
    assert not quarantine.too_many()


def test_validation_files_are_listed_but_not_judged(tmp_path):
    quarantine = Quarantine(tmp_path, max_bad_fraction=0.0)
    quarantine.add(batch(MIN_TRIED, "v.wav"), judged=False)
    assert quarantine.sync() == {"tried": 0, "bad": 0, "bad_files": 1}
    assert not quarantine.too_many()
    assert listed(tmp_path) == ["v.wav"]


def test_the_list_of_an_earlier_run_is_taken_over(tmp_path):
    (tmp_path / "one").mkdir()
    first = Quarantine(tmp_path / "one")
    first.add(batch(1, "a"))
    first.sync()
    second = Quarantine(tmp_path)
    second.take_over(tmp_path / "one/quarantine.jsonl")
    second.add(batch(1, "b"))
    second.sync()
    assert listed(tmp_path) == ["a", "b"]
