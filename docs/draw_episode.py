"""`python docs/draw_episode.py DATA PICTURE.png NAME=REPORT…`: draws one episode beside what policies predicted of it.

DATA: packed data set; REPORT: folder that `evaluate` wrote on it, shown as NAME. After `make demo`, README's picture is

    python docs/draw_episode.py demo/data docs/images/episode.png \\
        "with sensor=demo/reports/regression" "vision only=demo/reports/vision-only"
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.reporting.drawing import BLUE, DARK, GREY, ORANGE, new_figure, png

COLOURS = (BLUE, ORANGE)
SHOWN_MOMENTS = (0.1, 0.85)  # share of the episode
MOTIONS = {0: "dx [mm]", 1: "dy [mm]", 2: "dz [mm]"}


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    parser.add_argument(
        "--episode", help="its name; by default the first one that was judged and has a sensor"
    )
    arguments = parser.parse_args()
    reports = dict(report.split("=", 1) for report in arguments.reports)
    predictions = {name: dict(np.load(Path(folder) / "predictions.npz")) for name, folder in reports.items()}
    figure = draw(PackedDataset.open(arguments.data), predictions, arguments.episode)
    # 128 colours are enough for lines and small pictures, and the file stays small.
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(128).save(arguments.picture, optimize=True)


def draw(
    dataset: PackedDataset, predictions: dict[str, dict[str, np.ndarray]], name: str | None = None
) -> Figure:
    """Returns the figure: pictures at two moments, and below them each tick's first action over time."""
    first = next(iter(predictions.values()))
    episode = next(
        index
        for index in np.unique(first["episode"]).tolist()
        if dataset.episodes[index].name == name or (name is None and dataset.episodes[index].has_sensor)
    )
    rows = np.flatnonzero(first["episode"] == episode)
    ticks = first["tick"][rows]
    time = dataset.ticks.time[ticks] - dataset.ticks.time[ticks[0]]
    shown = [int(share * (len(ticks) - 1)) for share in SHOWN_MOMENTS]

    figure = new_figure(5.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 2.3))
    records = [dataset.records[int(dataset.record_index(ticks[[i]])[0])] for i in shown]
    pictures = [
        (f"{image.view}, {time[i]:.1f} s", image.path)
        for record, i in zip(records, shown, strict=True)
        for image in record.images
    ]
    for axis, (title, path) in zip(above.subplots(1, len(pictures)), pictures, strict=True):
        axis.imshow(Image.open(path))
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    figure.suptitle(f"“{records[0].prompt}”", fontsize=9)

    axes = below.subplots(len(MOTIONS), 1, sharex=True)
    for axis, (dim, label) in zip(axes, MOTIONS.items(), strict=True):
        axis.plot(time, first["target"][rows, 0, dim], color=DARK, linewidth=1.2)
        for colour, predicted in zip(COLOURS, predictions.values(), strict=False):
            axis.plot(time, predicted["predicted"][rows, 0, dim], color=colour, linewidth=1.2)
        for i in shown:
            axis.axvline(time[i], color=GREY, linewidth=0.9, linestyle="--")
        axis.set_ylabel(label)
        axis.set_xlim(time[0], time[-1])
    axes[-1].set_xlabel("time [s]")
    handles = [Line2D([], [], color=DARK, label="recorded")]
    handles += [Line2D([], [], color=c, label=name) for c, name in zip(COLOURS, predictions, strict=False)]
    below.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
