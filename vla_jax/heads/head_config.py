"""What a head's configuration must say, and the registry of heads by their kind. Imports no JAX."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from vla_jax.contracts.checks import Count, check, unknown_choice
from vla_jax.errors import UserError
from vla_jax.storage import config_json

if TYPE_CHECKING:
    import jax.numpy as jnp
    from flax import nnx

    from vla_jax.heads.action_head import ActionHead

HeadSize = Literal["full", "small", "tiny"]


@dataclass(frozen=True)
class Sampling:
    """How a head that denoises walks back from noise to actions."""

    sampler: str
    steps: int


@dataclass(frozen=True)
class HeadConfig:
    """What a checkpoint keeps of a head. Each kind of head has its own, with further fields."""

    kind: ClassVar[str]
    """Its name in configurations, checkpoints and options."""
    bounds_actions: ClassVar[bool] = False
    """Predictions lie in −1…1, so actions must be scaled to fill that range and never leave it."""
    normalises_weights: ClassVar[bool] = True
    """Sample weights are divided by their mean over the batch."""

    can_be_guided: ClassVar[bool] = False
    """Denoising can be drawn to a plan (`vla_jax.diffusion.guidance`)."""

    hidden_dim: Count = 1024
    """Width of the condition, and of the head's layers."""

    def __post_init__(self) -> None:
        check(self)

    def make(
        self, horizon: int, action_dim: int, *, dtype: "jnp.dtype", remat: bool, rngs: "nnx.Rngs"
    ) -> "ActionHead":
        """Builds the head with initial weights. remat: recompute layers' activations in the backward pass."""
        raise NotImplementedError

    @property
    def needs_previous_chunk(self) -> bool:
        """Whether the head adds to a chunk of the past, which the caller then gives."""
        return False

    @property
    def longest_prefix(self) -> int:
        """Largest number of promised actions that the head can be given (`vla_jax.heads.prefix`); 0: it takes none."""
        return 0

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
        """Returns how to sample: as asked for, or where None as configured; None for heads that always pass as often.

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

# Heads of this package register themselves when they are first asked for: what only reads options and configurations
# imports no JAX.
_OWN_HEADS = {
    kind: f"vla_jax.heads.{kind}" for kind in ("regression", "diffusion", "flow", "minimal_iterative")
}
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
    """Returns the kinds of all heads: those of this package, and those that were registered beside them."""
    return tuple(dict.fromkeys((*_OWN_HEADS, *_HEADS)))


def head_config(kind: str) -> type[HeadConfig]:
    """Returns the configuration class of a kind of head.

    Raises:
        UserError: there is none of that name.
    """
    if kind in _OWN_HEADS:
        importlib.import_module(_OWN_HEADS[kind])
    if kind not in _HEADS:
        raise UserError(f"head {unknown_choice(kind, head_kinds())}")
    return _HEADS[kind]


config_json.register_tagged(HeadConfig, "kind", head_config)
