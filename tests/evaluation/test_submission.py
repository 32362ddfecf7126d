"""submission.csv: what we write and what we call valid is valid to the hackathon's validator, and more."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest

from salmonn.common.errors import UserError
from salmonn.evaluation.pipeline import evaluate
from salmonn.evaluation.submission import NO_TEXT, check_submission, other_ids, submission_csv, submission_notes
from tests.fixtures.stub_model import config_for, entry, results


def is_valid_there(content: str) -> bool:
    """The official validator's rules as they are described: two columns, ids testNNNN, and texts that pandas reads."""
    table = pd.read_csv(io.StringIO(content))
    if list(table.columns) != ["testset_id", "text"]:
        return False
    ids_fit = table["testset_id"].apply(lambda one: isinstance(one, str) and bool(re.fullmatch(r"test\d{4}", one)))
    return bool(ids_fit.all() and table["text"].apply(lambda one: isinstance(one, str)).all())


IDS = ["test0000", "test0001", "test0002"]
TEXTS = [
    *(
        ["a red dog", "", "rain"],
        ["nan", "null", "NULL"],
        ["None", "NA", "n/a"],
        [" ", "\n", "<NA>"],
        ["#N/A", "NaN", "x"],
    ),
    *(["7", "12", "a"], ["True", "yes", "no"], ['say "a, b"', "a\r\nb", "=1+1"], ["-nan", "nan nan", "nothing"]),
    *(["Größe", "红狗", "犬"], ["null.", ".", "a"]),
]


@pytest.mark.parametrize("texts", TEXTS, ids=str)
def test_whatever_the_answers_are_the_file_is_valid_there_and_here(texts):
    content = submission_csv(IDS, texts)
    check_submission(content, IDS, "ours")
    assert is_valid_there(content)


@pytest.mark.parametrize("texts", [*TEXTS, ["1", "2.5", "-3"], ["True", "FALSE", "true"], ["inf", "1e5", "0"]], ids=str)
def test_what_we_call_valid_is_valid_there(texts):
    """As others write it, without our full stops."""
    content = pd.DataFrame({"testset_id": IDS, "text": texts}).to_csv(index=False)
    try:
        check_submission(content, IDS, "theirs")
    except UserError:
        assert not is_valid_there(content)
    else:
        assert is_valid_there(content)


@pytest.mark.parametrize("last", ['"a', '"', '"a\n', '"a "" b', 'a "b', '"a"', "'a"])
def test_a_quote_without_its_end_is_valid_nowhere(last):
    content = f"testset_id,text\ntest0000,x\ntest0001,y\ntest0002,{last}\n"
    if last in ('a "b', '"a"', "'a"):  # no quote begins there, or it ends
        check_submission(content, IDS, "theirs")
        assert is_valid_there(content)
        return
    with pytest.raises(UserError, match="theirs: not a CSV file: unexpected end of data"):
        check_submission(content, IDS, "theirs")


def test_ids_that_the_official_validator_refuses_are_told():
    assert other_ids(IDS) == ""
    assert other_ids(["test0000", "test1", "asr_0001"]).endswith("the official validator asks for: test1, asr_0001")


def test_every_value_that_pandas_takes_for_missing_is_known():
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(STR_NA_VALUES) <= NO_TEXT


def test_texts_keep_to_one_line():
    assert submission_csv(["1", "2"], ['a\nB "c"', ""]) == 'testset_id,text\n1,"a B ""c"""\n2,.\n'


def test_filled_texts_and_seeming_formulas_are_told():
    filled, formulas = submission_notes(["a", "b", "c", "d"], ["null", "=1", "fine", "-x"])
    assert "1 texts that the official validator takes for missing end in a full stop: a ('null')" in filled
    assert "2 texts begin as a formula: a spreadsheet would change them: b, d" in formulas
    assert submission_notes(["a"], ["a-b = c"]) == []


@pytest.mark.usefixtures("stub_model")
def test_a_scored_set_has_its_answers_as_a_csv_too(stub_world: Path):
    entries = [
        entry(3, text="green dog", testset_id="c"),
        entry(2, text="x"),
        entry("broken", text="y", testset_id="1"),
    ]
    evaluate(config_for(stub_world, entries, "evaluate.submission_lower_case=true"), "valid_asr")
    content = (stub_world / "results/valid_asr/submission.csv").read_text()
    assert content == "testset_id,text\nc,green dog\n1,blue dog\n1,.\n"
    report, _ = results(stub_world, "valid_asr")
    assert "wer" in report["scores"]
