"""Numbers recorded from the PyTorch reference (tests/data/parity), and policies that hold its weights."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from tests.paths import PARITY
from vla_jax.models.config import FusionConfig, SensorEncoderConfig
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import PolicyNetwork
from vla_jax.reference.tensor_names import ENCODER, EXPERT
from vla_jax.reference.weights import network_from_weights

# Compiling is nearly all of these tests' time; unoptimised machine code halves it and computes the same graph.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

FUSIONS = ("concat", "cross_attention", "gated", "none")


@dataclass(frozen=True)
class Record:
    """One file: the configuration, the weights by torch name, and inputs and outputs by name."""

    config: dict
    weights: dict[str, np.ndarray]
    inputs: dict[str, jax.Array]
    outputs: dict[str, np.ndarray]


@lru_cache(maxsize=4)
def load(name: str) -> Record:
    """Reads `name`.npz."""
    groups = {"w": {}, "in": {}, "out": {}}
    with np.load(PARITY / f"{name}.npz") as file:
        for key in file.files:
            group, _, rest = key.partition("/")
            if group in groups:
                groups[group][rest] = file[key]
        config = json.loads(str(file["config"]))
    inputs = {name: _as_jax(array) for name, array in groups["in"].items()}
    return Record(config, groups["w"], inputs, groups["out"])


def _as_jax(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


def policy_config(model_type: str, expert: dict, sensor: dict | None) -> PolicyConfig:
    """The reference configuration of the sizes that a record's JSON gives."""
    config = PolicyConfig.reference(model_type, expert["fusion_strategy"], expert["vl_dim"])
    encoder = SensorEncoderConfig(
        channels=4, hidden_dim=4, output_dim=expert["sensor_dim"], num_conv_layers=1, use_transformer=False
    )
    if sensor is not None:
        encoder = SensorEncoderConfig(
            channels=sensor["input_channels"],
            temporal_length=sensor["temporal_length"],
            hidden_dim=sensor["hidden_dim"],
            output_dim=sensor["output_dim"],
            num_conv_layers=sensor["num_conv_layers"],
            use_transformer=sensor["use_transformer"],
            num_transformer_layers=sensor["num_transformer_layers"],
            num_heads=sensor["nhead"],
            dropout=sensor.get("dropout", 0.1),
            masked_statistics=False,
        )
    dropout = expert.get("dropout", 0.1)
    head = replace(
        config.head,
        hidden_dim=expert["hidden_dim"],
        num_layers=expert["num_layers"],
        num_heads=expert["nhead"],
        dropout=dropout,
    )
    if head.noise_steps is not None:
        head = head.with_noise_steps(expert.get("timesteps", 100))
    return replace(
        config,
        horizon=expert["horizon"],
        action_dim=expert["action_dim"],
        sensor=encoder,
        fusion=FusionConfig(
            strategy=expert["fusion_strategy"],
            vl_pool="mean",
            masked_pool=False,
            num_heads=expert["nhead"],
            dropout=dropout,
        ),
        head=head,
    )


def expert_policy(model_type: str, record: Record) -> PolicyNetwork:
    """A policy whose expert holds a record's weights; its sensor encoder is a small one of zeros."""
    weights = {f"action_expert.{name}": array for name, array in record.weights.items()}
    return network_from_weights(policy_config(model_type, record.config, None), weights, parts=(EXPERT,))


def encoder_policy(record: Record) -> PolicyNetwork:
    """A policy whose sensor encoder holds a record's weights; its expert is a small one of zeros."""
    expert = {
        "fusion_strategy": "concat",
        "vl_dim": 4,
        "sensor_dim": record.config["output_dim"],
        "horizon": 8,
        "action_dim": 7,
        "hidden_dim": 4,
        "num_layers": 1,
        "nhead": 1,
    }
    weights = {f"sensor_encoder.{name}": array for name, array in record.weights.items()}
    return network_from_weights(policy_config("regression", expert, record.config), weights, parts=(ENCODER,))
