"""Letters of all scripts in pictures: matplotlib's own font has Latin, Greek, Cyrillic and a few more."""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import category

from salmonn.common.errors import examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_LIKELY = ("cjk", "han", "gothic", "ming", "hei", "unicode", "unifont", "noto")  # in names of fonts with many letters
_UNLIKE = ("serif", "mono", "bold", "italic", "oblique", "light", "thin", "black")  # matplotlib's own
_UNSEEN = ("Cc", "Cf")  # line breaks and the like, by their Unicode category


def show_letters(figure: "Figure") -> None:
    """Let every letter of a figure be drawn: in a font of this machine, or by its code where no font has it."""
    from matplotlib.font_manager import fontManager, get_font
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    own = _letters_of(_own_font())
    worded = (FixedFormatter, FuncFormatter)  # whose ticks have texts of their own; others have numbers
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    axes = [axis for axis in axes if isinstance(axis.get_major_formatter(), worded)]
    labels = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in axes}  # they are made only now
    texts = figure.findobj(Text)
    missing = {letter for text in texts for letter in text.get_text() if ord(letter) not in own}
    missing = {letter for letter in missing if not letter.isspace() and category(letter) not in _UNSEEN}
    if not missing:
        return
    families: list[str] = []
    for path in _fonts_here():
        found = {letter for letter in missing if ord(letter) in _letters_of(path)}
        if found:
            fontManager.addfont(path)  # the library's list of fonts may be older than this one
            families, missing = [*families, get_font(path).family_name], missing - found
        if not missing:
            break
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing:
        codes = str.maketrans({letter: f"U+{ord(letter):04X} " for letter in missing})
        for text in texts:
            text.set_text(text.get_text().translate(codes))
        for axis, shown in labels.items():
            if (told := [label.translate(codes) for label in shown]) != shown:
                axis.set_ticks(axis.get_ticklocs(), told)
        codes_shown = examples([f"U+{ord(letter):04X}" for letter in sorted(missing)])
        logger.warning("no font here has %s: a picture shows their codes", codes_shown)


def _own_font() -> str:
    from matplotlib.font_manager import findfont

    return findfont("DejaVu Sans")  # comes with matplotlib


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Codes of the letters that a font has; a file that cannot be read has none."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError) as error:
        logger.debug("%s: %s", path, error)
        return frozenset()


@cache
def _fonts_here() -> tuple[str, ...]:
    """The font files of this machine, first those that are likely to have many letters, as plain as the others."""
    from matplotlib.font_manager import findSystemFonts

    def place(path: str) -> tuple[bool, int, str]:
        name = Path(path).name.lower()
        return not any(part in name for part in _LIKELY), sum(part in name for part in _UNLIKE), name

    return tuple(sorted(findSystemFonts(), key=place))
