"""The network, the inputs and the recipe that JAX and PyTorch are compared on, so that both sides have the same."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_jax.diffusion.schedule import Schedule, cosine_schedule
from vla_jax.heads.transformer_head import TransformerHeadConfig
from vla_jax.policy.config import PolicyConfig

HeadKind = Literal["diffusion", "regression", "flow"]
Size = Literal["full", "small"]
InferenceCase = Literal["regression", "ddim", "ddpm", "flow1", "flow10"]
CaseName = Literal["train", "regression", "ddim", "ddpm", "flow1", "flow10"]
FLOW_STEPS = {"flow1": 1, "flow10": 10}
"""Euler's steps of the cases that PyTorch has no head for."""

LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0


def policy_config(kind: HeadKind, sensor_length: int, size: Size) -> PolicyConfig:
    """Returns the reference's network, or a flow of the same size; with narrow layers where `size` is small."""
    config = PolicyConfig.reference(kind)
    if size == "small":
        assert isinstance(config.head, TransformerHeadConfig)
        config = replace(
            config,
            vl_dim=64,
            sensor=replace(config.sensor, hidden_dim=32, output_dim=64),
            head=replace(config.head, hidden_dim=64, num_layers=2),
        )
    return config.with_sensor_length(sensor_length)


def noise_schedule(config: PolicyConfig) -> Schedule:
    """Returns the diffusion's schedule; for heads without one the usual one, which nothing then reads."""
    return cosine_schedule(config.head.noise_steps or 100)


@dataclass(frozen=True)
class Inputs:
    """Standard normal observations, actions and noise, f32, and the diffusion's steps."""

    vl: np.ndarray
    """(b, 1, v)"""
    sensor: np.ndarray
    """(b, t, c)"""
    actions: np.ndarray
    """(b, h, a)"""
    noise: np.ndarray
    """(b, h, a)"""
    t: np.ndarray
    """(b,) i32"""


def make_inputs(config: PolicyConfig, batch: int, sensor_length: int) -> Inputs:
    """Draws the inputs of one batch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    chunk = (config.horizon, config.action_dim)
    return Inputs(
        vl=normal(1, config.vl_dim),
        sensor=normal(sensor_length, config.sensor.channels),
        actions=normal(*chunk),
        noise=normal(*chunk),
        t=rng.integers(0, noise_schedule(config).steps, batch).astype(np.int32),
    )
