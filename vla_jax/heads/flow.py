"""The flow matching head: estimates the velocity from noise to actions, and follows it in a few steps, or in one."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.contracts.checks import Positive, Range, unknown_choice
from vla_jax.diffusion.flow_path import (
    draw_times,
    euler_sample,
    euler_times,
    on_path,
    path_velocity,
)
from vla_jax.diffusion.guidance import guidance, plan_weights
from vla_jax.errors import UserError
from vla_jax.heads.denoiser import UNIT_TIME, Denoiser, DenoiserConfig
from vla_jax.heads.head_config import HeadSize, Sampling, register_head
from vla_jax.heads.prefix import Prefix, draw_prefix, mean_of_the_rest
from vla_jax.models.dropout import DropoutKey

FlowPrediction = Literal["velocity", "sample"]

SAMPLER = "euler"
MAX_STEPS = 1000


@register_head
@dataclass(frozen=True)
class FlowConfig(DenoiserConfig):
    """Which times are trained, and in how many steps the flow is followed."""

    kind: ClassVar[str] = "flow"
    can_be_guided: ClassVar[bool] = True

    prediction: FlowPrediction = "velocity"
    """What the network is trained to predict: the velocity, or the clean actions, which the velocity then follows
    from."""
    sampling_steps: Annotated[int, Range(low=1, high=MAX_STEPS)] = 10
    """Euler's steps from noise to actions."""
    time_alpha: Positive = 1.5
    """α of the Beta distribution of a training sample's share of noise; more than β draws noisy times more often (π0:
    Beta(1.5, 1))."""
    time_beta: Positive = 1.0
    """β of it. Uniform times are Beta(1, 1)."""
    time_shift: Annotated[float, Range(low=1)] = 1.0
    """Draws noisy times more often still, so that one step is enough: with uniform times 4 (Chen et al. 2026); 1
    changes nothing."""

    def make(
        self, horizon: int, action_dim: int, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs
    ) -> "FlowHead":
        return FlowHead(self, horizon, action_dim, dtype=dtype, remat=remat, rngs=rngs)

    @classmethod
    def preset(cls, size: HeadSize, *, reference: bool = False) -> "FlowConfig":
        # As the diffusion head's; the reference has no such head.
        if size == "small":
            return cls(**cls.sizes(size), prediction="sample", noise_draws=4)
        return cls(**cls.sizes(size))

    def sampling(self, sampler: str | None = None, steps: int | None = None) -> Sampling:
        if sampler not in (None, SAMPLER):
            raise UserError(f"sampler {unknown_choice(sampler, (SAMPLER,))}")
        steps = self.sampling_steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"--steps {steps} must be between 1 and {MAX_STEPS}")
        return Sampling(SAMPLER, steps)


class FlowHead(Denoiser[FlowConfig]):
    """Its output is the velocity, or the clean actions. Time is 0 at the noise and 1 at the actions
    (`vla_jax.diffusion.flow_path`)."""

    CLEAN_TIME = UNIT_TIME

    def velocity(
        self,
        x_t: Float[Array, "b h a"],
        t: Float[Array, "#b"],
        time: Float[Array, "#b e"],
        condition: Float[Array, "b e"],
        *,
        prefix: Prefix | None = None,
        key: DropoutKey = None,
    ) -> Float[Array, "b h a"]:
        """The velocity at x_t. t: below 1. time: t, embedded."""
        output = self(x_t, time, condition, prefix=prefix, key=key)
        if self.config.prediction == "velocity":
            return output
        return (output - x_t) / (1.0 - t)[:, None, None]

    def loss(
        self,
        condition: Float[Array, "b e"],
        actions: Float[Array, "b h a"],
        *,
        keys: Key[Array, "2"],
        dropout_key: DropoutKey = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """The squared error of what the network predicts, mean over `noise_draws` times."""
        config, b, draws = self.config, actions.shape[0], self.config.noise_draws
        actions, condition = (jnp.repeat(x, draws, axis=0) for x in (actions, condition))
        prefix = draw_prefix(jax.random.fold_in(keys[0], 0), actions, config.prefix_max)
        t = draw_times(
            keys[0], b * draws, alpha=config.time_alpha, beta=config.time_beta, shift=config.time_shift
        )
        noise = jax.random.normal(keys[1], actions.shape, actions.dtype)
        time = self.embed_time(UNIT_TIME * t)
        velocity = self.velocity(
            on_path(noise, actions, t), t, time, condition, prefix=prefix, key=dropout_key
        )
        error = jnp.square(velocity - path_velocity(noise, actions))
        if config.prediction == "sample":
            # The error of the clean actions.
            error = jnp.square(1.0 - t)[:, None, None] * error
        return mean_of_the_rest(error, prefix).reshape(b, draws).mean(axis=1)

    def sample(
        self,
        condition: Float[Array, "b e"],
        *,
        keys: Key[Array, " b"] | None,
        previous_chunk: Float[Array, "b h a"] | None = None,
        sampling: Sampling | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "b h a"]:
        """Draws noise for each row and follows the flow from it. prefix: a head trained without is guided by it."""
        if keys is None:
            raise ValueError("a flow head draws noise; give `keys`")
        steps = (sampling or self.config.sampling()).steps
        times = jnp.asarray(euler_times(steps))
        guided = prefix is not None and not self.config.prefix_max

        def velocity(x: Array, step: tuple[Array, Array]) -> Array:
            time, t = step
            if not guided:
                return self.velocity(x, t[None], time[None], condition, prefix=prefix)
            assert prefix is not None

            def estimate(x: Array) -> tuple[Array, Array]:
                velocity = self.velocity(x, t[None], time[None], condition)
                return x + (1.0 - t) * velocity, velocity

            weights = plan_weights(prefix.promised, prefix.planned, self.chunk_shape[0])
            change, velocity = guidance(estimate, x, t, 1.0 - t, prefix.actions, weights)
            return velocity + change / (1.0 - t)

        noise = jax.vmap(self.draw_noise)(keys)
        chunk = euler_sample(velocity, noise, steps, per_step=(self.embed_time(UNIT_TIME * times), times))
        return chunk if prefix is None else prefix.put_into(chunk)
