"""Closed loop: a policy acts in environments, and each environment judges what came of it.

Several environments are stepped side by side, and what they need at a tick comes from one call of the backbone and one
of the policy. At each control tick of an episode:

1. every `refresh_ticks` ticks the newest pictures are given to the backbone; some ticks later, `feature_latency`, their
   features are there. In between the policy sees the last ones;
2. where the actions decided on are used up, the policy predicts a chunk from features, sensor window and pose;
3. the action that the chunks have for this tick is executed (`vla_jax.policy.chunk_execution`), corrected by the newest
   sensor window where there is a residual (`vla_jax.policy.residual`).
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax.contracts.environment import Outcome, Reading
from vla_jax.contracts.feature_encoder import FeatureEncoder
from vla_jax.contracts.specs import ActionSpec, StateWindow
from vla_jax.evaluation.environments import Environments
from vla_jax.policy.chunk_execution import ChunkQueue, Execution, Noise, num_promised, plan_arguments
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.timing import past_rows

Predict = Callable[..., Float[np.ndarray, "b h a"]]
"""`InsertionPolicy.predict`, or anything that is called as it is: (vl [b, s, v], vl_mask [b, s], sensor [b, t, c] or
None, has_sensor [b], key [b]) → chunks, and `state=`, `state_window=` and `state_window_mask=`, `feature_age=`,
`z_chunk=` or `prefix=`, `prefix_length=` and `plan_length=` where `Inputs` asks for them."""
Correct = Callable[..., Float[np.ndarray, "b a"]]
"""`Residual.correct`, or anything that is called as it is: (actions [b, a], chunk_ages [b], sensor [b, t, c] or None,
has_sensor [b]) → actions."""


@dataclass(frozen=True)
class Inputs:
    """What a policy is given beside the features."""

    sensor_rows: int | None = None
    """Newest sensor rows; None gives it all of the reading's."""
    state: bool = False
    """Whether it reads the arm's own pose."""
    state_window: StateWindow | None = None
    """Which of its last poses it reads."""
    feature_age: bool = False
    """Whether it is told how old its features are."""
    anchored: bool = False
    """Whether it adds its prediction to the previous action, repeated over the horizon."""
    prefix: int = 0
    """How many actions that are promised already it is given at most."""
    guided: bool = False
    """Whether it is given all that is planned."""

    @classmethod
    def of(cls, policy: InsertionPolicy) -> "Inputs":
        """Returns what a policy is given."""
        config = policy.config
        return cls(
            sensor_rows=policy.sensor_window,
            state=config.state is not None,
            state_window=config.last_states,
            feature_age=config.age is not None,
            anchored=config.head.needs_previous_chunk,
            prefix=policy.prefix_max,
            guided=policy.guided,
        )


Stretch = tuple[float, float]
"""Seconds since the episode's start, from and up to."""


@dataclass(frozen=True)
class RolloutSettings:
    """How a policy acts, and what it has to do with."""

    execution: Execution = field(default_factory=Execution)
    refresh_ticks: int = 3
    """Control ticks from one set of pictures that the backbone sees to the next, as in the policy's data
    (`DataSpec.refresh_ticks`)."""
    feature_latency: int = 0
    """Control ticks until pictures are features. The arm waits for the first ones."""
    max_ticks: int = 1000
    """Actions after which an episode ends, whatever the environment says."""
    sensor_lost: Stretch | None = None
    """When the sensor is gone."""
    views_lost: Stretch | None = None
    """When all pictures are gone."""
    noise: Noise = "chunk"
    """How often a policy's noise is drawn."""

    def __post_init__(self) -> None:
        for name in ("refresh_ticks", "max_ticks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.feature_latency < 0:
            raise ValueError(f"feature_latency must not be negative, not {self.feature_latency}")
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}, not {self.noise}")
        for name in ("sensor_lost", "views_lost"):
            stretch = getattr(self, name)
            if stretch is not None and not 0 <= stretch[0] < stretch[1]:
                raise ValueError(f"{name} must begin at 0 s or later and end after that, not {stretch}")


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
    action_latency: int = 0
    """Ticks from a decision until its chunk could be executed."""


