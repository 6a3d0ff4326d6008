"""The time of a computer whose clock is off."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class SkewedClock:
    """A computer's clock that is off, drifts, and jumps once."""

    start_s: float
    """Unix time from which it drifts, and from which the jump is counted."""
    offset_s: float = 0.0
    drift_ppm: float = 0.0
    """How much it runs too fast."""
    jump_after_s: float = float("inf")
    jump_s: float = 0.0

    def reads(self, moments: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Returns what it shows at true unix times."""
        since = moments - self.start_s
        jumped = np.where(since >= self.jump_after_s, self.jump_s, 0.0)
        return moments + self.offset_s + 1e-6 * self.drift_ppm * since + jumped
