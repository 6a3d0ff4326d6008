"""Whether a policy can read a data set and a feature cache; said before anything is computed."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_cache.store import FeatureStore
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.training.checkpoint import LoadedPolicy

logger = logging.getLogger(__name__)

# What changes the meaning of a sample; anything else (path, number of episodes) may differ.
DATA_FIELDS = ("views", "action_hz", "horizon", "sensor_window_size", "sensor_hz")


def open_matching_features(
    loaded: LoadedPolicy, dataset: PackedDataset, cache: Path, *, allow_missing: bool = False
) -> FeatureTable:
    """Opens the features of the cache that the policy was trained on.

    allow_missing: see `FeatureTable.open`.

    Raises:
        UserError: the cache is missing, holds only features of another provenance, or lacks some that the data
            set needs.
    """
    trained = loaded.identity.features
    if not trained:  # an imported policy does not know; its width is still checked
        return FeatureTable.open(dataset, cache, allow_missing=allow_missing)
    kinds = FeatureStore.provenances(cache)
    matching = [name for name, provenance in kinds if not _differences(trained, provenance)]
    if kinds and not matching:
        closest = min((_differences(trained, provenance) for _, provenance in kinds), key=len)
        raise UserError(
            f"{cache} holds no features like those {loaded.path} was trained on: "
            + "; ".join(f"{name} is {ours!r}, the policy's {theirs!r}" for name, ours, theirs in closest)
            + "; export them with the training's backbone and settings, or give the cache it was trained with"
        )
    features = matching[0] if matching else None
    return FeatureTable.open(dataset, cache, features=features, allow_missing=allow_missing)


def check_compatible(loaded: LoadedPolicy, dataset: PackedDataset, features: FeatureTable) -> None:
    """Refuses data that mean something else than what the policy was trained on, naming every difference.

    Raises:
        UserError: feature width or slots, sensor channels, views, rates or window differ.
    """
    policy = loaded.config.policy
    faults = []
    if features.width != policy.vl_dim:
        faults.append(f"the features are {features.width} wide, the policy reads {policy.vl_dim}")
    fixed = loaded.normaliser.feature_offset.shape[0] > 1
    if features.num_slots > policy.vl_slots or (fixed and features.num_slots != policy.vl_slots):
        faults.append(f"the features have {features.num_slots} slots, the policy reads {policy.vl_slots}")
    channels = dataset.sensor.shape[1]
    if policy.uses_sensor and channels != policy.sensor.channels:
        faults.append(f"the sensor has {channels} channels, the policy reads {policy.sensor.channels}")
    trained, described = _plain(loaded.identity.data.get("meta", {})), _plain(dataset.describe()["meta"])
    for name in DATA_FIELDS:
        if name in trained and trained[name] != described[name]:
            faults.append(f"{name} is {described[name]}, the policy's is {trained[name]}")
    if faults:
        raise UserError(f"{loaded.path} does not fit {dataset.path}: " + "; ".join(faults))
    if trained.get("alignment", described["alignment"]) != described["alignment"]:
        logger.warning(
            "trained on data aligned by %s, evaluated on data aligned by %s",
            trained["alignment"],
            described["alignment"],
        )


def _differences(trained: Mapping[str, Any], other: Provenance) -> list[tuple[str, Any, Any]]:
    """Returns (field, the cache's value, the training's value) where the two kinds of features disagree."""
    ours, theirs = _plain(dataclasses.asdict(other)), _plain(trained)
    names = [name for name in ours if name != "backbone_name"]  # a path; the fingerprint decides
    if "grid" not in (ours["pooling"], theirs.get("pooling")):
        names.remove("grid")
    return [(name, ours[name], theirs.get(name)) for name in names if ours[name] != theirs.get(name)]


def _plain(value: Any) -> Any:
    """JSON's view of a value: what went through a checkpoint has lists for tuples."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
