"""Pictures of a data set: cameras, one episode over time, values before and after normalisation."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, UnidentifiedImageError

from vla_jax.dataset.records import ImageRef
from vla_jax.reporting.drawing import BLUE, DARK, GREEN, GREY, ORANGE, Drawing, drawn, new_figure
from vla_jax.reporting.inspection.normalised import Distribution
from vla_jax.reporting.inspection.samples import Sample, Timeline

COLOURS = (BLUE, ORANGE, GREEN)
NUM_BINS = 80
# A picture on the page is not looked at more closely than this.
MAX_PICTURE_SIDE = 480


def camera_figure(samples: Sequence[Sample], views: Sequence[str]) -> Drawing:
    """Draws what the cameras saw: a row per sample, a column per view."""
    figure = new_figure(0.35 + 1.75 * len(samples))
    grid = figure.subplots(len(samples), max(1, len(views)), squeeze=False)
    for row, sample in zip(grid, samples, strict=True):
        for axis, view in zip(row, views, strict=False):
            axis.set_xticks([])
            axis.set_yticks([])
            age = sample.ages_ms.get(view)
            axis.set_title(
                f"{view}, {sample.seconds:.1f} s" + ("" if age is None else f", {age:.0f} ms old"), fontsize=9
            )
            if view not in sample.pictures:
                _say(axis, "no picture yet" if sample.record < 0 else "view absent")
                continue
            pixels = read_picture(sample.pictures[view])
            if pixels is None:
                _say(axis, "file not found")
            else:
                axis.imshow(pixels)
    return drawn(figure)


def read_picture(picture: ImageRef) -> np.ndarray | None:
    """Returns a picture's pixels (rows, columns, 3), made smaller; None where the file is gone or damaged."""
    try:
        with picture.open() as file, Image.open(file) as image:
            image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError):
        return None


def timeline_figure(timeline: Timeline, marks: Sequence[float] = ()) -> Drawing:
    """Draws one episode: force, A-scans as a picture, actions, and how old what the ticks see is.

    marks: seconds at which to draw a line.
    """
    has_sensor = len(timeline.row_time) > 0
    groups = _moving_dims(timeline)
    heights = [*([1, 1.6] if has_sensor else []), *[1] * len(groups), 1.1]
    figure = new_figure(1.7 + 1.55 * len(groups) + (3.4 if has_sensor else 0))
    axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    if has_sensor:
        _draw_sensor(axes[0], axes[1], timeline)
    for axis, (unit, dims) in zip(axes[-1 - len(groups) : -1], groups.items(), strict=True):
        for i, dim in enumerate(dims):
            colour = COLOURS[i] if len(dims) <= len(COLOURS) else f"C{i % 10}"
            name = timeline.action_spec.names[dim]
            axis.plot(timeline.time, timeline.actions[:, dim], color=colour, linewidth=1.1, label=name)
        axis.set_ylabel(f"action [{unit}]" if unit else "action")
        axis.legend(loc="upper right", fontsize=9, ncols=min(len(dims), 7), frameon=False)
    _draw_ages(axes[-1], timeline)
    for axis in axes:
        for mark in marks:
            axis.axvline(mark, color=DARK, linewidth=0.6, alpha=0.5)
    axes[-1].set_xlabel("time [s]")
    if len(timeline.time) > 1:
        axes[-1].set_xlim(timeline.time[0], timeline.time[-1])
    return drawn(figure)


def _moving_dims(timeline: Timeline) -> dict[str, tuple[int, ...]]:
    """Returns unit → action dimensions that have it, of the units in which something changes; all if nothing does."""
    groups = {unit: timeline.action_spec.dims(unit) for unit in dict.fromkeys(timeline.action_spec.units)}
    moving = np.ptp(timeline.actions, axis=0) > 0
    return {unit: dims for unit, dims in groups.items() if moving[list(dims)].any()} or groups


def _draw_sensor(force_axis: Axes, ascan_axis: Axes, timeline: Timeline) -> None:
    known = np.isfinite(timeline.row_time)
    force_axis.plot(
        timeline.row_time[known], timeline.force[known], color=BLUE, linewidth=0.7, rasterized=True
    )
    force_axis.set_ylabel("force [sensor's unit]")
    ascan_axis.set_ylabel("A-scan depth [bin]")
    if len(timeline.column_time) < 2:
        _say(ascan_axis, "the ticks see hardly any of the sensor")
        return
    low, high = np.nanquantile(timeline.ascan, (0.01, 0.995))
    ascan_axis.imshow(
        timeline.ascan.T,
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, low + 1e-6),
        extent=(timeline.column_time[0], timeline.column_time[-1], timeline.ascan.shape[1], 0),
        interpolation="nearest",
    )


def _draw_ages(axis: Axes, timeline: Timeline) -> None:
    axis.plot(timeline.time, timeline.used_age, color=ORANGE, linewidth=1.1, label="pictures of the features")
    axis.plot(
        timeline.time[timeline.refresh],
        timeline.used_age[timeline.refresh],
        "o",
        color=ORANGE,
        markersize=2.5,
        label="features refreshed",
    )
    axis.plot(timeline.time, timeline.newest_age, color=GREY, linewidth=1.1, label="newest pictures")
    axis.plot(timeline.time, timeline.sensor_age, color=BLUE, linewidth=1.1, label="newest sensor row")
    axis.set_ylabel("age [ms]")
    # Room for the legend above the curves.
    axis.set_ylim(top=1.35 * max(1.0, axis.get_ylim()[1]))
    axis.legend(loc="upper right", fontsize=9, ncols=4, frameon=False)


def normalisation_figure(distributions: Sequence[Distribution]) -> Drawing:
    """Draws each quantity's histogram before (left) and after (right) normalisation."""
    shown = [entry for entry in distributions if entry.before.min() < entry.before.max()]
    figure = new_figure(0.3 + 0.95 * max(1, len(shown)))
    axes = figure.subplots(max(1, len(shown)), 2, squeeze=False)
    for row, entry in zip(axes, shown, strict=False):
        for axis, values, colour in ((row[0], entry.before, GREY), (row[1], entry.after, BLUE)):
            axis.hist(values, bins=NUM_BINS, color=colour, log=True)
            axis.tick_params(axis="y", which="both", left=False, labelleft=False)
        row[0].set_ylabel(entry.name)
    return drawn(figure)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color=GREY, transform=axis.transAxes)
