"""Tiny policies with random weights, without a checkpoint."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE, DataSpec, FeatureSpec, SensorSpec
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.flow import FlowConfig
from vla_jax.heads.regression import RegressionConfig
from vla_jax.models.config import FusionConfig, SensorEncoderConfig
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.metadata import PolicyMetadata
from vla_jax.policy.network import abstract_network
from vla_jax.preprocessing.normaliser import NormalisationConfig, Normaliser

SLOTS, WIDTH, ROWS, CHANNELS = 3, 8, 13, 5
DATA = DataSpec(LAB_ACTIONS, views=("View1",), sensor=SensorSpec(CHANNELS, ROWS), state=LAB_STATE)
STATE_SCALING = {
    "state_offset": jnp.array([190.0, 0.0, 60.0, 0.0, 0.0, 0.0]),
    "state_scale": jnp.full(6, 3.0),
    "state_period": jnp.array([np.inf] * 3 + [360.0] * 3),
}
MOTION_SCALING = {"motion_scale": jnp.full(6, 0.5), "motion_period": STATE_SCALING["state_period"]}
SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
HEADS = {
    "regression": RegressionConfig(**SIZES),
    "diffusion": DiffusionConfig(**SIZES, time_embedding_dim=8, steps=10, ddim_steps=3),
    "flow": FlowConfig(**SIZES, time_embedding_dim=8, sampling_steps=3),
}


def policy_config(head="regression", fusion="concat", *, z_chunk=None, prefix_max=0, **overrides):
    changes = {"prefix_max": prefix_max} | ({} if z_chunk is None else {"z_chunk": z_chunk})
    return PolicyConfig(
        head=replace(HEADS[head], **changes),
        vl_dim=WIDTH,
        vl_slots=SLOTS,
        sensor=SensorEncoderConfig(
            channels=CHANNELS,
            temporal_length=ROWS,
            hidden_dim=8,
            output_dim=8,
            num_conv_layers=1,
            use_transformer=False,
        ),
        fusion=FusionConfig(strategy=fusion, vl_pool_heads=2, num_heads=2),
        **overrides,
    )  # fmt: skip


def make_network(config, seed):
    """A network with random weights from NumPy: nothing is compiled, and no gain or variance is at its default."""
    structure, params, statistics = nnx.split(abstract_network(config), nnx.Param, ...)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), params)
    statistics = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(1, 2, leaf.shape), leaf.dtype), statistics)
    return nnx.merge(structure, params, statistics)


def loaded_policy(config, *, seed=0, per_slot=True, data=DATA):
    rng = np.random.default_rng(seed)
    slots = config.vl_slots if per_slot else 1
    normaliser = Normaliser(
        action_offset=jnp.asarray(rng.normal(size=7), jnp.float32),
        action_scale=jnp.asarray([0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 1.0], jnp.float32),
        force_offset=jnp.float32(0.5),
        force_scale=jnp.float32(2.0),
        ascan_scale=jnp.float32(30.0),
        feature_offset=jnp.asarray(rng.normal(size=(slots, config.vl_dim)), jnp.float32),
        feature_scale=jnp.full((slots, config.vl_dim), 1.5, jnp.float32),
        **STATE_SCALING if config.state is not None else {},
        **MOTION_SCALING if config.state_window is not None else {},
    )
    metadata = PolicyMetadata(
        network=config,
        data=data,
        features=FeatureSpec(config.vl_slots, config.vl_dim),
        normalisation=NormalisationConfig(),
        step=7,
    )
    return PolicyArtifact(make_network(config, seed), normaliser, metadata, Path("run/checkpoints/7"))


def tiny_policy(
    head="regression",
    fusion="concat",
    *,
    sampler=None,
    steps=None,
    guided=False,
    per_slot=True,
    data=DATA,
    **overrides,
):
    loaded = loaded_policy(policy_config(head, fusion, **overrides), per_slot=per_slot, data=data)
    return InsertionPolicy(loaded, sampler=sampler, steps=steps, guided=guided)


def observations(batch, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "vl": rng.normal(size=(batch, SLOTS, WIDTH)).astype(np.float32),
        "vl_mask": np.arange(batch * SLOTS).reshape(batch, SLOTS) % 4 != 1,
        "sensor": (50 + 30 * rng.normal(size=(batch, ROWS, CHANNELS))).astype(np.float32),
        "has_sensor": np.arange(batch) % 3 != 2,
    }
