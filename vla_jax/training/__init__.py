"""Training of the policy heads: configuration, how a run begins, one sharded step, the loop, checkpoints and logs."""

from vla_jax.lazy_names import lazy_names

_NAMES = {
    "TrainConfig": "vla_jax.training.config",
    "make_config": "vla_jax.training.recipes",
    "make_mesh": "vla_jax.training.sharding",
    "train": "vla_jax.training.loop",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
