"""Rows of a stream put into the order of their own times before they are written, whatever order they came in."""

import numpy as np
from jaxtyping import Float, Shaped


class RowOrder:
    """Holds rows back for a while, so that late ones find their place.

    Rows are ordered by their sender's clock; the times they are given are on ours, by the newest offset. Rows that
    come too late, or again, are counted as `dropped`. hold_s: for how long rows are held back.
    """

    def __init__(self, hold_s: float) -> None:
        self.dropped = 0
        self._hold_s = hold_s
        self._epoch = 0
        self._offset = 0.0
        self._own: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._last_own = self._last = -np.inf

    def add(
        self,
        times: Float[np.ndarray, " n"],
        rows: Shaped[np.ndarray, "n ..."],
        offset: float,
        epoch: int,
    ) -> None:
        """Takes rows. times: on our clock, `offset` of which was added to the sender's; epoch: that clock's jumps.

        `take` all that are held before rows of another epoch come: their times cannot be compared.
        """
        if epoch != self._epoch:
            self._epoch, self._last_own = epoch, -np.inf
        self._offset = offset
        self._own.append(times - offset)
        self._rows.append(rows)

    def is_of(self, epoch: int) -> bool:
        """Whether rows of this epoch may join those that are held."""
        return not self._own or epoch == self._epoch

    def take(self, *, everything: bool = False) -> tuple[Float[np.ndarray, " n"], list[np.ndarray]]:
        """Returns the rows that are held back no longer, or everything: ascending times on our clock, and the rows."""
        if not self._own:
            return np.empty(0), []
        own = np.concatenate(self._own)
        rows = [row for block in self._rows for row in block]
        order = np.argsort(own, kind="stable")
        ready = np.inf if everything else own[order[-1]] - self._hold_s
        taken = [int(i) for i in order if own[i] <= ready]
        held = [int(i) for i in order if own[i] > ready]
        self._own = [own[held]] if held else []
        self._rows = [np.stack([rows[i] for i in held])] if held else []
        kept = []
        for i in taken:
            if own[i] > self._last_own and own[i] + self._offset > self._last:
                self._last_own, self._last = own[i], own[i] + self._offset
                kept.append(i)
        self.dropped += len(taken) - len(kept)
        return own[kept] + self._offset, [rows[i] for i in kept]
