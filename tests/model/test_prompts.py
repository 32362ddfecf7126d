"""Prompt pools: template, marker, question, random choice."""

import json
import random
import subprocess
import sys

import pytest

from salmonn.common.errors import UserError
from salmonn.model.prompts import choose_prompts, fill_question, load_test_prompts, load_train_prompts, split_prompt
from tests.fixtures.paths import ROOT

TEMPLATE = "USER: {}\nASSISTANT:"
# Task names of the released annotation files and of the paper's Table 3.
TASKS = """asr audiocaption audiocaption_v2 translation_ec phone_recognition emotion_recognition music_description QA
speech_separation speaker_verification gender_recognition audio_story_telling translation_en2de translation_en2ja
keywords slot_filling speech_query speech_audio_coreasoning""".split()


def write(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    return path


def test_shipped_prompts_cover_every_task_and_hold_the_marker_once():
    train = load_train_prompts(ROOT / "configs/prompts/train_prompt.json", TEMPLATE)
    test = load_test_prompts(ROOT / "configs/prompts/test_prompt.json", TEMPLATE)
    assert set(TASKS) <= train.keys()
    assert set(TASKS) <= test.keys()
    for prompt in [p for pool in train.values() for p in pool] + list(test.values()):
        assert prompt.count("<Speech><SpeechHere></Speech>") == 1
        assert prompt.startswith("USER: ")
        assert prompt.endswith("\nASSISTANT:")


def test_template_is_applied_before_the_question_is_filled_in(tmp_path):
    pool = load_train_prompts(write(tmp_path, {"QA": ["<SpeechHere> {}"]}), TEMPLATE)
    assert choose_prompts(pool, ["QA"], ["why {x}?"]) == ["USER: <SpeechHere> why {x}?\nASSISTANT:"]


def test_fill_question_leaves_prompts_without_a_place_alone():
    assert fill_question("no place", "what?") == "no place"


def test_prompts_without_the_marker_are_left_out_and_reported(tmp_path, caplog):
    pool = load_train_prompts(write(tmp_path, {"asr": ["<SpeechHere> a", "b"]}), TEMPLATE)
    assert pool["asr"] == ["USER: <SpeechHere> a\nASSISTANT:"]
    assert "1 prompts without" in caplog.text


@pytest.mark.parametrize("content", [[], {}, {"asr": 3}, {"asr": ["no marker"]}, {"asr": [1]}])
def test_unusable_prompt_files_are_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"prompts\.json"):
        load_train_prompts(write(tmp_path, content), TEMPLATE)


def test_choice_depends_on_the_generator_alone():
    pool = {"asr": [f"{i}" for i in range(50)]}
    first, second = (choose_prompts(pool, ["asr"] * 8, [""] * 8, random.Random(3)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


def test_without_multi_prompt_a_single_task_batch_shares_one_prompt():
    pool = {"asr": [f"{i}" for i in range(50)], "QA": [f"{{}} {i}" for i in range(50)]}
    shared = choose_prompts(pool, ["asr"] * 8, [""] * 8, multi_prompt=False)
    assert len(set(shared)) == 1
    assert len(set(choose_prompts(pool, ["QA"] * 8, ["?"] * 8, multi_prompt=False))) > 1


def test_unknown_task_is_named():
    with pytest.raises(UserError, match="'dance'"):
        choose_prompts({"asr": ["x"]}, ["dance"], [""])


def test_prompts_split_at_the_marker_and_need_exactly_one():
    assert split_prompt("a <Speech><SpeechHere></Speech> b") == ("a <Speech>", "</Speech> b")
    for bad in ("none", "<SpeechHere><SpeechHere>"):
        with pytest.raises(UserError):
            split_prompt(bad)


def test_strings_and_config_need_no_torch():
    modules = "salmonn, salmonn.model.prompts, salmonn.config, salmonn.common.slurm"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
