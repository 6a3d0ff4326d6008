"""What `rollout` does: which policy, acting how, in which world; every combination that was asked for, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.acting import Acting, ticks
from experiments.phantom.environment import TIME_LIMIT_S
from experiments.phantom.shift import SHIFTS
from experiments.phantom_policies import check_fits_phantom
from vla_jax.contracts.checks import unknown_choice
from vla_jax.errors import UserError

if TYPE_CHECKING:
    from vla_jax.evaluation.closed_loop import Rollout, RolloutSettings
    from vla_jax.evaluation.rollout_summary import Trial
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import Residual


@dataclass(frozen=True)
class Handicaps:
    """What the policies have to do with."""

    feature_latency: tuple[str, ...] = ("0",)
    """Time until pictures are features: control ticks (4), or milliseconds (400ms). Each of several is a roll-out of
    its own."""
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
    time_limit: float = TIME_LIMIT_S
    """Seconds after which an insertion ends, wherever the needle is."""


@dataclass(frozen=True)
class Planned:
    """A policy in one setting."""

    name: str
    policy: "InsertionPolicy"
    residual: "Residual | None"
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
            feature_latency_s=self.settings.feature_latency / self.policy.data.actions.control_hz,
            shift=None if self.shift == "none" else self.shift,
        )


def make_plan(
    runs: Sequence[Path], checkpoint: str, acting: Acting, handicaps: Handicaps, world: World
) -> list[Planned]:
    """Restores the policies and returns each in each setting."""
    shifts, plan = _shifts(world.shift), []
    for run in runs:
        policy = acting.policy(run, checkpoint)
        check_fits_phantom(run, policy)
        residual = acting.residual_of(policy)
        latencies = [ticks(text, "feature-latency", policy) for text in handicaps.feature_latency]
        plan += [
            Planned(
                run.resolve().name, policy, residual, _settings(acting, handicaps, policy, latency), shift
            )
            for latency in dict.fromkeys(latencies)
            for shift in shifts
        ]
    return plan


def _settings(
    acting: Acting, handicaps: Handicaps, policy: "InsertionPolicy", latency: int
) -> "RolloutSettings":
    from vla_jax.evaluation.closed_loop import RolloutSettings

    execution, refresh_ticks = acting.execution(policy), acting.refresh_ticks(policy)
    try:
        return RolloutSettings(
            execution=execution,
            refresh_ticks=refresh_ticks,
            feature_latency=latency,
            noise=acting.noise,
            sensor_lost=handicaps.sensor_lost,
            views_lost=handicaps.views_lost,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _shifts(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in (*SHIFTS, "all")]
    if unknown:
        raise UserError(f"--shift {unknown_choice(unknown[0], (*SHIFTS, 'all'))}")
    return list(SHIFTS) if "all" in names else list(dict.fromkeys(names))
