"""A policy for the lab's streams, with random weights, and a tiny backbone that makes its features."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE, DataSpec, FeatureSpec, SensorSpec
from vla_jax.heads.regression import RegressionConfig
from vla_jax.models.config import FusionConfig, SensorEncoderConfig
from vla_jax.policy.artifact import PolicyArtifact, save_policy
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.metadata import PolicyMetadata
from vla_jax.policy.network import abstract_network
from vla_jax.preprocessing.normaliser import NormalisationConfig, Normaliser

VIEWS = ("View1", "View2", "View3")
SLOTS, WIDTH = 13, 64
HIGH = (0.25, 0.25, 0.25, 0.3, 0.3, 0.3, 1.0)
LOW = (-0.25, -0.25, -0.4, -0.3, -0.3, -0.3, 1.0)
PROMPT = "Insert the needle into the red marker."
FORCE, FORCE_SPREAD = 2.5, 0.1


def lab_data(views=VIEWS):
    actions = replace(LAB_ACTIONS, low=LOW, high=HIGH)
    return DataSpec(actions, views=views, sensor=SensorSpec(), state=LAB_STATE)


def lab_config():
    return PolicyConfig(
        head=RegressionConfig(hidden_dim=16, num_layers=1, num_heads=2),
        vl_dim=WIDTH,
        vl_slots=SLOTS,
        sensor=SensorEncoderConfig(hidden_dim=8, output_dim=8, num_conv_layers=1, use_transformer=False),
        fusion=FusionConfig(strategy="concat", vl_pool_heads=2, num_heads=2),
    )


def lab_normaliser():
    return Normaliser(
        action_offset=jnp.array([0, 0, -0.1, 0, 0, 0, 1], jnp.float32),
        action_scale=jnp.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0], jnp.float32),
        force_offset=jnp.float32(FORCE),
        force_scale=jnp.float32(FORCE_SPREAD),
        ascan_scale=jnp.float32(10.0),
        feature_offset=jnp.zeros((SLOTS, WIDTH)),
        feature_scale=jnp.ones((SLOTS, WIDTH)),
    )


def lab_network(config):
    structure, params, statistics = nnx.split(abstract_network(config), nnx.Param, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), params)
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), statistics)
    return nnx.merge(structure, params, statistics)


def metadata(data=None, provenance=None):
    features = FeatureSpec(SLOTS, WIDTH, provenance)
    return PolicyMetadata(
        network=lab_config(),
        data=data or lab_data(),
        features=features,
        normalisation=NormalisationConfig(),
    )


def lab_policy(data=None, path=Path("run/checkpoints/0"), **network):
    """Returns the policy without a checkpoint, quickly. network: other fields of its configuration."""
    about = metadata(data)
    about = replace(about, network=replace(about.network, **network))
    return InsertionPolicy(PolicyArtifact(lab_network(about.network), lab_normaliser(), about, path))


def write_lab_policy(run, backbone):
    """Writes the policy's checkpoint and its backbone."""
    from feature_cache.backbone import find_backbone
    from feature_cache.tiny_backbone import write_tiny_backbone

    write_tiny_backbone(backbone)
    provenance = find_backbone(str(backbone)).provenance(pooling="grid", grid=2, layer=-1, dtype="float16")
    about = metadata(provenance=provenance)
    save_policy(run, lab_network(about.network), lab_normaliser(), about)
    return run
