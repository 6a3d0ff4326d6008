"""The door to action heads: what a head must do, what its configuration must say, and the registry of them.

A head turns the condition (one vector for each observation, made by the fusion) into a chunk of normalised actions.
To add one, write a `HeadConfig` with a `kind` of its own and an `ActionHead`, and put `register_head` over the
configuration; recipes, training, checkpoints, evaluation and the robot then know it by its kind.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.contracts.checks import check_at_least_one, unknown_choice
from vla_jax.errors import UserError
from vla_jax.models.dropout import DropoutKey
from vla_jax.storage import config_json

HeadSize = Literal["full", "small", "tiny"]


@dataclass(frozen=True)
class Sampling:
    """How a head that denoises walks back from noise to actions."""

    sampler: str
    steps: int


class ActionHead(nnx.Module):
    """Predicts chunks of normalised actions; axes: b batch, e condition, h horizon, a action dimensions.

    Whatever a head draws comes from the keys it is given. previous_chunk: actions of the past, normalised; None
    where there are none, which only heads refuse whose configuration `needs_previous_chunk`.
    """

    def loss(
        self,
        condition: Float[Array, "b e"],
        actions: Float[Array, "b h a"],
        *,
        keys: Key[Array, "2"],
        dropout_key: DropoutKey = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """Returns the error of each sample, mean over horizon and dimensions.

        keys: for what the loss draws. dropout_key: None drops nothing (evaluation).
        """
        raise NotImplementedError

    def sample(
        self,
        condition: Float[Array, "b e"],
        *,
        keys: Key[Array, " b"] | None,
        previous_chunk: Float[Array, "b h a"] | None = None,
        sampling: Sampling | None = None,
    ) -> Float[Array, "b h a"]:
        """Predicts actions, in evaluation mode.

        keys: one for each row, so that a row's draws do not depend on its batch; None where nothing is drawn.
        sampling: of `HeadConfig.sampling`; None takes the configuration's own.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class HeadConfig:
    """What a checkpoint keeps of a head. Each kind of head has its own, with further fields."""

    kind: ClassVar[str]
    """Its name in configurations, checkpoints and options."""
    bounds_actions: ClassVar[bool] = False
    """Predictions lie in −1…1, so actions must be scaled to fill that range and never leave it."""
    normalises_weights: ClassVar[bool] = True
    """Sample weights are divided by their mean over the batch."""

    hidden_dim: int = 1024
    """Width of the condition, and of the head's layers."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "hidden_dim")

    def make(
        self, horizon: int, action_dim: int, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs
    ) -> ActionHead:
        """Builds the head with initial weights. remat: recompute layers' activations in the backward pass."""
        raise NotImplementedError

    @property
    def needs_previous_chunk(self) -> bool:
        """Whether the head adds to a chunk of the past, which the caller then gives."""
        return False

    @property
    def noise_steps(self) -> int | None:
        """Steps of the noise schedule; None where there is none."""
        return None

    @classmethod
    def preset(cls, size: HeadSize, *, reference: bool = False) -> "HeadConfig":
        """Returns the configuration for recipes of a size: as trained, for a CPU in minutes, for tests.

        reference: with every deviation from the PyTorch reference switched off.
        """
        return cls()

    def sampling(self, sampler: str | None = None, steps: int | None = None) -> Sampling | None:
        """Returns how to sample: as asked for, or where None as configured; None for heads that predict in one pass.

        Raises:
            UserError: the head cannot sample so.
        """
        if sampler is not None or steps is not None:
            raise UserError(f"a {self.kind} policy has no sampler: leave --sampler and --steps out")
        return None

    def with_noise_steps(self, steps: int) -> "HeadConfig":
        """Returns the configuration with another number of noise steps.

        Raises:
            UserError: the head has no noise schedule.
        """
        raise UserError(f"a {self.kind} policy has no noise schedule: leave --diffusion-timesteps out")

    def without_leaks(self) -> "HeadConfig":
        """Returns the configuration to train on with, in which no input tells the answer."""
        return self


ConfigT = TypeVar("ConfigT", bound=HeadConfig)

_HEADS: dict[str, type[HeadConfig]] = {}


def register_head(config: type[ConfigT]) -> type[ConfigT]:
    """Makes a head known by its configuration's `kind`; use it as a decorator of the configuration.

    Raises:
        ValueError: the kind is taken.
    """
    if _HEADS.get(config.kind, config).__qualname__ != config.__qualname__:
        raise ValueError(f"head {config.kind!r} is taken by {_HEADS[config.kind].__qualname__}")
    _HEADS[config.kind] = config
    return config


def head_kinds() -> tuple[str, ...]:
    """Returns the kinds of all registered heads."""
    return tuple(_HEADS)


def head_config(kind: str) -> type[HeadConfig]:
    """Returns the configuration class of a kind of head.

    Raises:
        UserError: there is none of that name.
    """
    if kind not in _HEADS:
        raise UserError(f"head {unknown_choice(kind, head_kinds())}")
    return _HEADS[kind]


config_json.register_tagged(HeadConfig, "kind", head_config)
