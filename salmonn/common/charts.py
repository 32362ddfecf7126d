"""How the project's pictures look: colours, panels, atomically written PNGs.

matplotlib is imported inside functions: seconds that only who draws should wait.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder, replacing
from salmonn.common.letters import show_letters

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
    from matplotlib.typing import ColorType

BLUE, ORANGE, GREY = "#1f77b4", "#ff7f0e", "#9e9e9e"
LIGHT_ORANGE = "#ffbb78"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches that makes room for whatever is put into it; needs no display."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    room = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches, also at the edges
    return Figure(figsize=(width, height), layout=room)


def grid_shape(n: int, at_most: int) -> tuple[int, int]:
    """(columns, rows) for n panels: about a square of them, until it is as wide as a page."""
    columns = min(at_most, math.ceil(math.sqrt(n)))
    return columns, math.ceil(n / columns)


def distinct_colours(n: int) -> "Sequence[ColorType]":
    """Colours for n things that are to be told apart: ten dark ones, then ten light ones, then all over again."""
    from matplotlib import color_sequences
    from matplotlib.colors import to_rgb

    dark = [to_rgb(name) for name in color_sequences["petroff10"]]  # chosen for colour-blind readers, too
    palette = dark + [((1 + r) / 2, (1 + g) / 2, (1 + b) / 2) for r, g, b in dark]
    return [palette[i % len(palette)] for i in range(n)]


def distinct_parts(paths: Sequence[str]) -> list[str]:
    """Paths of checkpoints or runs without the leading and trailing parts that all share; a part of each is left."""
    parts = [path.removesuffix(".pth").split("/") for path in paths]
    head = _shared(parts)
    tail = _shared([path[head:][::-1] for path in parts])
    return ["/".join(path[head : len(path) - tail]) for path in parts]


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """How many parts all paths begin with, without the last part of any."""
    columns = zip(*(path[:-1] for path in paths), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def style_panel(panel: "Axes") -> None:
    """A panel as all pictures have it: no frame, a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)


def logarithmic(panel: "Axes") -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def percent_labels() -> "PercentFormatter":
    """Labels of an axis of shares."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, symbol=" %")


def name_bands(panel: "Axes", hertz: "Sequence[float] | np.ndarray") -> None:
    """A vertical axis of mel bands, 1 high each, told in Hz; `hertz`: the middle of each band, rising."""
    import numpy as np

    shown = [f for f in (500, 1000, 2000, 4000, 8000, 16_000) if hertz[0] <= f <= hertz[-1]]
    places = np.interp(shown, hertz, np.arange(len(hertz)) + 0.5)
    labels = [f"{f / 1000:g}k" if f >= 1000 else f"{f}" for f in shown]
    panel.set_yticks(places, labels)
    panel.set_ylabel("Hz")


def png_path(text: str) -> Path:
    """The value of an --out: pictures are PNG, in a folder that may still have to be made."""
    path = Path(text)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ArgumentTypeError(f"{text}: pictures are written as PNG, so name a file that ends in .png")
    return path


def write_png(figure: "Figure", out: Path) -> None:
    """Write the figure; the file is complete whenever it exists. Raises UserError where it cannot be."""
    show_letters(figure)
    try:
        make_folder(out.parent)
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{out} could not be written: {error}") from error
