"""AdamW with one learning rate for the sensor encoder and one for the rest, and decay where it belongs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vla_jax.training.config import OptimizerConfig
from vla_jax.training.learning_rate import trapezoid

ENCODER_PREFIX = "sensor_encoder"


def make_schedule(config: OptimizerConfig, peak: float, total_updates: int) -> optax.Schedule:
    """Returns the learning rate as a function of the update number, for one parameter group."""
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    return lambda update: trapezoid(
        update,
        total_updates=total_updates,
        peak=peak,
        minimum=min(config.min_lr, peak),
        warmup_ratio=config.warmup_ratio,
        hold_ratio=config.hold_ratio,
        xp=jnp,
    )


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """Returns global-norm clipping followed by AdamW (Loshchilov & Hutter 2019) per parameter group.

    Groups by path: `sensor_encoder` at `sensor_lr`, everything else at `lr`. Only kernels decay, not norms, biases
    or embeddings, unless `decay_everything`.
    """
    groups = {
        name: optax.adamw(
            make_schedule(config, peak, total_updates),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=None if config.decay_everything else decay_mask,
        )
        for name, peak in (("encoder", config.sensor_lr), ("expert", config.lr))
    }
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(groups, parameter_groups))


def parameter_groups(params: Any) -> Any:
    """Labels every parameter "encoder" or "expert" by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "encoder" if parameter_name(path).startswith(ENCODER_PREFIX) else "expert", params
    )


def decay_mask(params: Any) -> Any:
    """True for the weights that decay: kernels, not biases, norms or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_name(path).rsplit(".", 1)[-1] == "kernel", params
    )


def parameter_name(path: tuple[Any, ...]) -> str:
    """Returns a tree path as dotted names, for instance `expert.layers.0.linear1.kernel`."""
    names = jax.tree_util.keystr(path, simple=True, separator=".")
    return names.removesuffix(".value")
