"""The policy networks in Flax NNX."""

from vla_jax.models.config import (
    DiffusionConfig,
    ExpertConfig,
    FusionConfig,
    PolicyConfig,
    SensorEncoderConfig,
)
from vla_jax.models.policy_network import PolicyNetwork

__all__ = [
    "DiffusionConfig",
    "ExpertConfig",
    "FusionConfig",
    "PolicyConfig",
    "PolicyNetwork",
    "SensorEncoderConfig",
]
