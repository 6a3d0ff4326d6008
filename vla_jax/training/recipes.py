"""Recipes: functions that return a whole training configuration."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from vla_jax.contracts.specs import LAB_ANGLES, LAB_STATE, DataSpec, FeatureSpec, StateWindow
from vla_jax.errors import UserError
from vla_jax.heads.head_config import HeadConfig, head_config
from vla_jax.models.config import (
    AgeEncoderConfig,
    FusionConfig,
    FusionStrategy,
    SensorEncoderConfig,
    StateEncoderConfig,
    StateWindowConfig,
)
from vla_jax.policy.config import PolicyConfig
from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.training.config import OptimizerConfig, RecipeName, TrainConfig


@dataclass(frozen=True)
class _Asked:
    """What every recipe is told. sizes: the fields of `PolicyConfig` that the features and the device decide."""

    head: type[HeadConfig]
    fusion: FusionStrategy
    sizes: dict[str, Any]


def make_config(
    recipe: RecipeName,
    features: FeatureSpec,
    data: DataSpec,
    *,
    head: str,
    fusion: FusionStrategy,
    noise_steps: int | None = None,
    state: bool = False,
    state_window: StateWindow | None = None,
    feature_age: tuple[float, ...] = (),
) -> TrainConfig:
    """Returns a recipe's configuration for the sizes of features and data.

    Parameters stay float32; the full-size recipes compute in bfloat16 on accelerators, float32 on a CPU.

    head: its kind. noise_steps: of heads that denoise; None leaves the recipe's.
    state: whether the policy reads the arm's own state, as `--state-enabled`.
    state_window: which of the arm's last states the policy reads, as `--state-window`; None for none.
    feature_age: `TrainConfig.feature_age`, which the policy is then told; () for neither.

    Raises:
        UserError: there is no such head, it has no noise schedule, or no state was recorded.
    """
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    sizes: dict[str, Any] = {"vl_dim": features.width, "vl_slots": features.num_slots}
    if recipe in ("frozen", "reference"):
        sizes["dtype"] = dtype
    config = _RECIPES[recipe](_Asked(head_config(head), fusion, sizes))
    policy = config.policy.fitted(data)
    if noise_steps is not None:
        policy = dataclasses.replace(policy, head=policy.head.with_noise_steps(noise_steps))
    if state:
        policy = dataclasses.replace(policy, state=StateEncoderConfig(_state_columns(data)))
    if state_window is not None:
        _refuse_without_state(data, "--state-window")
        columns = tuple(range(len(data.state)))
        policy = dataclasses.replace(policy, state_window=StateWindowConfig(columns, state_window))
    if feature_age:
        policy = dataclasses.replace(policy, age=AgeEncoderConfig())
    return dataclasses.replace(config, policy=policy, feature_age=feature_age, recipe=recipe)


def _state_columns(data: DataSpec) -> tuple[int, ...]:
    """Returns what a policy reads of the arm's state: its angles; of an arm that is not the lab's, everything."""
    _refuse_without_state(data, "--state-enabled")
    if data.state != LAB_STATE:
        return tuple(range(len(data.state)))
    return tuple(data.state.index(name) for name in LAB_ANGLES)


def _refuse_without_state(data: DataSpec, option: str) -> None:
    if not data.state:
        raise UserError(f"{option}: the data hold actions only, no pose or joints that a policy could read")


def _normalisation(head: type[HeadConfig]) -> NormalisationConfig:
    return NormalisationConfig(actions="min_max" if head.bounds_actions else "mean_std")


def _frozen(asked: _Asked) -> TrainConfig:
    """Full-size heads on the features of a frozen backbone; the rates of the reference's frozen recipe."""
    return TrainConfig(
        policy=PolicyConfig(
            head=asked.head.preset("full"),
            fusion=FusionConfig(strategy=asked.fusion, query_residual=True),
            **asked.sizes,
        ),
        optimizer=OptimizerConfig(lr=5e-4, sensor_lr=5e-4),
        normalisation=_normalisation(asked.head),
    )


def _small(asked: _Asked) -> TrainConfig:
    """Heads that learn the phantom in about two minutes on two CPU cores (`make demo`).

    Without noise on the inputs, the heads tell the few episodes apart by their speckle.
    """
    return TrainConfig(
        policy=PolicyConfig.small(asked.head.kind, fusion=asked.fusion, **asked.sizes),
        steps=500,
        batch_size=64,
        sensor_dropout=0.25,
        sensor_noise=0.2,
        feature_noise=0.1,
        ema_decay=0.99,
        validate_every=500,
        checkpoint_every=250,
        optimizer=OptimizerConfig(lr=1e-3, sensor_lr=1e-3, min_lr=1e-5, weight_decay=0.05),
        normalisation=_normalisation(asked.head),
    )


def _reference(asked: _Asked) -> TrainConfig:
    """The PyTorch reference: raw inputs and actions, one rate, decay on everything, no averaging."""
    return TrainConfig(
        policy=PolicyConfig.reference(asked.head.kind, asked.fusion, **asked.sizes),
        ema_decay=0.0,
        sensor_dropout=0.0,
        optimizer=OptimizerConfig(lr=1e-4, sensor_lr=1e-4, decay_everything=True),
        normalisation=NormalisationConfig(actions="none", sensor="none", features="none"),
    )


def _small_reference(asked: _Asked) -> TrainConfig:
    """The reference's network and training at the sizes of `small`, to tell what the deviations are worth.

    Widths, updates, batches and learning rates are those of `small`, which belong to its size; everything else is as
    in `reference`.
    """
    small, reference = _small(asked), _reference(asked)
    ours, theirs = small.policy, reference.policy
    policy = dataclasses.replace(
        theirs,
        sensor=dataclasses.replace(
            ours.sensor,
            masked_statistics=theirs.sensor.masked_statistics,
            averaged_rows=theirs.sensor.averaged_rows,
        ),
        fusion=dataclasses.replace(theirs.fusion, num_heads=ours.fusion.num_heads),
        head=asked.head.preset("small", reference=True),
    )
    rates = {name: getattr(small.optimizer, name) for name in ("lr", "sensor_lr", "min_lr")}
    return dataclasses.replace(
        reference,
        policy=policy,
        steps=small.steps,
        batch_size=small.batch_size,
        validate_every=small.validate_every,
        checkpoint_every=small.checkpoint_every,
        optimizer=dataclasses.replace(reference.optimizer, **rates),
    )


def _debug(asked: _Asked) -> TrainConfig:
    """Tiny, for tests: compiles in seconds."""
    policy = PolicyConfig(
        head=asked.head.preset("tiny"),
        sensor=SensorEncoderConfig(
            hidden_dim=8, output_dim=16, num_conv_layers=2, num_transformer_layers=1, num_heads=2
        ),
        fusion=FusionConfig(strategy=asked.fusion, vl_pool_width=16, vl_pool_heads=2, num_heads=2),
        **asked.sizes,
    )
    return TrainConfig(
        policy=policy,
        steps=4,
        batch_size=8,
        validate_every=4,
        checkpoint_every=2,
        log_every=1,
        normalisation=_normalisation(asked.head),
    )


_RECIPES = {
    "frozen": _frozen,
    "small": _small,
    "reference": _reference,
    "small_reference": _small_reference,
    "debug": _debug,
}
