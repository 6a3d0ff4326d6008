"""An episode as something to look at: pictures and A-scans of a replay, small enough for a page."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vla_jax.contracts.environment import Environment, Reading, Scene
from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.evaluation.replay import replay
from vla_jax.evaluation.rollout_summary import Trial

FRAME_HEIGHT = 160  # pixels, at most
QUALITY = 60
ASCAN_BINS = 256  # of the drawn A-scan, at most
MMODE_MM = 0.03  # depth of a pixel
MAX_BYTES = 3_000_000
"""Of all pictures of a report's films: with figures and drawings, and a third more in text, a page of up to eight
policies stays below 10 MB."""


@dataclass(frozen=True)
class Film:
    """One episode to be shown. Axes: n+1 ticks, f frames, z bins of the A-scan."""

    title: str
    rollout: Rollout
    views: tuple[str, ...]
    frames: tuple[bytes, ...]
    """WebP files, the views side by side."""
    frame_of_tick: Int[np.ndarray, " n+1"]
    """Which of them is the newest at each tick."""
    ascans: UInt8[np.ndarray, "n+1 z"] | None
    """From the faintest (1) to the brightest, each tick's rows averaged, 0 at a tick without; None without a sensor."""
    bin_mm: float
    """Depth of one of these bins, in the tissue."""


def make_films(trial: Trial, environment: Environment, max_bytes: int) -> list[Film]:
    """Replays a trial's best, median and worst episode (see `ranked`).

    environment: as the episodes happened in, with a sensor window of one tick's rows.
    max_bytes: of all their pictures; where they need more, frames are left out evenly.
    """
    order = ranked(trial.rollouts)
    places = {"worst": len(order) - 1, "median": len(order) // 2, "best": 0}
    # Two episodes are worst and best, one is all three.
    chosen = {place: title for title, place in reversed(places.items())}
    return [
        make_film(title, order[place], replay(environment, order[place]), max_bytes // len(chosen))
        for place, title in sorted(chosen.items(), reverse=True)
    ]


def ranked(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Returns the episodes from the best to the worst: successes first, and by the environment's first measure, the
    largest last and after it those in which it is not defined."""

    def rank(rollout: Rollout) -> tuple[bool, float, int]:
        value = next(iter(rollout.outcome.measures.values()), None)
        return not rollout.outcome.success, np.inf if value is None else float(value), rollout.seed

    return sorted(rollouts, key=rank)


def make_film(title: str, rollout: Rollout, readings: Iterable[Reading], max_bytes: int) -> Film:
    """Makes a film of an episode's readings."""
    scene = rollout.outcome.scene
    bin_mm = scene.ascan_bin_mm if scene else None
    frames: list[bytes] = []
    frame_of_tick: list[int] = []
    ascans: list[np.ndarray | None] = []
    views: tuple[str, ...] = ()
    shown_s = None
    for reading in readings:
        if reading.images and (reading.image_time_s != shown_s or tuple(reading.images) != views):
            shown_s, views = reading.image_time_s, tuple(reading.images)
            frames.append(_encoded([reading.images[view] for view in views]))
        frame_of_tick.append(max(len(frames) - 1, 0))
        rows = reading.sensor
        ascans.append(None if rows is None else rows[:, 1:].mean(axis=0, dtype=np.float64))
    kept, kept_of_tick = _thinned(frames, np.array(frame_of_tick, int), max_bytes)
    brightness, pooled_mm = _brightness(ascans, bin_mm) if bin_mm else (None, 0.0)
    return Film(title, rollout, views, kept, kept_of_tick, brightness, pooled_mm)


def mmode(film: Film, scene: Scene, top_mm: float, bottom_mm: float) -> UInt8[np.ndarray, "d n+1"]:
    """Returns the A-scans over time, each where it was in the tissue: rows of about `MMODE_MM` of depth, from `top_mm`
    to `bottom_mm` below the surface; 0 where none reaches."""
    if film.ascans is None:
        raise ValueError("no A-scans")
    num_rows = max(1, round((bottom_mm - top_mm) / MMODE_MM))
    depth = top_mm + (np.arange(num_rows) + 0.5) * (bottom_mm - top_mm) / num_rows
    ahead = optical_mm(depth, scene)[:, None] - optical_mm(scene.tip_mm[:, 2], scene)
    bins = np.floor(ahead / film.bin_mm).astype(int)
    num_bins = film.ascans.shape[1]
    values = film.ascans.T[bins.clip(0, num_bins - 1), np.arange(len(film.ascans))]
    return np.where((bins >= 0) & (bins < num_bins), values, 0).astype(np.uint8)


def optical_mm(depth_mm: np.ndarray, scene: Scene) -> np.ndarray:
    """Returns depths as light measures them: those in air, above the surface, are shorter."""
    return np.where(depth_mm < 0, depth_mm / scene.air_index, depth_mm)


def webp(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Encodes a picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def _encoded(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> bytes:
    """Returns pictures side by side, of one height, as WebP."""
    height = min(FRAME_HEIGHT, min(len(picture) for picture in pictures))
    sized = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        sized.append(np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)))
    return webp(np.concatenate(sized, axis=1))


def _thinned(
    frames: Sequence[bytes], frame_of_tick: Int[np.ndarray, " t"], max_bytes: int
) -> tuple[tuple[bytes, ...], Int[np.ndarray, " t"]]:
    """Leaves out frames evenly until they need no more than `max_bytes`; the first and one of each stretch stay."""
    stride = 1
    while len(frames[::stride]) > 1 and sum(map(len, frames[::stride])) > max_bytes:
        stride += 1
    return tuple(frames[::stride]), frame_of_tick // stride


def _brightness(
    ascans: Sequence[Float[np.ndarray, " c"] | None], bin_mm: float
) -> tuple[UInt8[np.ndarray, "t z"] | None, float]:
    """Returns A-scans of at most `ASCAN_BINS` bins as brightness, 1 to 255, 0 at ticks without one, and the depth of a
    bin; None where no tick has one."""
    present = np.array([ascan is not None for ascan in ascans])
    if not present.any():
        return None, 0.0
    recorded = np.stack([ascan for ascan in ascans if ascan is not None])
    pool = -(-recorded.shape[1] // ASCAN_BINS)
    num_bins = recorded.shape[1] // pool
    # Means would wash out the thin lines that interfaces are.
    pooled = recorded[:, : num_bins * pool].reshape(len(recorded), num_bins, pool).max(axis=2)
    # The fibre's own end, a few bins wide, is brighter than all tissue.
    low, high = np.quantile(pooled, [0.01, 0.96])
    brightness = np.zeros((len(ascans), num_bins), np.uint8)
    brightness[present] = (1 + 254 * ((pooled - low) / max(high - low, 1e-9)).clip(0, 1)).round()
    return brightness, bin_mm * pool
