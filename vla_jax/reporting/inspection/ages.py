"""How old what a sample sees is: time offsets between the modalities of a packed data set."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from vla_jax import timing
from vla_jax.dataset.packed_dataset import PackedDataset

Pictures = Literal["newest", "used"]


def picture_times(
    dataset: PackedDataset, ticks: Int[np.ndarray, " n"], which: Pictures
) -> Float[np.ndarray, "n views"]:
    """Returns when each view's picture was taken, unix seconds; NaN where a view is absent.

    which: "newest", the pictures of the newest camera instant at each tick; "used", those that the tick's features
        come from, which are refreshed every `vlm_reuse_count` ticks.
    """
    ticks = np.asarray(ticks)
    instant = (dataset.ticks.instant if which == "newest" else dataset.ticks.record)[ticks]
    times = np.full((len(ticks), len(dataset.meta.views)), np.nan)
    present = instant >= 0
    images = dataset.array("instant_images")[instant[present]]
    # A row of its own for "no picture", which −1 points at.
    taken = np.append(dataset.array("image_time"), np.nan)
    times[present] = taken[images]
    return times


def picture_ages(
    dataset: PackedDataset, ticks: Int[np.ndarray, " n"], which: Pictures
) -> Float[np.ndarray, "n views"]:
    """Returns the age of each view's picture at each tick, seconds; negative when it was taken later, NaN if absent."""
    return timing.ages(dataset.ticks.time[ticks], picture_times(dataset, ticks, which))


def sensor_ages(dataset: PackedDataset, ticks: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the age of the newest sensor row at each tick, seconds; negative when it is later, NaN without."""
    return timing.ages(dataset.ticks.time[ticks], dataset.ticks.sensor_time[ticks])


def view_spread(dataset: PackedDataset, ticks: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns how far apart in time the views of each tick's features were taken, seconds; NaN without pictures."""
    return timing.spread(picture_times(dataset, ticks, "used"))
