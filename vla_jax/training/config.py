"""Configuration of a training run, and the recipes that fill it in."""

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
        check_at_least_one(self, "steps", "batch_size", "grad_accum_steps")
        check_at_least_one(self, "validate_every", "checkpoint_every", "log_every")
        check_not_negative(self, "sensor_noise", "feature_noise")
        check_share(self, "sensor_dropout", "ema_decay")
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"TrainConfig: grad_accum_steps {self.grad_accum_steps} does not divide batch_size {self.batch_size}"
            )
