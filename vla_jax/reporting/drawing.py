"""How the reports' figures are drawn: one width, one set of colours, PNG bytes; without pyplot, so that no global
state is left behind."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DARK, BLUE, GREY, ORANGE, GREEN = "#111827", "#2563eb", "#9ca3af", "#d97706", "#059669"
WIDTH = 9.0  # inches, of every figure, so that their letters are of one size on the page
DOTS_PER_INCH = 150


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the common width; height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


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
    axis.tick_params(labelsize=8, color=GREY)
    # A grid would cross out a picture.
    if not axis.images:
        axis.grid(visible=True, color="#e5e7eb", linewidth=0.6)
        axis.set_axisbelow(True)
    axis.xaxis.label.set_fontsize(9)
    axis.yaxis.label.set_fontsize(9)
