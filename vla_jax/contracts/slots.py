"""Where a record's features lie in the fixed number of slots that a policy reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.contracts.provenance import Provenance


@dataclass(frozen=True)
class SlotLayout:
    """The slots of one data set or policy.

    With `grid` pooling of K×K cells view i has the slots K²·i … K²·i + K² − 1, row by row, and the text the last one;
    an absent view's slots are masked. Otherwise (`mean`, `last`, `tokens`) a record fills the first slots.

    Axes: n records, w views, s slots, v feature width.
    """

    num_slots: int
    cells: int
    """Slots of a view; 0 where slots belong to no view."""

    @classmethod
    def of(cls, provenance: Provenance, num_views: int, longest: int = 1) -> "SlotLayout":
        """Returns the layout of features.

        longest: slots of the longest record; counts where slots belong to no view.
        """
        if provenance.pooling == "grid":
            cells = provenance.grid**2
            return cls(cells * num_views + 1, cells)
        return cls(longest, 0)

    def lengths(self, views: Bool[np.ndarray, "n w"]) -> Int[np.ndarray, " n"]:
        """Returns how many slots records with these views fill; only where slots belong to views."""
        return self.cells * views.sum(axis=1) + 1

    def mask(self, views: Bool[np.ndarray, "n w"], lengths: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n s"]:
        """Returns which slots are there.

        views: which views a record shows. lengths: slots it fills; 0 stands for no record.
        """
        if not self.cells:
            return np.arange(self.num_slots) < lengths[:, None]
        is_there = (lengths > 0)[:, None]
        return np.concatenate([np.repeat(views & is_there, self.cells, axis=1), is_there], axis=1)

    @staticmethod
    def place(
        records: Sequence[Float[np.ndarray, "_ v"]], mask: Bool[np.ndarray, "n s"], values: np.ndarray
    ) -> None:
        """Writes records, of those rows that have one, into `values` [n, s, v].

        A record's slots, one after another, are the present slots in row order.
        """
        if records:
            values[mask] = np.concatenate(records)
