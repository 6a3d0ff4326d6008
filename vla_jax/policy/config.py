"""Configuration of a policy network: its sizes, its parts, and how it differs from the reference."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vla_jax.contracts.checks import Count, check, check_heads
from vla_jax.contracts.specs import DataSpec, FeatureSpec, StateWindow
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
from vla_jax.storage import config_json


@dataclass(frozen=True)
class PolicyConfig:
    """One policy network. Defaults are the full size of the trained reference, with our improvements."""

    head: HeadConfig
    """The action head, of any registered kind."""
    vl_dim: Count
    """Width V of a vision-language token."""
    vl_slots: Count = 1
    """Number S of token slots, at most; slot embeddings are learned for each."""
    horizon: Count = 8
    action_dim: Count = 7
    sensor: SensorEncoderConfig = field(default_factory=SensorEncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    state: StateEncoderConfig | None = None
    """How the arm's own state is read; None leaves it out, as the reference does."""
    state_window: StateWindowConfig | None = None
    """How the arm's last states are read; None leaves them out, as the reference does."""
    age: AgeEncoderConfig | None = None
    """How the age of the features is read; None leaves it out, as the reference does."""
    no_sensor_embedding: bool = True
    """A learned vector stands for a missing sensor (reference: False, zeros go through the encoder)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Parameters, softmax and normalisation statistics stay float32."""
    remat: bool = False
    """Recompute layers' activations in the backward pass: less memory, about a third more arithmetic."""

    def __post_init__(self) -> None:
        check(self)
        if self.head.longest_prefix >= self.horizon:
            raise UserError(
                f"PolicyConfig: a prefix of {self.head.longest_prefix} actions leaves nothing to predict of a chunk of "
                f"{self.horizon}; make head.prefix_max smaller"
            )
        if self.fusion.strategy == "cross_attention":
            check_heads(self, self.head.hidden_dim, self.fusion.num_heads, "head.hidden_dim")
        if self.vl_pool == "attention":
            width = self.fusion.pooled_dim(self.vl_dim, self.vl_slots)
            check_heads(self, width, self.fusion.vl_pool_heads, "the pooled vision-language width")

    @property
    def vl_pool(self) -> Literal["mean", "attention"]:
        """`fusion.vl_pool` with auto resolved."""
        return self.fusion.pool(self.vl_slots)

    @property
    def last_states(self) -> StateWindow | None:
        """Which of the arm's last states it reads; None if none."""
        return None if self.state_window is None else self.state_window.window

    @property
    def uses_sensor(self) -> bool:
        """Whether a sensor encoder is built at all."""
        return self.fusion.strategy != "none"

    @classmethod
    def reference(
        cls, head: str = "diffusion", fusion: FusionStrategy = "concat", vl_dim: int = 2048, **overrides: Any
    ) -> "PolicyConfig":
        """The reference's network, full size: every deviation of ours is switched back.

        head: its kind. overrides: any other field of `PolicyConfig`; nested ones replace the reference's whole.
        """
        values: dict[str, Any] = {
            "head": head_config(head).preset("full", reference=True),
            "sensor": SensorEncoderConfig(masked_statistics=False),
            "fusion": FusionConfig(strategy=fusion, vl_pool="mean", masked_pool=False),
            "no_sensor_embedding": False,
        }
        return cls(vl_dim=vl_dim, **(values | overrides))

    @classmethod
    def small(
        cls,
        head: str,
        *,
        vl_dim: int,
        vl_slots: int = 1,
        fusion: FusionStrategy = "concat",
        temporal_length: int = 65,
        **overrides: Any,
    ) -> "PolicyConfig":
        """A network that learns small tasks on a CPU in minutes; same structure, narrow layers.

        head: its kind. overrides: any other field of `PolicyConfig`; nested ones replace the small ones whole.
        """
        values: dict[str, Any] = {
            "head": head_config(head).preset("small"),
            "sensor": SensorEncoderConfig(
                temporal_length=temporal_length,
                averaged_rows=13,
                hidden_dim=64,
                output_dim=128,
                num_transformer_layers=1,
                num_heads=4,
            ),
            "fusion": FusionConfig(strategy=fusion, vl_pool_width=512, num_heads=4, query_residual=True),
        }
        return cls(vl_dim=vl_dim, vl_slots=vl_slots, **(values | overrides))

    def with_sensor_length(self, temporal_length: int) -> "PolicyConfig":
        """The same network for sensor windows of another length."""
        return replace(self, sensor=replace(self.sensor, temporal_length=temporal_length))

    def fitted(self, data: DataSpec) -> "PolicyConfig":
        """The same network with the sizes of a data set: its actions, and its sensor's channels and window."""
        sensor = self.sensor
        if data.sensor is not None:
            window = data.sensor.window or sensor.temporal_length
            sensor = replace(sensor, channels=data.sensor.channels, temporal_length=window)
        return replace(self, horizon=data.actions.horizon, action_dim=data.actions.size, sensor=sensor)

    def misfits(self, features: FeatureSpec, data: DataSpec) -> list[str]:
        """Returns where the network's sizes are not those of the features and of the data, one sentence each."""
        faults = []
        if (self.vl_slots, self.vl_dim) != (features.num_slots, features.width):
            faults.append(
                f"it is for {self.vl_slots} feature slots of width {self.vl_dim}, the features have "
                f"{features.num_slots} of width {features.width}"
            )
        if (self.horizon, self.action_dim) != (data.actions.horizon, data.actions.size):
            faults.append(
                f"it predicts {self.horizon} actions of {self.action_dim} dimensions, the data have "
                f"{data.actions.horizon} of {data.actions.size}"
            )
        read = [max(part.columns) for part in (self.state, self.state_window) if part is not None]
        if read and max(read) >= len(data.state):
            faults.append(
                f"it reads value {max(read)} of the arm's state, counted from 0, the data have "
                f"{len(data.state)} ({', '.join(data.state) or 'none'})"
            )
        if self.uses_sensor and data.sensor is not None and self.sensor.channels != data.sensor.channels:
            faults.append(
                f"it reads {self.sensor.channels} sensor channels, the data have {data.sensor.channels}"
            )
        return faults


def _upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns what was written before heads had configurations of their own into today's: fields of all heads lay flat,
    those of the network over the actions in `expert`."""
    if "model_type" not in values:
        return dict(values)
    values = dict(values)
    kind, expert, diffusion, z_chunk = (
        values.pop(name, default)
        for name, default in (("model_type", None), ("expert", {}), ("diffusion", {}), ("z_chunk", "zero"))
    )
    given = {**expert, **diffusion, "z_chunk": z_chunk}
    own = head_config(kind).__dataclass_fields__
    values["head"] = {"kind": kind, **{name: value for name, value in given.items() if name in own}}
    return values


config_json.register_upgrade(PolicyConfig, _upgrade)
