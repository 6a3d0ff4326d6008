"""How the reports' figures are drawn: one width, one set of colours; without pyplot, so that no global state is left
behind."""

import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

DARK, BLUE, GREY, ORANGE, GREEN = "#111827", "#2563eb", "#9ca3af", "#d97706", "#059669"
LINE = "#e5e7eb"
WIDTH = 9.0  # inches, of every figure, so that their letters are of one size on the page
DOTS_PER_INCH = 150

# Letters stay letters: they can be searched, and a page may colour them; equal figures give equal bytes.
_TEXT = {"svg.fonttype": "none", "svg.hashsalt": "vla-jax", "pdf.fonttype": 42}
# Of a file, not of a part of a page: declarations, names of its author, name spaces.
_ABOUT = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|\sxmlns(:\w+)?=\"[^\"]*\"", re.DOTALL
)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"')


@dataclass(frozen=True)
class Drawing:
    """A finished figure, written in whatever form it is wanted."""

    figure: Figure

    def svg(self) -> str:
        """Returns an SVG file."""
        with matplotlib.rc_context(_TEXT):
            buffer = io.StringIO()
            self.figure.savefig(buffer, format="svg", dpi=DOTS_PER_INCH, metadata={"Date": None})
        return buffer.getvalue()

    def _repr_svg_(self) -> str:
        """Shows the figure in a notebook."""
        return self.svg()

    def pdf(self) -> bytes:
        """Returns a PDF file."""
        with matplotlib.rc_context(_TEXT):
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="pdf", dpi=DOTS_PER_INCH, metadata={"CreationDate": None})
        return buffer.getvalue()

    def inline(self) -> str:
        """Returns an SVG element for a page, as wide as its place, in the page's colours (`style.py`)."""
        text = _ABOUT.sub("", self.svg()).strip()
        for _ in range(2):
            text = _SIZE.sub(lambda found: found[1] or found[2], text, count=1)
        for name, colour in COLOUR_NAMES.items():
            text = text.replace(colour, f"var(--{name})")
        return text


COLOUR_NAMES = {
    "ink": DARK,
    "blue": BLUE,
    "grey": GREY,
    "orange": ORANGE,
    "green": GREEN,
    "line": LINE,
    "card": "#ffffff",
}
"""The page's variable for each colour of the figures."""


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the common width; height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def drawn(figure: Figure) -> Drawing:
    """Returns a figure that is finished, its plain axes in the common style."""
    for axis in figure.axes:
        _tidy(axis)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_color() == "black":
            text.set_color(DARK)
    # Each drawing would move the layout once more; so all files of a figure are alike.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return Drawing(figure)


def png(figure: Figure) -> bytes:
    """Returns a figure's PNG bytes, its plain axes in the common style."""
    for axis in figure.axes:
        _tidy(axis)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(labelsize=9, color=GREY, labelcolor=DARK)
    axis.tick_params(which="minor", color=GREY, labelcolor=DARK)
    # A grid would cross out a picture.
    if not axis.images:
        axis.grid(visible=True, color=LINE, linewidth=0.6)
        axis.set_axisbelow(True)
    axis.xaxis.label.set_fontsize(10)
    axis.yaxis.label.set_fontsize(10)
