"""What `rollout` does: which policy, acting how, in which world; every combination that was asked for, in order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.phantom.shift import SHIFTS
from experiments.phantom.simulator import ACTION_HZ
from experiments.phantom_policies import check_fits_phantom
from vla_jax.contracts.checks import unknown_choice
from vla_jax.errors import UserError

if TYPE_CHECKING:
    from vla_jax.evaluation.closed_loop import Rollout, RolloutSettings
    from vla_jax.evaluation.rollout_summary import Trial
    from vla_jax.policy.insertion_policy import InsertionPolicy

Noise = Literal["chunk", "episode"]
"""As `vla_jax.evaluation.closed_loop.Noise`, which would import JAX."""


@dataclass(frozen=True)
class Acting:
    """How the policies act, and what they have to do with."""

    execute: int = 1
    """Actions of a chunk that are executed before the next prediction."""
    refresh: int | None = None
    """Control ticks from one set of pictures that the backbone sees to the next; as in the policy's data by default."""
    feature_latency: tuple[str, ...] = ("0",)
    """Time until pictures are features: control ticks (4), or milliseconds (400ms). Each of several is a roll-out of
    its own."""
    action_latency: str = "0"
    """Time until a predicted chunk can be executed, likewise."""
    ensemble: float | None = None
    """Average what all chunks have for a tick, weighted by exp(-ENSEMBLE age), the oldest most."""
    sampler: str | None = None
    """How a diffusion policy denoises (ddim or ddpm); the checkpoint's own by default."""
    sampling_steps: int | None = None
    """Denoising steps of a diffusion or flow policy."""
    noise: Noise = "chunk"
    """How often such a policy's noise is drawn: for each chunk, or once for each episode."""
    guided: bool = False
    """Draw the denoising of policies that were trained without a prefix to what the last chunk still has planned
    (real-time chunking)."""
    sensor_lost: tuple[float, float] | None = None
    """Seconds from and up to which the sensor is gone."""
    views_lost: tuple[float, float] | None = None
    """Seconds from and up to which all pictures are gone."""


@dataclass(frozen=True)
class World:
    """What they act in."""

    shift: tuple[str, ...] = ("none",)
    """How scenarios differ from those of the training episodes (none, speckle, gain, membrane, deeper, shallower,
    brightness, marker, start, breathing, or all for each of them). Each of several is a roll-out of its own."""
    nudges: bool = False
    """Push the arm off its course at random times."""


@dataclass(frozen=True)
class Planned:
    """A policy in one setting."""

    name: str
    policy: "InsertionPolicy"
    settings: "RolloutSettings"
    shift: str

    def trial(self, rollouts: "Sequence[Rollout]") -> "Trial":
        """Returns what came of it."""
        from vla_jax.evaluation.rollout_summary import Trial

        loaded = self.policy.loaded
        return Trial(
            self.name,
            sorted(rollouts, key=lambda rollout: rollout.seed),
            checkpoint={"path": str(loaded.path), "step": loaded.metadata.step},
            feature_latency_s=self.settings.feature_latency / _rate_hz(self.policy),
            shift=None if self.shift == "none" else self.shift,
        )


def make_plan(runs: Sequence[Path], checkpoint: str, acting: Acting, world: World) -> list[Planned]:
    """Restores the policies and returns each in each setting."""
    from vla_jax.policy.insertion_policy import InsertionPolicy

    shifts, plan = _shifts(world.shift), []
    for run in runs:
        policy = InsertionPolicy.from_checkpoint(
            run,
            checkpoint=checkpoint,
            sampler=acting.sampler,
            steps=acting.sampling_steps,
            guided=acting.guided,
        )
        check_fits_phantom(run, policy)
        latencies = [_ticks(text, "feature-latency", policy) for text in acting.feature_latency]
        plan += [
            Planned(run.resolve().name, policy, _settings(acting, policy, latency), shift)
            for latency in dict.fromkeys(latencies)
            for shift in shifts
        ]
    return plan


def _settings(acting: Acting, policy: "InsertionPolicy", latency: int) -> "RolloutSettings":
    from vla_jax.evaluation.closed_loop import RolloutSettings
    from vla_jax.policy.chunk_execution import Execution

    action_latency = _ticks(acting.action_latency, "action-latency", policy)
    try:
        execution = Execution(acting.execute, action_latency, acting.ensemble)
        execution.check_horizon(policy.data.actions.horizon)
        return RolloutSettings(
            execution=execution,
            refresh_ticks=acting.refresh or policy.data.refresh_ticks or 3,
            feature_latency=latency,
            noise=acting.noise,
            sensor_lost=acting.sensor_lost,
            views_lost=acting.views_lost,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _ticks(text: str, option: str, policy: "InsertionPolicy") -> int:
    """Returns a time in control ticks; milliseconds are rounded up, since nothing is there before it is there."""
    number, in_ms = text.removesuffix("ms"), text.endswith("ms")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    ticks = math.ceil(round(value / 1000 * _rate_hz(policy), 6)) if in_ms else value
    if not 0 <= ticks < 1000 or ticks != int(ticks):
        raise UserError(f"--{option} {text} is no time; give control ticks (4) or milliseconds (400ms)")
    return int(ticks)


def _rate_hz(policy: "InsertionPolicy") -> float:
    return policy.data.actions.rate_hz or ACTION_HZ


def _shifts(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in (*SHIFTS, "all")]
    if unknown:
        raise UserError(f"--shift {unknown_choice(unknown[0], (*SHIFTS, 'all'))}")
    return list(SHIFTS) if "all" in names else list(dict.fromkeys(names))
