"""Outputs that the README shows are those of the commands above them."""

from pathlib import Path

import pytest

from salmonn.errors import UserError
from util import readme_outputs

TALK = """import sys
print("ready", file=sys.stderr, flush=True)
for line in iter(lambda: sys.stdin.readline(), ""):
    print("> " + line.strip().upper(), flush=True)
print("> ", flush=True)
"""
PAGE = """# A page
```bash
python {program} --quiet \\
    --twice
```
<!-- output, typed:
one
two
-->
```
of last year
```
```bash
python {program}
```
no output is shown of this one
<!-- scores: asr_wer aac_cider_d -->
| | nach Stufe 1 | vertauscht | nach Stufe 3 | vertauscht |
|---|---|---|---|---|
| Wortfehler | ? | ? | ? | ? |
| CIDEr-D | 1 | 2 | 3 | 4 |
"""
SUMMARY = {
    "stage1": {"asr_wer": 0.0625, "asr_wer_shuffled": 1.2, "aac_cider_d": 8, "aac_cider_d_shuffled": 1},
    "asr_wer": 0.07, "asr_wer_shuffled": 1.25, "aac_cider_d": 8.5, "aac_cider_d_shuffled": 0.5,
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "talk.py").write_text(TALK)
    return PAGE.format(program=tmp_path / "talk.py")


def test_an_output_is_what_the_command_above_it_prints_with_what_is_typed(page: str):
    results = {}
    text = readme_outputs.with_outputs(page, results)
    assert "```\nready\n> one\nONE\n> two\nTWO\n```\n" in text
    assert "of last year" not in text
    assert text.count("```") == page.count("```")
    assert len(results) == 1


def test_scores_fill_the_rows_and_leave_the_words(page: str):
    text = readme_outputs.with_scores(page, SUMMARY)
    assert "| Wortfehler | 6.25 % | 120.00 % | 7.00 % | 125.00 % |\n" in text
    assert "| CIDEr-D | 8.000 | 1.000 | 8.500 | 0.500 |\n" in text
    assert "nach Stufe 1" in text


def test_check_shows_what_differs_and_writes_nothing(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "page.md"
    file.write_text(page.split("<!-- scores")[0])
    assert readme_outputs.update(file, True, {})
    shown = capsys.readouterr().out
    assert "-of last year" in shown
    assert "+> one" in shown
    assert "of last year" in file.read_text()
    assert readme_outputs.update(file, False, {})
    assert not readme_outputs.update(file, True, {})


def test_a_command_that_fails_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"exit code 2(.|\n)*can't open file"):
        readme_outputs.run(f"python {tmp_path}/absent.py", "")
