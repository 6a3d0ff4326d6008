"""What a checkpoint says of its policy beside the weights, and what earlier formats said of it."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_jax.contracts.provenance import Provenance
from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec, DataSpec, FeatureSpec, SensorSpec
from vla_jax.errors import UserError
from vla_jax.policy.config import PolicyConfig
from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.storage import config_json

FORMAT_VERSION = 3
VERSION_WITHOUT_CHECKSUMS = 1
READABLE_VERSIONS = (1, 2, FORMAT_VERSION)
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "vla-jax")


@dataclass(frozen=True)
class RunIdentity:
    """What a policy was trained on, for people and for telling runs and data sets apart (JSON values).

    features: of the vision-language features, what made them, and its digest. data: path, content, settings and
    sizes of the data set (`PackedDataset.describe`).
    """

    features: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def data_key(self) -> str | None:
        """Tells data sets apart: by their samples, or where an earlier version wrote it by their content."""
        return self.data.get("samples", self.data.get("content"))


def _library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class PolicyMetadata:
    """All that acting needs but the arrays."""

    network: PolicyConfig
    data: DataSpec
    """What the policy's observations and actions mean."""
    features: FeatureSpec
    """The features that it reads."""
    normalisation: NormalisationConfig
    """How the normaliser was made."""
    weights: Literal["params", "ema_params"] = "params"
    """The item with the weights to act with."""
    identity: RunIdentity = field(default_factory=RunIdentity)
    step: int = 0
    """Updates done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""
    versions: dict[str, str] = field(default_factory=_library_versions)
    """Of the libraries that wrote the checkpoint."""

    def to_plain(self) -> dict[str, Any]:
        """Returns it as JSON values, with the format's version."""
        return {"format_version": FORMAT_VERSION, **config_json.to_plain(self)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], *, source: str) -> "PolicyMetadata":
        """Builds it from JSON values of today's format.

        Raises:
            UserError: they do not describe a policy.
        """
        fields = {name: value for name, value in values.items() if name != "format_version"}
        return config_json.from_plain(cls, fields, source=source)


def unknown_data(config: PolicyConfig) -> DataSpec:
    """Returns what is known of the data of a network that tells nothing but its sizes."""
    names, units = LAB_ACTIONS.names, LAB_ACTIONS.units
    if config.action_dim != LAB_ACTIONS.size:
        names = tuple(f"action_{index}" for index in range(config.action_dim))
        units = ("",) * config.action_dim
    return DataSpec(
        actions=ActionSpec(names, units, config.horizon, rate_hz=None),
        views=None,
        sensor=SensorSpec(config.sensor.channels, window=None, hz=None),
        alignment=None,
        refresh_ticks=None,
    )


def upgrade(raw: Mapping[str, Any], *, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns the metadata of formats 1 and 2 into today's two parts: the policy's, and the training's.

    There the training's configuration stood for the policy's, and what the data and the features are was told by
    the identity alone.
    """
    config, identity = raw["config"], RunIdentity(**raw["identity"])
    network = config_json.from_plain(PolicyConfig, config["policy"], source=source)
    normalisation: dict[str, Any] = {
        **config.get("normalisation", {}),
        "sensor": "centred" if raw["centre_ascan"] else "none",
    }
    averaged = config.get("ema_decay", 0.0) > 0
    policy = PolicyMetadata(
        network=network,
        data=_data_of(network, identity.data.get("meta", {})),
        features=_features_of(network, identity.features, source),
        normalisation=NormalisationConfig(**normalisation),
        weights="ema_params" if averaged else "params",
        identity=identity,
        step=raw["step"],
        metrics=raw["metrics"],
        versions=raw["versions"],
    )
    training = {
        "config": config,
        "data_position": raw["data_position"],
        "unlogged": raw.get("unlogged", []),  # Format 1 has none.
    }
    return policy.to_plain(), training


def _data_of(network: PolicyConfig, meta: Mapping[str, Any]) -> DataSpec:
    unknown = unknown_data(network)
    views = meta.get("views")
    return DataSpec(
        actions=ActionSpec(
            unknown.actions.names,
            unknown.actions.units,
            meta.get("horizon", network.horizon),
            meta.get("action_hz"),
        ),
        views=None if views is None else tuple(views),
        sensor=SensorSpec(network.sensor.channels, meta.get("sensor_window_size"), meta.get("sensor_hz")),
        alignment=meta.get("alignment"),
        refresh_ticks=meta.get("vlm_reuse_count"),
    )


def _features_of(network: PolicyConfig, made_by: Mapping[str, Any], source: str) -> FeatureSpec:
    provenance = None
    if made_by:
        try:
            provenance = Provenance(**{name: value for name, value in made_by.items() if name != "digest"})
        except TypeError as error:
            raise UserError(f"{source}: does not say what its features are ({error})") from error
    return FeatureSpec(network.vl_slots, network.vl_dim, provenance)
