"""Configuration of a training run, and the recipes that fill it in."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vla_jax.errors import UserError
from vla_jax.models.config import PolicyConfig
from vla_jax.preprocessing.normaliser import NormalisationConfig

Schedule = Literal["trapezoid", "cosine", "constant"]


@dataclass(frozen=True)
class Rewarm:
    """A second warm-up, in a resumed run: from update `step` on the rates rise again from `lr` and `sensor_lr`."""

    step: int
    lr: float
    sensor_lr: float


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rates.

    lr, sensor_lr: peak rates of the action expert and of the sensor encoder; min_lr: where the cosine ends.
    schedule: trapezoid (linear warm-up, hold, cosine), cosine (the same without hold), or constant.
    warmup_ratio, hold_ratio: shares of all updates. schedule_interval: updates for which a rate is kept (an epoch's,
    where the schedule goes by epochs). rewarm: set when a run was resumed with a new warm-up.
    decay_everything: True decays norms and biases too, as the reference does.
    clip_norm: largest global gradient norm.
    """

    lr: float = 1e-4
    sensor_lr: float = 5e-4
    min_lr: float = 1e-6
    schedule: Schedule = "trapezoid"
    warmup_ratio: float = 0.03
    hold_ratio: float = 0.02
    schedule_interval: int = 1
    rewarm: Rewarm | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_everything: bool = False
    clip_norm: float = 1.0

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
    """Everything that decides a training run's result, apart from the data.

    steps: optimizer updates. batch_size: samples per update over all devices; grad_accum_steps: parts it is
    computed in. sensor_loss_weight: weight of samples with sensor relative to those without.
    sensor_dropout: share of samples whose sensor is hidden in training. sensor_noise, feature_noise: standard deviation
    of the Gaussian noise added to normalised windows and features in training. ema_decay: of the averaged weights that
    evaluation uses; 0 turns averaging off. validate_every, checkpoint_every, log_every: in updates.
    init_from: the checkpoint whose weights and normalisation the run began with.
    """

    policy: PolicyConfig
    steps: int = 10_000
    batch_size: int = 256
    grad_accum_steps: int = 1
    seed: int = 0
    sensor_loss_weight: float = 2.0
    sensor_dropout: float = 0.1
    sensor_noise: float = 0.0
    feature_noise: float = 0.0
    ema_decay: float = 0.999
    validate_every: int = 1_000
    checkpoint_every: int = 1_000
    log_every: int = 20
    init_from: str | None = None
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