def roll_out(
    predict: Predict,
    encoder: FeatureEncoder,
    environments: Environments,
    seeds: Sequence[int],
    settings: RolloutSettings,
    key: jax.Array,
    inputs: Inputs = Inputs(),
    correct: Correct | None = None,
) -> Iterator[Rollout]:
    """Yields the episode of each seed as it ends; equal seeds, settings, keys and numbers of environments give equal
    episodes.

    environments: each takes the next seed when its episode has ended. The policy is always called with a row for each
        of them, so that it is compiled once.
    key: randomness of the policy; seed and tick give each decision noise of its own, or the seed each episode.
    correct: corrects the action of every tick; None executes what the chunks have.

    Raises:
        ValueError: the policy's chunks are used up before the next one is there.
    """
    settings.execution.check_horizon(environments.actions.horizon)
    waiting, idle = iter(seeds), list(range(environments.count))
    active: dict[int, _Episode] = {}
    # Episodes begin when all of them look and decide, so that what they need is asked for together.
    together = math.lcm(settings.refresh_ticks, settings.execution.execute)
    for clock in itertools.count():
        if idle and clock % together == 0:
            begun = {idle.pop(0): seed for seed in itertools.islice(waiting, len(idle))}
            for number, reading in environments.reset(begun).items():
                active[number] = _Episode(begun[number], reading, environments.actions, settings, inputs)
        if not active and clock % together == 0:
            return
        _look(encoder, [episode for episode in active.values() if episode.needs_features])
        deciding = [episode for episode in active.values() if episode.needs_chunk]
        if deciding:
            _decide(predict, deciding, environments.count, inputs, key)
        actions = {number: episode.next_action() for number, episode in active.items()}
        if correct is not None and active:
            actions = _corrected(correct, active, actions, environments.count)
        for number, (reading, is_over) in environments.step(actions).items():
            episode = active[number]
            episode.note(actions[number], reading)
            if is_over or episode.tick >= settings.max_ticks:
                idle.append(number)
                del active[number]
                yield episode.result(environments.outcome(number))


class _Episode:
    """An episode under way: what the policy has seen and decided so far."""

    def __init__(
        self, seed: int, reading: Reading, actions: ActionSpec, settings: RolloutSettings, inputs: Inputs
    ) -> None:
        self.seed = seed
        self.reading = reading
        self.horizon = actions.horizon
        self._settings = settings
        self._inputs = inputs
        self._before_first = actions.before_first
        self._queue = ChunkQueue(settings.execution, actions.before_first)
        self._seen: deque[_Seen] = deque()
        self._times, self._poses = [reading.time_s], [np.array(reading.pose)]
        self._actions: list[np.ndarray] = []
        self._decision_ticks: list[int] = []
        self._chunks: list[np.ndarray] = []
        self._image_times: list[float] = []

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
        """Whether the policy is to predict at this tick."""
        return self._queue.needs_chunk(self.tick)

    @property
    def images(self) -> Mapping[str, UInt8[np.ndarray, "height width 3"]]:
        """The pictures that the backbone is given."""
        return {} if self._is_in(self._settings.views_lost) else self.reading.images

    @property
    def features(self) -> "_Seen":
        """The newest features that are there."""
        while len(self._seen) > 1 and self._seen[1].there_at <= self.tick:
            self._seen.popleft()
        return self._seen[0]

    @property
    def sensor(self) -> Float[np.ndarray, "t c"] | None:
        """The sensor rows that the policy is given."""
        rows, sensor = self._inputs.sensor_rows, self.reading.sensor
        if sensor is None or self._is_in(self._settings.sensor_lost):
            return None
        return sensor if rows is None else sensor[-rows:]

    def last_poses(self, window: StateWindow) -> tuple[Float[np.ndarray, "w p"], Bool[np.ndarray, " w"]]:
        """Returns the poses up to this tick, and which of them are of this episode; the others repeat the newest."""
        (ticks,) = past_rows(np.array([self.tick]), np.array([0]), window.rows, window.every)
        return np.stack([self._poses[tick] for tick in ticks]), ticks >= 0

    @property
    def previous_action(self) -> Float[np.ndarray, " a"]:
        """The action executed last; at the start what stands for it in training."""
        return self._actions[-1] if self._actions else self._before_first

    @property
    def plan(self) -> Float[np.ndarray, "n a"]:
        """The actions that are planned from this tick on, those that are promised first."""
        return self._queue.planned(self.tick)

    @property
    def num_promised(self) -> int:
        """How many of them the policy is told to be promised."""
        inputs = self._inputs
        return num_promised(self._settings.execution, prefix_max=inputs.prefix, guided=inputs.guided)

    @property
    def draw(self) -> int:
        """Which of the episode's noises the policy draws."""
        return self.tick if self._settings.noise == "chunk" else 0

    def see(self, vl: Float[np.ndarray, "s v"], vl_mask: Bool[np.ndarray, " s"]) -> None:
        """Takes the features of the newest pictures, which are there after their latency."""
        there_at = self.tick + self._settings.feature_latency if self._seen else 0
        self._seen.append(_Seen(vl, vl_mask, self.reading.image_time_s, there_at))

    def decide(self, chunk: Float[np.ndarray, "h a"]) -> None:
        """Takes the actions from this tick on."""
        self._queue.add(self.tick, chunk)
        self._decision_ticks.append(self.tick)
        self._chunks.append(chunk)
        self._image_times.append(self.features.image_time_s)

    def next_action(self) -> Float[np.ndarray, " a"]:
        """Returns the action to execute."""
        return self._queue.action(self.tick)

    @property
    def chunk_age(self) -> float:
        """How old the chunks are that give it, in ticks; NaN where there are none."""
        return self._queue.chunk_age(self.tick)

    def note(self, action: Float[np.ndarray, " a"], reading: Reading) -> None:
        """Takes what was executed and what is known after it."""
        self._actions.append(action)
        self.reading = reading
        self._times.append(reading.time_s)
        self._poses.append(np.array(reading.pose))

    def result(self, outcome: Outcome) -> Rollout:
        """Returns the finished episode."""
        return Rollout(
            seed=self.seed,
            outcome=outcome,
            time_s=np.array(self._times),
            pose=np.stack(self._poses),
            actions=np.stack(self._actions),
            decision_tick=np.array(self._decision_ticks),
            chunks=np.stack(self._chunks),
            image_time_s=np.array(self._image_times),
            action_latency=self._settings.execution.latency,
        )

    def _is_in(self, stretch: Stretch | None) -> bool:
        return stretch is not None and stretch[0] <= self.reading.time_s < stretch[1]


