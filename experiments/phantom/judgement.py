"""When an insertion has succeeded: rules over the path of the tip.

Success: entered at the marker, never far past the stop in the target layer, and stopped at it. The first rule that is
broken, in the order of `FAILURES`, names the failure.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.contracts.environment import Outcome

FAILURES = ("never_entered", "off_marker", "too_deep", "did_not_stop", "stopped_short", "stopped_past")

ENTRY_MM = 0.5
"""Largest distance from the marker's centre at which the tip may enter."""
TOO_DEEP_MM = 0.5
"""Largest depth past the stop at any time."""
STOP_MM = 0.2
"""Largest distance from the stop, in depth, at which the needle may stop."""
STILL_S, STILL_MM = 1.0, 0.1
"""The needle has stopped when it was no further than this from where it is for so long; where tissue passes it by
sideways, as a breathing patient's does, no further along itself: the stop is a depth."""


@dataclass(frozen=True)
class InsertionTrace:
    """The path of the tip at control ticks, the first at the start; straight lines between them."""

    tip_mm: Float[np.ndarray, "n 3"]
    """Sideways from the marker's centre (x, y), and depth below the surface, which may move."""
    arm_mm: Float[np.ndarray, "n 3"]
    """The same tip in the arm's base frame."""
    force_n: Float[np.ndarray, " n"]
    """Largest axial force since the tick before."""
    stop_mm: float
    """Depth at which the demonstrator would stop."""
    tick_s: float
    """Time between two ticks."""

    @property
    def depth_mm(self) -> Float[np.ndarray, " n"]:
        """Depth of the tip below the surface."""
        return self.tip_mm[:, 2]

    @property
    def has_stopped(self) -> bool:
        """Whether the needle has stood still for `STILL_S`, in the tissue or, where that moves, by itself."""
        num_ticks = round(STILL_S / self.tick_s)
        if len(self.tip_mm) <= num_ticks:
            return False
        tip, arm = self.tip_mm[-num_ticks - 1 :], self.arm_mm[-num_ticks - 1 :]
        tissue_xy = arm[:, :2] - tip[:, :2]
        passes_by = np.ptp(tissue_xy, axis=0).max() > 1e-6
        paths = (tip[:, 2:] if passes_by else tip, arm)
        return any(np.linalg.norm(path - path[-1], axis=1).max() <= STILL_MM for path in paths)

    def entries_mm(self) -> Float[np.ndarray, " e"]:
        """Returns how far from the marker's centre the tip was whenever it passed the surface on its way in."""
        before, after = self.tip_mm[:-1], self.tip_mm[1:]
        enters: Bool[np.ndarray, " m"] = (before[:, 2] <= 0) & (after[:, 2] > 0)
        before, after = before[enters], after[enters]
        share = before[:, 2:] / (before[:, 2:] - after[:, 2:])
        return np.linalg.norm((before + share * (after - before))[:, :2], axis=1)

    def jerk_mm_s3(self) -> float | None:
        """Returns the root mean square of the third derivative of the path; None for fewer than four ticks."""
        if len(self.tip_mm) < 4:
            return None
        jerk = np.diff(self.tip_mm, n=3, axis=0) / self.tick_s**3
        return float(np.sqrt(np.mean(np.sum(jerk**2, axis=1))))


def judge(trace: InsertionTrace) -> Outcome:
    """Judges an insertion up to now.

    Measures: depth_error_um, from the stop to where the tip is now, without sign; overshoot_um, from the stop to the
    deepest point; lateral_um, from the marker to where the tip entered (the farthest of several entries);
    peak_force_n; time_s; jerk, root mean square, mm/s³; stopped, whether it stands still in the tissue. The first
    three are None where the tip never entered.
    """
    entries = trace.entries_mm()
    error = float(trace.depth_mm[-1] - trace.stop_mm)
    overshoot = max(float(trace.depth_mm.max() - trace.stop_mm), 0.0)
    entered = len(entries) > 0
    measures = {
        "depth_error_um": abs(error) * 1000 if entered else None,
        "overshoot_um": overshoot * 1000 if entered else None,
        "lateral_um": float(entries.max()) * 1000 if entered else None,
        "peak_force_n": float(trace.force_n.max()),
        "time_s": (len(trace.tip_mm) - 1) * trace.tick_s,
        "jerk": trace.jerk_mm_s3(),
        "stopped": bool(trace.depth_mm[-1] > 0) and trace.has_stopped,
    }
    broken = {
        "never_entered": not entered,
        "off_marker": entered and entries.max() > ENTRY_MM,
        "too_deep": overshoot > TOO_DEEP_MM,
        "did_not_stop": not trace.has_stopped,
        "stopped_short": error < -STOP_MM,
        "stopped_past": error > STOP_MM,
    }
    failure = next((name for name in FAILURES if broken[name]), None)
    return Outcome(success=failure is None, failure=failure, measures=measures)
