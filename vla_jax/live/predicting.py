"""Chunks from observations: in the tick where they are due at once, beside the ticks where they may come later."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vla_jax.policy.insertion_policy import InsertionPolicy


@dataclass(frozen=True)
class Prediction:
    """tick: of what it was predicted on. chunk: None where the policy refused what it saw; why says so."""

    tick: int
    chunk: Float[np.ndarray, "h a"] | None
    seconds: float
    why: str = ""


class Predictor:
    """Predicts with a policy. One prediction is under way at a time.

    beside_ticks: whether predictions run in a thread of their own, for policies that take longer than a tick leaves.
    """

    def __init__(self, policy: InsertionPolicy, *, seed: int, beside_ticks: bool) -> None:
        self._policy = policy
        self._draws = policy.sampler is not None
        self._key = jax.random.key(seed)
        self._pool = ThreadPoolExecutor(1, "predict") if beside_ticks else None
        self._under_way: Future[Prediction] | None = None
        self._own: dict[str, np.ndarray] | None = None
        self._warm_up()

    @property
    def is_busy(self) -> bool:
        """Whether what was asked for has not been collected yet."""
        return self._under_way is not None

    def ask(self, tick: int, parts: Mapping[str, Any], draw: int) -> Prediction | None:
        """Predicts on an observation, whose arrays may be written again afterwards; returns the chunk, or None where
        it will be collected later. draw: which of its noises a policy that denoises draws."""
        if self._pool is None:
            return self._predict(tick, draw, parts)
        if self._own is None:
            self._own = {name: np.array(part) for name, part in parts.items() if part is not None}
        for name, part in self._own.items():
            np.copyto(part, parts[name])
        own = dict.fromkeys(parts) | self._own
        self._under_way = self._pool.submit(self._predict, tick, draw, own)
        return None

    def collect(self) -> Prediction | None:
        """Returns what has been predicted meanwhile."""
        if self._under_way is None or not self._under_way.done():
            return None
        done, self._under_way = self._under_way, None
        return done.result()

    def close(self) -> None:
        """Waits for what is under way."""
        if self._pool is not None:
            self._pool.shutdown()

    def _predict(self, tick: int, draw: int, parts: Mapping[str, Any]) -> Prediction:
        begun = time.monotonic()
        try:
            key = {"key": jax.random.fold_in(self._key, draw)} if self._draws else {}
            (chunk,) = self._policy.predict(**parts, **key)
            return Prediction(tick, chunk, time.monotonic() - begun)
        except ValueError as error:
            return Prediction(tick, None, time.monotonic() - begun, str(error))

    def _warm_up(self) -> None:
        """Compiles everything that a tick calls."""
        if self._draws:
            jax.random.fold_in(self._key, 0)
        self._policy.warm_up()