@dataclass(frozen=True)
class _Seen:
    """Features, when their pictures were exposed, and the tick at which they are there."""

    vl: Float[np.ndarray, "s v"]
    vl_mask: Bool[np.ndarray, " s"]
    image_time_s: float
    there_at: int


def _look(encoder: FeatureEncoder, episodes: Sequence[_Episode]) -> None:
    """Encodes the newest pictures of episodes in one batch."""
    if episodes:
        features = encoder.encode_batch([(episode.reading.prompt, episode.images) for episode in episodes])
        for episode, vl, vl_mask in zip(episodes, *features, strict=True):
            episode.see(vl, vl_mask)


def _decide(
    predict: Predict, episodes: Sequence[_Episode], num_rows: int, inputs: Inputs, key: jax.Array
) -> None:
    """Predicts a chunk for each episode in one batch of `num_rows`; the last episode's inputs fill it up."""
    rows = [*episodes, *[episodes[-1]] * (num_rows - len(episodes))]
    sensor, has_sensor = _sensors(rows)
    names = jnp.array([(row.seed, row.draw) for row in rows], jnp.uint32)
    arguments: dict[str, Any] = {"key": _row_keys(key, names)}
    if inputs.state:
        arguments["state"] = np.stack([row.reading.pose for row in rows])
    if inputs.state_window is not None:
        poses, masks = zip(*(row.last_poses(inputs.state_window) for row in rows), strict=True)
        arguments |= {"state_window": np.stack(poses), "state_window_mask": np.stack(masks)}
    if inputs.feature_age:
        ages = [row.reading.time_s - row.features.image_time_s for row in rows]
        arguments["feature_age"] = np.array(ages, np.float32)
    if inputs.anchored:
        previous = np.stack([row.previous_action for row in rows])
        arguments["z_chunk"] = np.repeat(previous[:, None], rows[0].horizon, axis=1)
    if inputs.prefix or inputs.guided:
        arguments |= plan_arguments(
            [row.plan for row in rows], [row.num_promised for row in rows], rows[0].horizon
        )
    vl, vl_mask = (np.stack([getattr(row.features, name) for row in rows]) for name in ("vl", "vl_mask"))
    chunks = np.asarray(predict(vl, vl_mask, sensor, has_sensor, **arguments))
    for episode, chunk in zip(episodes, chunks, strict=False):
        episode.decide(chunk)


def _corrected(
    correct: Correct, episodes: Mapping[int, _Episode], actions: Mapping[int, np.ndarray], num_rows: int
) -> dict[int, Float[np.ndarray, " a"]]:
    """Corrects the action of each episode in one batch of `num_rows`; the last episode's inputs fill it up."""
    numbers = [*episodes]
    filled = [*numbers, *[numbers[-1]] * (num_rows - len(numbers))]
    ages = np.array([episodes[number].chunk_age for number in filled])
    sensor, has_sensor = _sensors([episodes[number] for number in filled])
    corrected = correct(np.stack([actions[number] for number in filled]), ages, sensor, has_sensor)
    return dict(zip(numbers, corrected, strict=False))


def _sensors(rows: Sequence[_Episode]) -> tuple[Float[np.ndarray, "b t c"] | None, Bool[np.ndarray, " b"]]:
    """Returns the sensor windows, None where no row has one, and which rows have one."""
    windows = [row.sensor for row in rows]
    has_sensor = np.array([window is not None for window in windows])
    if not has_sensor.any():
        return None, has_sensor
    empty = np.zeros_like(next(window for window in windows if window is not None))
    return np.stack([empty if window is None else window for window in windows]), has_sensor


@jax.jit
def _row_keys(key: jax.Array, names: jax.Array) -> jax.Array:
    """Returns a key for each (seed, number of the draw) of `names` [b, 2]."""
    return jax.vmap(lambda name: jax.random.fold_in(jax.random.fold_in(key, name[0]), name[1]))(names)
