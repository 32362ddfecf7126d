"""A picture shows every letter: in a font of this machine, else by its code, and says so once."""

import logging

import pytest

from salmonn.common import letters
from salmonn.common.charts import new_figure, write_png
from salmonn.common.letters import show_letters

NO_FONT = "\U000f1234"  # of private use: no font has it


def figure_with(*texts: str):
    figure = new_figure(6, 4)
    panel = figure.subplots()
    panel.set_title(texts[0])
    panel.set_yticks(range(len(texts)), texts)
    return figure, panel


def labels(panel) -> list[str]:
    panel.figure.draw_without_rendering()
    return [label.get_text() for label in panel.get_yticklabels()]


@pytest.mark.parametrize("texts", [["你好"], ["雨が降る", "rain"], ["배는 파란색"], ["สวัสดี"]])
def test_letters_are_drawn_in_a_font_that_has_them_or_as_codes(texts, monkeypatch, caplog, recwarn):
    figure, panel = figure_with(*texts)
    show_letters(figure)
    told = " ".join(labels(panel))
    if "no font here has" in caplog.text:  # a machine without such a font
        assert f"U+{ord(texts[0][0]):04X}" in told
    else:
        assert told == " ".join(texts)
        assert len(panel.title.get_fontfamily()) > 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    monkeypatch.setattr(letters, "_fonts_here", tuple)
    figure, panel = figure_with(*texts)
    show_letters(figure)
    assert f"U+{ord(texts[0][0]):04X}" in labels(panel)[0]
    assert f"U+{ord(texts[0][0]):04X}" in panel.get_title()


def test_what_no_font_has_is_told_once_and_the_rest_is_kept(caplog, tmp_path):
    figure, panel = figure_with(f"a {NO_FONT}b", "plain")
    with caplog.at_level(logging.WARNING):
        write_png(figure, tmp_path / "a.png")
    assert labels(panel) == ["a U+F1234 b", "plain"]
    assert len([message for message in caplog.messages if "no font here has" in message]) == 1


def test_plain_pictures_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(letters, "_fonts_here", lambda: pytest.fail("fonts are looked for"))
    figure, panel = figure_with("é ß Ω Ж −1 ≤", "two\nlines")
    show_letters(figure)
    assert labels(panel) == ["é ß Ω Ж −1 ≤", "two\nlines"]
