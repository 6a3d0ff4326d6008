"""Closed loop: a policy acts in environments, and each environment judges what came of it.

Several environments are stepped side by side, and those that need a decision at a tick get it from one call of the
policy. At each control tick of an episode:

1. every `refresh_ticks` ticks the newest pictures become features; in between the policy sees the last ones;
2. when the actions decided on are used up, the policy predicts a chunk from features and sensor window;
3. the next action of the chunk is executed.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.contracts.environment import Environment, Outcome, Reading
from vla_jax.contracts.feature_encoder import FeatureEncoder

Predict = Callable[..., Float[np.ndarray, "b h a"]]
"""`InsertionPolicy.predict`, or anything that is called as it is: (vl [b, s, v], vl_mask [b, s], sensor [b, t, c] or
None, has_sensor [b], key [b]) → chunks, and `z_chunk=` where `RolloutSettings.anchored` asks for it."""


@dataclass(frozen=True)
class RolloutSettings:
    """How a policy acts."""

    execute: int = 1
    """Actions of a chunk that are executed before the next prediction."""
    refresh_ticks: int = 3
    """Control ticks that share one instant's features, as in the policy's data (`DataSpec.refresh_ticks`)."""
    max_ticks: int = 1000
    """Actions after which an episode ends, whatever the environment says."""
    sensor_rows: int | None = None
    """Newest sensor rows that the policy is given; None gives it all of the reading's."""
    anchored: bool = False
    """Whether the policy adds its prediction to the previous action, repeated over the horizon."""

    def __post_init__(self) -> None:
        for name in ("execute", "refresh_ticks", "max_ticks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Rollout:
    """One episode of a policy and its judgement.

    Axes: n actions executed, d decisions, p pose values, h horizon, a action dimensions.
    """

    seed: int
    outcome: Outcome
    time_s: Float[np.ndarray, " n+1"]
    """Of each control tick."""
    pose: Float[np.ndarray, "n+1 p"]
    """As read at each tick: mm and degrees."""
    actions: Float[np.ndarray, "n a"]
    """As executed between the ticks."""
    decision_tick: Int[np.ndarray, " d"]
    chunks: Float[np.ndarray, "d h a"]
    """As predicted at those ticks."""
    image_time_s: Float[np.ndarray, " d"]
    """When the pictures that a decision was made on were exposed."""


def roll_out(
    predict: Predict,
    encoder: FeatureEncoder,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    settings: RolloutSettings,
    key: jax.Array,
) -> Iterator[Rollout]:
    """Yields the episode of each seed as it ends; equal seeds, settings and keys give equal episodes.

    environments: alike; each takes the next seed when its episode has ended. The policy is always called with a row
        for each of them, so that it is compiled once.
    key: randomness of the policy; seed and tick give each decision noise of its own.
    """
    waiting = iter(seeds)
    num_rows = len(environments)
    active: list[_Episode] = []
    idle = list(environments)
    while True:
        for seed in itertools.islice(waiting, len(idle)):
            active.append(_Episode(idle.pop(), seed, settings))
        if not active:
            return
        for episode in active:
            if episode.needs_features:
                episode.see(*encoder.encode(episode.reading.prompt, episode.reading.images))
        deciding = [episode for episode in active if episode.needs_chunk]
        if deciding:
            chunks = _decide(predict, deciding, num_rows, settings, key)
            for episode, chunk in zip(deciding, chunks, strict=True):
                episode.decide(chunk)
        for episode in active:
            episode.act()
        for episode in [episode for episode in active if episode.is_over]:
            active.remove(episode)
            idle.append(episode.environment)
            yield episode.result()


class _Episode:
    """An episode under way: what the policy has seen and decided so far."""

    def __init__(self, environment: Environment, seed: int, settings: RolloutSettings) -> None:
        self.environment = environment
        self.seed = seed
        self._settings = settings
        self.features: tuple[Float[np.ndarray, "s v"], Bool[np.ndarray, " s"]] | None = None
        self._image_time_s = 0.0
        self._times: list[float] = []
        self._poses: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._decision_ticks: list[int] = []
        self._chunks: list[np.ndarray] = []
        self._image_times: list[float] = []
        self._note(environment.reset(seed))

    @property
    def tick(self) -> int:
        """Number of actions executed."""
        return len(self._actions)

    @property
    def needs_features(self) -> bool:
        """Whether the newest pictures are to be encoded at this tick."""
        return self.tick % self._settings.refresh_ticks == 0

    @property
    def needs_chunk(self) -> bool:
        """Whether the actions decided on are used up."""
        if not self._chunks:
            return True
        return self.tick - self._decision_ticks[-1] >= min(self._settings.execute, len(self._chunks[-1]))

    @property
    def is_over(self) -> bool:
        """Whether the environment has ended the episode, or it has lasted long enough."""
        return self.tick >= self._settings.max_ticks or self.environment.is_over()

    @property
    def previous_action(self) -> Float[np.ndarray, " a"]:
        """The action executed last; at the start what stands for it in training."""
        return self._actions[-1] if self._actions else self.environment.actions.before_first

    @property
    def sensor(self) -> Float[np.ndarray, "t c"] | None:
        """The sensor rows that the policy is given."""
        rows = self._settings.sensor_rows
        if self.reading.sensor is None or rows is None:
            return self.reading.sensor
        return self.reading.sensor[-rows:]

    def see(self, vl: Float[np.ndarray, "s v"], vl_mask: Bool[np.ndarray, " s"]) -> None:
        """Takes the features of the newest pictures."""
        self.features = (vl, vl_mask)
        self._image_time_s = self.reading.image_time_s

    def decide(self, chunk: Float[np.ndarray, "h a"]) -> None:
        """Takes the actions from this tick on."""
        self._decision_ticks.append(self.tick)
        self._chunks.append(chunk)
        self._image_times.append(self._image_time_s)

    def act(self) -> None:
        """Executes the next action."""
        action = self._chunks[-1][self.tick - self._decision_ticks[-1]]
        reading = self.environment.step(action)
        self._actions.append(action)
        self._note(reading)

    def result(self) -> Rollout:
        """Returns the finished episode."""
        return Rollout(
            seed=self.seed,
            outcome=self.environment.outcome(),
            time_s=np.array(self._times),
            pose=np.stack(self._poses),
            actions=np.stack(self._actions),
            decision_tick=np.array(self._decision_ticks),
            chunks=np.stack(self._chunks),
            image_time_s=np.array(self._image_times),
        )

    def _note(self, reading: Reading) -> None:
        self.reading = reading
        self._times.append(reading.time_s)
        self._poses.append(np.array(reading.pose))


def _decide(
    predict: Predict, episodes: Sequence[_Episode], num_rows: int, settings: RolloutSettings, key: jax.Array
) -> Float[np.ndarray, "b h a"]:
    """Predicts a chunk for each episode in one batch of `num_rows`; the last episode's inputs fill it up."""
    rows = [*episodes, *[episodes[-1]] * (num_rows - len(episodes))]
    windows = [row.sensor for row in rows]
    has_sensor = np.array([window is not None for window in windows])
    sensor = None
    if has_sensor.any():
        empty = np.zeros_like(next(window for window in windows if window is not None))
        sensor = np.stack([empty if window is None else window for window in windows])
    names = jnp.array([(row.seed, row.tick) for row in rows], jnp.uint32)
    arguments: dict[str, Any] = {"key": _row_keys(key, names)}
    if settings.anchored:
        horizon = rows[0].environment.actions.horizon
        previous = np.stack([row.previous_action for row in rows])
        arguments["z_chunk"] = np.repeat(previous[:, None], horizon, axis=1)
    vl, vl_mask = map(np.stack, zip(*[row.features for row in rows], strict=True))
    return np.asarray(predict(vl, vl_mask, sensor, has_sensor, **arguments))[: len(episodes)]


@jax.jit
def _row_keys(key: jax.Array, names: jax.Array) -> jax.Array:
    """Returns a key for each (seed, tick) of `names` [b, 2]."""
    return jax.vmap(lambda name: jax.random.fold_in(jax.random.fold_in(key, name[0]), name[1]))(names)
