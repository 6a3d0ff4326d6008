"""What the arm is to do next: chunks are asked for where one is due, and give each tick's action."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.live.predicting import Prediction, Predictor
from vla_jax.policy.chunk_execution import ChunkQueue, Execution, Noise, num_promised, plan_arguments
from vla_jax.policy.insertion_policy import InsertionPolicy


class ChunkPlan:
    """The chunks of one policy, in ticks of its own count. `advance` once for each tick, whatever happens in it.

    A policy that goes on from promised actions, or is guided by planned ones, is given them as in `roll_out`.

    noise: how often a policy that denoises draws.
    """

    def __init__(
        self, policy: InsertionPolicy, predictor: Predictor, execution: Execution, noise: Noise = "chunk"
    ) -> None:
        self._policy = policy
        self._predictor = predictor
        self._execution = execution
        self._noise = noise
        self._still = policy.data.actions.before_first
        self._tick = 0
        self._draw = 0
        self.forget()

    def begin_episode(self) -> None:
        """Forgets everything, and draws other noise."""
        self._draw += 1
        self.forget()

    def forget(self) -> None:
        """Forgets the chunks: after a hold they are plans for another moment."""
        self._queue = ChunkQueue(self._execution, self._still)
        # What is under way was asked for before: it is known by its tick, which never comes again.
        self._asked_from = self._tick
        self._owes_chunk = True
        self._newest_chunk: int | None = None

    def predict(self, parts: Mapping[str, Any]) -> Prediction | None:
        """Asks for a chunk where one is due, and takes what has come; returns that, None where nothing has.

        parts: arguments of `InsertionPolicy.predict` for what is seen at this tick.
        """
        collected = self._predictor.collect()
        if self._queue.needs_chunk(self._tick) or self._owes_chunk:
            self._owes_chunk = self._predictor.is_busy
            if not self._owes_chunk:
                self._draw += self._noise == "chunk"
                collected = (
                    self._predictor.ask(self._tick, {**parts, **self._planned()}, self._draw) or collected
                )
        if collected is not None and collected.chunk is not None and collected.tick >= self._asked_from:
            self._queue.add(collected.tick, collected.chunk)
            self._newest_chunk = collected.tick
        return collected

    def action(self) -> Float[np.ndarray, " a"] | None:
        """Returns this tick's action; None where no chunk has one yet."""
        action = self._queue.action(self._tick)
        return None if action is self._still else action

    @property
    def chunk_age(self) -> float:
        """How old the chunks are that give it, in ticks; NaN where there are none."""
        return self._queue.chunk_age(self._tick)

    def advance(self) -> None:
        """Goes on to the next tick."""
        self._tick += 1

    @property
    def num_ahead(self) -> int:
        """Actions that the newest chunk still has."""
        if self._newest_chunk is None:
            return 0
        return max(0, self._newest_chunk + self._policy.data.actions.horizon - self._tick)

    def _planned(self) -> dict[str, np.ndarray]:
        policy = self._policy
        if not (policy.prefix_max or policy.guided):
            return {}
        promised = num_promised(self._execution, prefix_max=policy.prefix_max, guided=policy.guided)
        return plan_arguments([self._queue.planned(self._tick)], [promised], policy.data.actions.horizon)
