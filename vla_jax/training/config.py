"""Configuration of a training run. The docstrings under the fields are what `train --help` says of its options."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vla_jax.errors import UserError
from vla_jax.models.config import PolicyConfig
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
        if self.lr <= 0 or self.sensor_lr <= 0:
            raise UserError(f"learning rates must be positive: lr {self.lr}, sensor_lr {self.sensor_lr}")
        if self.schedule not in get_args(Schedule):
            raise UserError(f"unknown schedule {self.schedule!r}; choose {', '.join(get_args(Schedule))}")
        if self.schedule_interval < 1:
            raise UserError(f"schedule_interval must be at least 1, not {self.schedule_interval}")
        if not 0 <= self.warmup_ratio + self.hold_ratio <= 1:
            raise UserError(
                f"warmup_ratio {self.warmup_ratio} + hold_ratio {self.hold_ratio} must be between 0 and 1"
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
        for name in (
            "steps",
            "batch_size",
            "grad_accum_steps",
            "validate_every",
            "checkpoint_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"grad-accum-steps {self.grad_accum_steps} does not divide batch-size {self.batch_size}"
            )
        if self.sensor_noise < 0 or self.feature_noise < 0:
            raise UserError(
                f"sensor-noise {self.sensor_noise} and feature-noise {self.feature_noise} must not be negative"
            )
        if not 0 <= self.sensor_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise UserError(
                f"sensor-dropout {self.sensor_dropout} and ema-decay {self.ema_decay} must be in [0, 1)"
            )
