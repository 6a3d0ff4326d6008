"""What closed-loop episodes say of policies, as JSON-ready values: each policy by itself, and pairs on the same seeds.

A value that is not defined is None (null in JSON), never NaN.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.evaluation.intervals import Interval, bootstrap_difference, mcnemar_exact, wilson_interval

CHUNK_JUMP = "chunk_jump"
NOMINAL = "no delay, no shift"


@dataclass(frozen=True)
class Trial:
    """A policy's episodes under one setting; name and setting together are its own in a report."""

    name: str
    """Of the policy's run."""
    rollouts: Sequence[Rollout]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Identity of the policy, as JSON."""
    feature_latency_s: float = 0.0
    """How late features were."""
    shift: str | None = None
    """In what the world differed from the training's, by name."""

    @property
    def setting(self) -> str:
        """The setting in words."""
        parts = [f"features {self.feature_latency_s:g} s late"] if self.feature_latency_s else []
        return ", ".join([*parts, *([self.shift] if self.shift else [])]) or NOMINAL


def rollout_json(
    trials: Sequence[Trial], actions: ActionSpec, settings: Mapping[str, Any], *, seed: int = 0
) -> dict[str, Any]:
    """Returns the content of rollout.json: `runs` (`summarise` of each trial), `comparisons`, `settings` as given."""
    return {
        "runs": [summarise(trial, actions) for trial in trials],
        "comparisons": comparisons(trials, seed=seed),
        "settings": dict(settings),
    }


def summarise(trial: Trial, actions: ActionSpec) -> dict[str, Any]:
    """Returns what the episodes of one trial come to.

    name, setting, feature_latency_s, shift, checkpoint, episodes; success: rate, with Wilson's 95 % interval low and
    high; failures: reason → episodes. Each measure of the environment, `time_s` and `chunk_jump` (see `chunk_jump`):
    {median, p95, max, episodes}, over those episodes in which it is defined, and how many they are; a measure that is
    yes or no: the number of episodes with yes.
    """
    rollouts = trial.rollouts
    if not rollouts:
        raise ValueError(f"{trial.name}, {trial.setting}: no episode has ended")
    successes = sum(rollout.outcome.success for rollout in rollouts)
    interval = wilson_interval(successes, len(rollouts))
    failures = [rollout.outcome.failure for rollout in rollouts if rollout.outcome.failure is not None]
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.outcome.measures)
    measures: dict[str, list[float | None]]
    measures = {name: [rollout.outcome.measures.get(name) for rollout in rollouts] for name in names}
    if "time_s" not in measures:
        measures["time_s"] = [float(rollout.time_s[-1] - rollout.time_s[0]) for rollout in rollouts]
    return {
        "name": trial.name,
        "setting": trial.setting,
        "feature_latency_s": trial.feature_latency_s,
        "shift": trial.shift,
        "episodes": len(rollouts),
        "success": {"rate": successes / len(rollouts), "low": interval.low, "high": interval.high},
        **{name: _spread(values) for name, values in measures.items()},
        CHUNK_JUMP: _spread([chunk_jump(rollout, actions) for rollout in rollouts]),
        "failures": {reason: failures.count(reason) for reason in sorted(set(failures))},
        "checkpoint": dict(trial.checkpoint),
    }


def chunk_jump(rollout: Rollout, actions: ActionSpec) -> float | None:
    """Returns how far, mm, the first action of a new chunk that can be executed, the one after the action latency, lies
    from what the chunk before had for the same tick: the length of the difference over the dimensions in mm, mean of
    the episode's decisions. None where no chunk reaches as far, or no dimension is in mm.
    """
    dims, horizon = list(actions.dims("mm")), rollout.chunks.shape[1]
    first = rollout.action_latency
    ahead = np.diff(rollout.decision_tick) + first
    overlaps = np.flatnonzero(ahead < horizon)
    if not dims or not len(overlaps):
        return None
    expected = rollout.chunks[overlaps, ahead[overlaps]]
    jump = (rollout.chunks[overlaps + 1, first] - expected)[:, dims]
    return float(np.linalg.norm(jump.astype(np.float64), axis=1).mean())


def comparisons(trials: Sequence[Trial], *, seed: int) -> list[dict[str, Any]]:
    """Compares, on the seeds they share, all pairs of policies under the same setting, and each policy with itself
    under the first of its settings (`compare`)."""
    first = {trial.name: trial for trial in reversed(trials)}
    return [
        compare(a, b, seed=seed)
        for a, b in itertools.combinations(trials, 2)
        if (a.setting == b.setting if a.name != b.name else a is first[a.name])
        and {rollout.seed for rollout in a.rollouts} & {rollout.seed for rollout in b.rollouts}
    ]


def compare(a: Trial, b: Trial, *, seed: int) -> dict[str, Any]:
    """Compares two trials on the seeds that both have.

    a, b: name and setting of each. episodes: pairs. both, only_a, only_b, neither: pairs by who succeeded.
    mcnemar_p: of McNemar's exact test. differences, a − b: of the rates of success, and of each measure's medians over
    the pairs in which both are defined: {value, low, high, episodes}, with the bootstrap's 95 % interval.

    seed: of the bootstrap.
    """
    others = {rollout.seed: rollout for rollout in b.rollouts}
    pairs = [(rollout, others[rollout.seed]) for rollout in a.rollouts if rollout.seed in others]
    passed_a, passed_b = (np.array([pair[side].outcome.success for pair in pairs], bool) for side in (0, 1))
    differences = {"success": _difference(passed_a * 1.0, passed_b * 1.0, np.mean, seed)}
    for name, values_a, values_b in _paired_measures(pairs):
        differences[name] = _difference(values_a, values_b, np.median, seed)
    return {
        "a": {"name": a.name, "setting": a.setting},
        "b": {"name": b.name, "setting": b.setting},
        "episodes": len(pairs),
        "both": int(np.sum(passed_a & passed_b)),
        "only_a": int(np.sum(passed_a & ~passed_b)),
        "only_b": int(np.sum(passed_b & ~passed_a)),
        "neither": int(np.sum(~passed_a & ~passed_b)),
        "mcnemar_p": mcnemar_exact(passed_a, passed_b),
        "differences": differences,
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any] | int:
    """Returns {median, p95, max, episodes} of the values that are defined, or the number of yeses."""
    if any(isinstance(value, bool) for value in values):
        return sum(value is True for value in values)
    defined = [float(value) for value in values if value is not None]
    if not defined:
        return {"median": None, "p95": None, "max": None, "episodes": 0}
    median, p95, largest = np.quantile(defined, [0.5, 0.95, 1.0]).tolist()
    return {"median": median, "p95": p95, "max": largest, "episodes": len(defined)}


def _paired_measures(
    pairs: Sequence[tuple[Rollout, Rollout]],
) -> Iterator[tuple[str, Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
    """Yields each measure that is a number, with its values where both of a pair have one."""
    for name in dict.fromkeys(name for a, _ in pairs for name in a.outcome.measures):
        values = [(a.outcome.measures.get(name), b.outcome.measures.get(name)) for a, b in pairs]
        defined = [pair for pair in values if None not in pair]
        if defined and not isinstance(defined[0][0], bool):
            yield name, *np.array(defined, np.float64).T


def _difference(a: np.ndarray, b: np.ndarray, statistic: Any, seed: int) -> dict[str, Any]:
    interval: Interval = bootstrap_difference(a, b, statistic, seed=seed)
    return {"value": float(statistic(a) - statistic(b)), **interval._asdict(), "episodes": len(a)}
