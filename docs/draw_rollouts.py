"""`python docs/draw_rollouts.py REPORT PICTURE.png NAME=LABEL…`: draws how deep the needle went in closed loop.

REPORT: folder that `rollout` wrote; NAME: a run in it, shown as LABEL. After `make demo`, README's picture is

    python docs/draw_rollouts.py demo/reports/rollout docs/images/insertions.png \\
        "regression=with the sensor" "vision-only=vision only"
"""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from vla_jax.reporting.drawing import DARK, GREEN, ORANGE, new_figure, png

SUCCESS_MM = 0.2  # How far from the stop a success may end.
SHOWN_MM = (-12.0, 6.0)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=LABEL")
    arguments = parser.parse_args()
    rollouts = dict(np.load(arguments.report / "rollouts.npz"))
    figure = draw(rollouts, dict(run.split("=", 1) for run in arguments.runs))
    # 128 colours are enough for lines, and the file stays small.
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(128).save(arguments.picture, optimize=True)


def draw(rollouts: Mapping[str, np.ndarray], labels: Mapping[str, str]) -> Figure:
    """Returns the figure: for each run the depth of its episodes over time, from where the needle should stop."""
    figure = new_figure(3.4)
    panels = figure.subplots(1, len(labels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, label) in zip(panels, labels.items(), strict=True):
        episodes = np.flatnonzero(rollouts["run"][rollouts["trial"]] == name)
        draw_depths(axis, rollouts, episodes)
        axis.set_title(f"{label}: {rollouts['success'][episodes].sum()} of {len(episodes)}", fontsize=10)
        axis.set_xlabel("time [s]")
    panels[0].set_ylim(*SHOWN_MM[::-1])
    panels[0].set_ylabel("depth past the stop [mm]")
    handles = [
        Line2D([], [], color=GREEN, label="stops where the demonstrator would"),
        Line2D([], [], color=ORANGE, label="does not"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_depths(axis: Axes, rollouts: Mapping[str, np.ndarray], episodes: np.ndarray) -> None:
    """Draws the tip's depth in each of the episodes, and the band of success."""
    axis.axhspan(-SUCCESS_MM, SUCCESS_MM, color=GREEN, alpha=0.15, linewidth=0)
    axis.axhline(0, color=DARK, linewidth=0.8)
    for episode in episodes:
        ticks = slice(rollouts["tick_begin"][episode], rollouts["tick_end"][episode])
        time, depth = rollouts["time_s"][ticks], rollouts["tip_mm"][ticks, 2] - rollouts["stop_mm"][episode]
        colour = GREEN if rollouts["success"][episode] else ORANGE
        axis.plot(time - time[0], depth, color=colour, linewidth=0.9, alpha=0.6)
        axis.plot(time[-1] - time[0], depth[-1], ".", color=colour, markersize=4)


if __name__ == "__main__":
    main()
