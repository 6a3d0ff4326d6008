"""Configuration of a training run. The docstrings under the fields are what `train --help` says of its options."""

from dataclasses import dataclass, field
from typing import Literal

from vla_jax.contracts.checks import Count, NotNegative, Positive, Seed, Share, ShareOrWhole, Whole, check
from vla_jax.contracts.specs import MAX_FEATURE_AGE_S
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

    step: Whole
    lr: NotNegative
    sensor_lr: NotNegative

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) and its learning rates."""

    lr: Positive = 1e-4
    """Peak learning rate of the action expert."""
    sensor_lr: Positive = 5e-4
    """Peak learning rate of the sensor encoder."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of the cosine."""
    schedule: Schedule = "trapezoid"
    """trapezoid: linear warm-up, hold, cosine. cosine: without hold. constant: the peak rate throughout."""
    warmup_ratio: ShareOrWhole = 0.03
    """Share of the updates in which the learning rate rises."""
    hold_ratio: ShareOrWhole = 0.02
    """Share of the updates at the peak learning rate."""
    schedule_interval: Count = 1
    """Updates for which a rate is kept: an epoch's, where the schedule goes by epochs."""
    rewarm: Rewarm | None = None
    """Set when a run was resumed with a new warm-up."""
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    decay_everything: bool = False
    """Norms and biases decay too, as the reference's do."""
    clip_norm: Positive = 1.0
    """Largest global norm of a gradient."""

    def __post_init__(self) -> None:
        check(self)
        if self.warmup_ratio + self.hold_ratio > 1:
            raise UserError(
                f"OptimizerConfig: warmup_ratio {self.warmup_ratio} + hold_ratio {self.hold_ratio} must be at most 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run's result, apart from the data."""

    policy: PolicyConfig
    steps: Count = 10_000
    """Optimizer updates."""
    batch_size: Count = 256
    """Samples per update, over all devices."""
    grad_accum_steps: Count = 1
    """Parts in which an update's gradient is computed, to save memory."""
    seed: Seed = 0
    """Seeds initial weights, data order, dropout and noise."""
    sensor_loss_weight: NotNegative = 2.0
    """Weight in the loss of samples with sensor, relative to those without."""
    sensor_dropout: Share = 0.1
    """Share of samples whose sensor is hidden while training."""
    sensor_noise: NotNegative = 0.0
    """Standard deviation of the noise added to normalised sensor windows in training."""
    feature_noise: NotNegative = 0.0
    """Standard deviation of the noise added to normalised features in training."""
    state_window_dropout: Share = 0.3
    """Share of samples whose window of the arm's last states is hidden while training, so that a policy that reads it
    does not just go on as it moved."""
    feature_age: tuple[float, ...] = ()
    """How old the features are that training shows, in seconds: quantiles, at equal distances, of the distribution
    that a sample's age is drawn from. One is the age of all; () shows the newest."""
    ema_decay: Share = 0.999
    """Decay of the averaged weights that evaluation uses; 0 turns averaging off."""
    validate_every: Count = 1_000
    """Updates between two validations on held-out episodes."""
    checkpoint_every: Count = 1_000
    """Updates between two checkpoints."""
    log_every: Count = 20
    """Updates between two log lines."""
    recipe: RecipeName | None = None
    """The recipe it was made from; None where that is not known (imports, runs of older versions)."""
    init_from: str | None = None
    """The checkpoint whose weights and normalisation the run began with."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)

    def __post_init__(self) -> None:
        check(self)
        ages = self.feature_age
        if not all(0 <= age <= MAX_FEATURE_AGE_S for age in ages) or list(ages) != sorted(ages):
            raise UserError(
                f"TrainConfig.feature_age must be ascending numbers from 0 to {MAX_FEATURE_AGE_S:g} seconds"
            )
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"TrainConfig: grad_accum_steps {self.grad_accum_steps} does not divide batch_size {self.batch_size}"
            )
