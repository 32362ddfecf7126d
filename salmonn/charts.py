"""How the project's pictures look: colours, panels, and a file that is there whole or not at all.

matplotlib is imported inside functions: seconds that only who draws should wait.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from salmonn.files import replacing

if TYPE_CHECKING:
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

    pairs = color_sequences["tab20"]  # dark, light, dark, light, ...
    palette = pairs[::2] + pairs[1::2]
    return [palette[i % len(palette)] for i in range(n)]


def style_panel(panel: "Axes") -> None:
    """A panel as all pictures have it: no frame, a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)


def percent_labels() -> "PercentFormatter":
    """Labels of an axis of shares."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, symbol=" %")


def write_png(figure: "Figure", out: Path) -> None:
    """Write the figure; the file is complete whenever it exists."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
