"""Configuration of a training run. The docstrings under the fields are what `train --help` says of its options."""

from dataclasses import dataclass, field
from typing import Literal

from vla_jax.contracts.checks import (
    check_at_least_one,
    check_choices,
    check_not_negative,
    check_positive,
    check_share,
)
from vla_jax.errors import UserError
from vla_jax.policy.config import PolicyConfig
from vla_jax.preprocessing.config import NormalisationConfig

RecipeName = Literal["frozen", "small", "reference", "small_reference", "debug"]
"""The configurations that `vla_jax.training.recipes` makes."""
Schedule = Literal["trapezoid", "cosine", "constant"]
FeedMode = Literal["auto", "host", "device"]
"""How batches reach the devices (`vla_jax.training.feeding`)."""


@dataclass(frozen=True)
class Rewarm:
    """A second warm-up, in a resumed run: from update `step` on the rates rise again from `lr` and `sensor_lr`."""

    step: int
    lr: float
    sensor_lr: float


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) and its learning rates."""

    lr: float = 1e-4
    """Peak learning rate of the action expert."""
    sensor_lr: float = 5e-4
    """Peak learning rate of the sensor encoder."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    schedule: Schedule = "trapezoid"
    """trapezoid: linear warm-up, hold, cosine. cosine: without hold. constant: the peak rate throughout."""
    warmup_ratio: float = 0.03
    """Share of the updates in which the learning rate rises."""
    hold_ratio: float = 0.02
    """Share of the updates at the peak learning rate."""
    schedule_interval: int = 1
    """Updates for which a rate is kept: an epoch's, where the schedule goes by epochs."""
    rewarm: Rewarm | None = None
    """Set when a run was resumed with a new warm-up."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_everything: bool = False
    """Norms and biases decay too, as the reference's do."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "lr", "sensor_lr")
        check_at_least_one(self, "schedule_interval")
        if not 0 <= self.warmup_ratio + self.hold_ratio <= 1:
            raise UserError(
                f"OptimizerConfig: warmup_ratio {self.warmup_ratio} + hold_ratio {self.hold_ratio} must be "
                "between 0 and 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run's result, apart from the data."""

    policy: PolicyConfig
    steps: int = 10_000
    """Optimizer updates."""
    batch_size: int = 256
    """Samples per update, over all devices."""
    grad_accum_steps: int = 1
    """Parts in which an update's gradient is computed, to save memory."""
    seed: int = 0
    """Seeds initial weights, data order, dropout and noise."""
    sensor_loss_weight: float = 2.0
    """Weight in the loss of samples with sensor, relative to those without."""
    sensor_dropout: float = 0.1
    """Share of samples whose sensor is hidden while training."""
    sensor_noise: float = 0.0
    """Standard deviation of the noise added to normalised sensor windows in training."""
    feature_noise: float = 0.0
    """Standard deviation of the noise added to normalised features in training."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that evaluation uses; 0 turns averaging off."""
    validate_every: int = 1_000
    """Updates between two validations on held-out episodes."""
    checkpoint_every: int = 1_000
    """Updates between two checkpoints."""
    log_every: int = 20
    """Updates between two log lines."""
    recipe: RecipeName | None = None
    """The recipe it was made from; None where that is not known (imports, runs of older versions)."""
    init_from: str | None = None
    """The checkpoint whose weights and normalisation the run began with."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps", "batch_size", "grad_accum_steps")
        check_at_least_one(self, "validate_every", "checkpoint_every", "log_every")
        check_not_negative(self, "sensor_noise", "feature_noise")
        check_share(self, "sensor_dropout", "ema_decay")
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"TrainConfig: grad_accum_steps {self.grad_accum_steps} does not divide batch_size {self.batch_size}"
            )
