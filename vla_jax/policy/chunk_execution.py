"""From predicted chunks to the action of a tick: the same on a robot and in a simulated closed loop."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Noise = Literal["chunk", "episode"]
"""How often the noise of a policy that denoises is drawn: anew for each chunk, or once for each episode, so that what
changes from a chunk to the next is not the noise."""


@dataclass(frozen=True)
class Execution:
    """How chunks are executed. Times are counted in control ticks, not in seconds that somebody estimated."""

    execute: int = 1
    """Actions of a chunk that are executed before the next prediction (receding horizon)."""
    latency: int = 0
    """Ticks from what a chunk was predicted on until its actions can be sent; those of them that lie before are past
    by then, and left out."""
    ensemble: float | None = None
    """Temporal ensembling (Zhao et al., "Learning fine-grained bimanual manipulation with low-cost hardware", RSS
    2023): the mean of what all chunks have for a tick, weighted by exp(−ensemble · i) with i = 0 for the oldest. None:
    the newest chunk alone."""

    def __post_init__(self) -> None:
        if self.execute < 1:
            raise ValueError(f"execute must be at least 1, not {self.execute}")
        if self.latency < 0:
            raise ValueError(f"latency must not be negative, not {self.latency}")

    def check_horizon(self, horizon: int) -> None:
        """Raises ValueError where chunks are used up before the next one can be sent."""
        if self.execute + self.latency > horizon:
            raise ValueError(
                f"{self.execute} actions of each chunk, {self.latency} ticks late, need a horizon of "
                f"{self.execute + self.latency}; the policy's is {horizon}"
            )


class ChunkQueue:
    """The chunks of one episode, and the action that they give at each tick.

    hold: what is sent while there is none yet.
    """

    def __init__(self, execution: Execution, hold: Float[np.ndarray, " a"]) -> None:
        self._execution = execution
        self._hold = hold
        self._chunks: deque[tuple[int, np.ndarray]] = deque()

    def needs_chunk(self, tick: int) -> bool:
        """Whether the policy is to predict on what is known at this tick."""
        return tick % self._execution.execute == 0

    def add(self, tick: int, chunk: Float[np.ndarray, "h a"]) -> None:
        """Takes what was predicted on what was known at a tick: the actions from that tick on."""
        self._chunks.append((tick, chunk))

    def action(self, tick: int) -> Float[np.ndarray, " a"]:
        """Returns the action to execute from this tick to the next."""
        while self._chunks and tick - self._chunks[0][0] >= len(self._chunks[0][1]):
            self._chunks.popleft()
        return self._action(tick)

    def planned(self, tick: int) -> Float[np.ndarray, "n a"]:
        """Returns the actions that would be executed from a tick on if no chunk came any more, as far as there are any.

        The first `Execution.latency` of them are promised: they are executed whatever is predicted at this tick, since
        that cannot be sent before.
        """
        latency = self._execution.latency
        ends = [begun + len(chunk) for begun, chunk in self._chunks]
        last = max([tick + latency, *ends])
        if last == tick:
            return self._hold[None][:0]
        return np.stack([self._action(later) for later in range(tick, last)])

    def chunk_age(self, tick: int) -> float:
        """Returns how many ticks before a tick the chunk was predicted on that gives its action: of several, the mean
        weighted as their actions are; NaN while there is none."""
        ready = self._ready(tick)
        if not ready:
            return float("nan")
        weights = self._weights(len(ready))
        return float(weights @ [tick - begun for begun, _ in ready] / weights.sum())

    def _action(self, tick: int) -> Float[np.ndarray, " a"]:
        """Returns what the chunks have for a tick, which may lie ahead."""
        ready = self._ready(tick)
        if not ready:
            return self._hold
        actions = [chunk[tick - begun] for begun, chunk in ready]
        if len(actions) == 1:
            return actions[0]
        weights = self._weights(len(actions))
        return (weights @ np.stack(actions) / weights.sum()).astype(actions[-1].dtype)

    def _ready(self, tick: int) -> list[tuple[int, np.ndarray]]:
        """Returns the chunks that give a tick's action, each with the tick that it was predicted at, oldest first."""
        ready = [
            (begun, chunk)
            for begun, chunk in self._chunks
            if begun + self._execution.latency <= tick < begun + len(chunk)
        ]
        return ready[-1:] if self._execution.ensemble is None else ready

    def _weights(self, count: int) -> Float[np.ndarray, " n"]:
        """Returns how much each of so many chunks counts in an action, oldest first."""
        return np.exp(-(self._execution.ensemble or 0.0) * np.arange(count))


def num_promised(execution: Execution, *, prefix_max: int, guided: bool) -> int:
    """Returns how many actions a policy is told to be promised: those that will be executed whatever is predicted now,
    as many as it takes. prefix_max, guided: of the policy (`InsertionPolicy`)."""
    return execution.latency if guided else min(execution.latency, prefix_max)


def plan_arguments(
    plans: Sequence[Float[np.ndarray, "n a"]], promised: Sequence[int], horizon: int
) -> dict[str, np.ndarray]:
    """Returns `prefix` [b, horizon, a], `prefix_length` [b] and `plan_length` [b] of `InsertionPolicy.predict`.

    plans: what is planned of each row (`ChunkQueue.planned`). promised: how many actions of each are.
    """
    prefix = np.zeros((len(plans), horizon, plans[0].shape[1]), np.float32)
    for filled, plan in zip(prefix, plans, strict=True):
        filled[: len(plan)] = plan
    return {
        "prefix": prefix,
        "prefix_length": np.array(promised, np.int32),
        "plan_length": np.array([len(plan) for plan in plans], np.int32),
    }
