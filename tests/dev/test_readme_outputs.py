"""Outputs that the README shows are those of the commands above them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dev import readme_outputs
from salmonn.common.errors import UserError

TALK = """import sys
print("ready", file=sys.stderr, flush=True)
for line in iter(lambda: sys.stdin.readline(), ""):
    print("> " + line.strip().upper(), flush=True)
print("> ", flush=True)
"""
LONG = """import sys
from pathlib import Path
Path(sys.argv[1]).mkdir()  # fails where it is there
print("first\\n```\\nsecond\\nthird\\nlast")
print("\\r 50 %", end="\\r100 %\\n", file=sys.stderr)
print("clips: 100%|####| 2/2 [00:01<00:00]", file=sys.stderr)
sys.exit(3)
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
<!-- minutes -->99 Minuten
<!-- scores: asr_wer aac_cider_d -->
| | nach Stufe 1 | vertauscht | nach Stufe 3 | vertauscht |
|---|---|---|---|---|
| Wortfehler | ? | ? | ? | ? |
| CIDEr-D | 1 | 2 | 3 | 4 |
"""
SUMMARY = {
    "seconds": {"total": 607.7},
    "stage1": {"asr_wer": 0.0625, "asr_wer_shuffled": 1.2, "aac_cider_d": 8, "aac_cider_d_shuffled": 1},
    "asr_wer": 0.07, "asr_wer_shuffled": 1.25, "aac_cider_d": 8.5, "aac_cider_d_shuffled": 0.5,
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "talk.py").write_text(TALK)
    return PAGE.format(program=tmp_path / "talk.py")


@pytest.fixture
def run_on(monkeypatch) -> Callable[..., None]:
    """The command, with these arguments."""
    monkeypatch.chdir(readme_outputs.ROOT)  # as the command does; undone after the test

    def run(*arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["readme_outputs.py", *map(str, arguments)])
        readme_outputs.main()

    return run


def test_an_output_is_what_the_command_above_it_prints_with_what_is_typed(page: str):
    results = {}
    text = readme_outputs.with_outputs(page, results)
    assert "```\nready\n> one\nONE\n> two\nTWO\n```\n" in text
    assert "of last year" not in text
    assert text.count("```") == page.count("```")
    assert len(results) == 1


def test_scores_fill_the_rows_and_leave_the_words(page: str):
    text = readme_outputs.with_scores(page, [SUMMARY])
    assert "| Wortfehler | 6.25 % | 120.00 % | 7.00 % | 125.00 % |\n" in text
    assert "| CIDEr-D | 8.000 | 1.000 | 8.500 | 0.500 |\n" in text
    assert "nach Stufe 1" in text
    assert "<!-- minutes -->10 Minuten\n" in text


def test_scores_of_several_seeds_are_shown_as_the_range_of_each(page: str):
    other = {**SUMMARY, "seconds": {"total": 99}, "asr_wer": 0.06, "aac_cider_d_shuffled": 0.25}
    text = readme_outputs.with_scores(page, [SUMMARY, other])
    assert "| Wortfehler | 6.25 % | 120.00 % | 6.00 % – 7.00 % | 125.00 % |\n" in text
    assert "| CIDEr-D | 8.000 | 1.000 | 8.500 | 0.250 – 0.500 |\n" in text
    assert "<!-- minutes -->10 Minuten\n" in text


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
        readme_outputs.run(["python", f"{tmp_path}/absent.py"])


def test_a_marker_says_how_a_command_ends_what_it_makes_anew_and_which_lines_are_shown(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(readme_outputs, "REMOVABLE", tmp_path / "output")
    made = tmp_path / "output/made"
    (made / "of").mkdir(parents=True)
    (tmp_path / "long.py").write_text(LONG)
    page = (
        f"```bash\npython {tmp_path}/long.py {made}  # a comment\n```\n<!-- output{{}}, without {made} -->\n```\n```\n"
    )
    text = readme_outputs.with_outputs(page.format(", exit 3"), {})
    assert text.endswith(" -->\n```\nfirst\nsecond\nthird\nlast\n```\n")  # no bar, no fence
    text = readme_outputs.with_outputs(page.format(", exit 3, first 2, last 1"), {})
    assert text.endswith(" -->\n```\nfirst\nsecond\n...\nlast\n```\n")
    with pytest.raises(UserError, match="exit code 3"):
        readme_outputs.with_outputs(page.format(""), {})


def test_an_output_whose_model_is_not_there_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "told.py").write_text("print('told')")
    page = f"```bash\npython {tmp_path}/told.py\n```\n<!-- output, needs {tmp_path}/model -->\n```\nof last year\n```\n"
    assert readme_outputs.with_outputs(page, {}) == page
    assert f"not run, for want of {tmp_path}/model:\npython {tmp_path}/told.py" in capsys.readouterr().err
    (tmp_path / "model").touch()
    assert "\ntold\n" in readme_outputs.with_outputs(page, {})


def test_nothing_but_results_can_be_removed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for path in ("weights", "output/../weights", "output", "."):
        with pytest.raises(UserError, match=f"^{re.escape(path)} is not in output/"):
            readme_outputs.remove(Path(path))


def test_a_python_block_shows_what_it_prints():
    text = readme_outputs.with_outputs("```python\nprint(6 *\n7)\n```\n<!-- output -->\n```\n```\n", {})
    assert text.endswith("<!-- output -->\n```\n42\n```\n")


def test_a_picture_is_made_by_the_command_above_it_once_and_not_in_a_check(tmp_path: Path, run_on):
    (tmp_path / "draw.py").write_text(f"open({str(tmp_path / 'drawn')!r}, 'a').write('x')")
    pages = [tmp_path / "page.md", tmp_path / "page.ko.md"]
    for page in pages:
        page.write_text(f"<!-- picture: python {tmp_path}/draw.py -->\n![words](docs/a.png)\n")
    with pytest.raises(SystemExit) as end:
        run_on("--check", *pages)
    assert end.value.code == 0
    assert not (tmp_path / "drawn").exists()
    run_on(*pages)
    assert (tmp_path / "drawn").read_text() == "x"


def test_a_picture_that_cannot_be_made_leaves_no_page_unwritten(tmp_path: Path, run_on):
    pages = [tmp_path / "page.md", tmp_path / "page.ko.md"]
    for page in pages:
        page.write_text(
            f"```bash\necho {page.name}\n```\n<!-- output -->\n```\n```\n<!-- picture: false -->\n![](a.png)\n"
        )
    with pytest.raises(UserError, match="false: exit code 1"):
        run_on(*pages)
    assert all(f"-->\n```\n{page.name}\n```\n" in page.read_text() for page in pages)
