"""How a policy acts, on a robot and in the phantom: the options that `live` and `rollout` have in common."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_jax.errors import UserError
from vla_jax.policy.chunk_execution import Execution, Noise

if TYPE_CHECKING:
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import Residual


@dataclass(frozen=True)
class Acting:
    """How policies act."""

    execute: int = 1
    """Actions of a chunk that are executed before the next prediction."""
    action_latency: str = "0"
    """Time from what a chunk is predicted on until its actions can be executed: control ticks (4), or milliseconds
    (400ms). On a robot, 0 predicts within the tick, and more beside the ticks, for policies that take longer."""
    ensemble: float | None = None
    """Average what all chunks have for a tick, weighted by exp(-ENSEMBLE age), the oldest most."""
    refresh: int | None = None
    """Control ticks from one set of pictures that the backbone sees to the next (on a robot, at least); as in the
    policy's data by default."""
    sampler: str | None = None
    """How a diffusion policy denoises (ddim or ddpm); the checkpoint's own by default."""
    sampling_steps: int | None = None
    """Denoising steps of a diffusion or flow policy."""
    noise: Noise = "chunk"
    """How often such a policy's noise is drawn: for each chunk, or once for each episode."""
    guided: bool = False
    """Draw the denoising of policies that were trained without a prefix to what the last chunk still has planned
    (real-time chunking)."""
    residual: bool = False
    """Correct each tick's action by the newest sensor window, with what `train_residual` made for the policy."""

    def policy(self, run: Path, checkpoint: str) -> "InsertionPolicy":
        """Restores a policy that acts so."""
        from vla_jax.policy.insertion_policy import InsertionPolicy

        return InsertionPolicy.from_checkpoint(
            run, checkpoint=checkpoint, sampler=self.sampler, steps=self.sampling_steps, guided=self.guided
        )

    def residual_of(self, policy: "InsertionPolicy") -> "Residual | None":
        """Restores what corrects a policy's actions; None where nothing does."""
        from vla_jax.policy.residual import load_residual

        return load_residual(policy.loaded) if self.residual else None

    def execution(self, policy: "InsertionPolicy") -> Execution:
        """Returns how a policy's chunks are executed; raises UserError where its horizon is too short."""
        latency = ticks(self.action_latency, "action-latency", policy)
        try:
            execution = Execution(self.execute, latency, self.ensemble)
            execution.check_horizon(policy.data.actions.horizon)
        except ValueError as error:
            raise UserError(str(error)) from error
        return execution

    def refresh_ticks(self, policy: "InsertionPolicy") -> int:
        """Returns the control ticks from one set of pictures to the next."""
        if self.refresh is not None and self.refresh < 1:
            raise UserError(f"--refresh must be at least 1, not {self.refresh}")
        return self.refresh or policy.data.refresh_ticks or 3


def ticks(text: str, option: str, policy: "InsertionPolicy") -> int:
    """Returns a time in control ticks; milliseconds are rounded up, since nothing is there before it is there."""
    number, in_ms = text.removesuffix("ms"), text.endswith("ms")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    count = math.ceil(round(value / 1000 * policy.data.actions.control_hz, 6)) if in_ms else value
    if not 0 <= count < 1000 or count != int(count):
        raise UserError(f"--{option} {text} is no time; give control ticks (4) or milliseconds (400ms)")
    return int(count)
