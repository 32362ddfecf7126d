"""What may have been meant by a path that leads nowhere."""

from pathlib import Path

import pytest

from salmonn.common.spelling import did_you_mean, is_near, near_path


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("own_trian.json", "own_train.json"), ("own_tarin.json", "own_train.json"), ("owntrain.json", "own_train.json"),
        ("own_train", "own_train.json"), ("own_train.jsn", "own_train.json"), ("mein", "mine"), ("Mine", "mine"),
        ("min", "mine"), ("own-train.json", "own_train.json"), ("checkpiont_best.pth", "checkpoint_best.pth"),
        ("salmon_v1.pth", "salmonn_v1.pth"), ("dta", "data"), ("wieghts", "weights"), ("own.json", "own.json.gz"),
    ],
)  # fmt: skip
def test_a_slip_of_the_hand_is_near(typed: str, there: str):
    assert is_near(typed, there)
    assert is_near(there, typed)


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("own_valid.json", "own_train.json"), ("own_test.json", "own_train.json"), ("own_train.json", "own.json"),
        ("stage1_train.json", "stage2_train.json"), ("vicuna-13b-v1.1", "vicuna-7b-v1.5"), ("a.json", "b.json"),
        ("own_train.json", "own_train.csv"), ("valid_asr.json", "valid_aac.json"), ("own.json", "stage1.json"),
        ("checkpoint_best.pth", "checkpoint_last.pth"), ("whisper-large-v2", "whisper-large-v3"), ("a", "b"),
    ],
)  # fmt: skip
def test_another_thing_of_like_name_is_not_near(typed: str, there: str):
    assert not is_near(typed, there)


def test_a_slip_may_be_in_any_name_of_a_path(tmp_path: Path):
    (tmp_path / "mine/deep").mkdir(parents=True)
    (tmp_path / "mine/deep/own_train.json").write_text("{}")
    for typed in ("mine/deep/own_trian.json", "mein/deep/own_train.json", "mien/depe/own_train"):
        assert near_path(tmp_path / typed) == tmp_path / "mine/deep/own_train.json"
    assert did_you_mean(tmp_path / "mein") == f"; did you mean {tmp_path}/mine?"
    assert did_you_mean(tmp_path / "mein", Path.is_file) == ""
    for nothing in ("mine/deep/own_valid.json", "nowhere/own_train.json", "mein/other.json"):
        assert did_you_mean(tmp_path / nothing) == ""
    for impossible in ("x" * 5000, "mine/a\0b", "d/" * 3000, "", "."):
        assert did_you_mean(tmp_path / "mine" / impossible, Path.is_file) == ""
