"""AdamW with one learning rate for the sensor encoder and one for the rest, and decay where it belongs."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from vla_jax.storage.array_items import leaf_name
from vla_jax.training.config import OptimizerConfig
from vla_jax.training.learning_rate import rewarm, trapezoid

Group = Literal["encoder", "expert"]

ENCODER_PREFIX = "sensor_encoder"


def make_schedule(
    config: OptimizerConfig, group: Group, total_updates: int
) -> Callable[[Any], float | jax.Array]:
    """Returns the learning rate of a parameter group as a function of the update number 0, 1, …"""
    peak = config.sensor_lr if group == "encoder" else config.lr
    if config.schedule == "constant":
        return lambda update: peak
    first = 0 if config.rewarm is None else config.rewarm.step
    shape: dict[str, Any] = {
        "total_updates": -(-(total_updates - first) // config.schedule_interval),
        "peak": peak,
        "minimum": min(config.min_lr, peak),
        "warmup_ratio": config.warmup_ratio,
        "hold_ratio": 0.0 if config.schedule == "cosine" else config.hold_ratio,
        "xp": jnp,
    }
    if config.rewarm is None:
        return lambda update: trapezoid(jnp.asarray(update) // config.schedule_interval, **shape)
    previous = config.rewarm.sensor_lr if group == "encoder" else config.rewarm.lr
    return lambda update: rewarm(
        jnp.maximum(update - first, 0) // config.schedule_interval, previous=previous, **shape
    )


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """Returns global-norm clipping followed by AdamW (Loshchilov & Hutter 2019) per parameter group.

    Groups by path: `sensor_encoder` at `sensor_lr`, everything else at `lr`. Only kernels decay, not norms, biases
    or embeddings, unless `decay_everything`.
    """
    groups = {
        group: optax.adamw(
            make_schedule(config, group, total_updates),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=None if config.decay_everything else decay_mask,
        )
        for group in get_args(Group)
    }
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(groups, parameter_groups))


def parameter_groups(params: Any) -> Any:
    """Labels every parameter "encoder" or "expert" by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "encoder" if leaf_name(path).startswith(ENCODER_PREFIX) else "expert", params
    )


def decay_mask(params: Any) -> Any:
    """True for the weights that decay: kernels, not biases, norms or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaf_name(path).rsplit(".", 1)[-1] == "kernel", params
    )
