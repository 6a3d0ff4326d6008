"""Whether a policy can read a data set and a feature cache; said before anything is computed."""

import logging
from pathlib import Path

from feature_cache.store import FeatureStore
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.policy.insertion_policy import InsertionPolicy

logger = logging.getLogger(__name__)


def open_matching_features(
    policy: InsertionPolicy, dataset: PackedDataset, cache: Path, *, allow_missing: bool = False
) -> FeatureTable:
    """Opens the features of the cache that the policy was trained on.

    allow_missing: see `FeatureTable.open`.

    Raises:
        UserError: the cache is missing, holds only features of another provenance, or lacks some that the data
            set needs.
    """
    trained = policy.features.provenance
    if trained is None:  # an imported policy does not know; its width is still checked
        return FeatureTable.open(dataset, cache, allow_missing=allow_missing)
    found = {name: provenance.differences(trained) for name, provenance in FeatureStore.provenances(cache)}
    matching = [name for name, differences in found.items() if not differences]
    if found and not matching:
        closest = min(found.values(), key=len)
        raise UserError(
            f"{cache} holds no features like those {policy.loaded.path} was trained on: {'; '.join(closest)}; "
            "export them with the training's backbone and settings, or give the cache it was trained with"
        )
    features = matching[0] if matching else None
    return FeatureTable.open(dataset, cache, features=features, allow_missing=allow_missing)


def check_compatible(policy: InsertionPolicy, dataset: PackedDataset, features: FeatureTable) -> None:
    """Refuses data that mean something else than what the policy was trained on, naming every difference.

    Raises:
        UserError: actions, views, sensor or features differ in what they mean.
    """
    data = dataset.spec
    faults = policy.differences(data, features.spec)
    if faults:
        raise UserError(f"{policy.loaded.path} does not fit {dataset.path}: " + "; ".join(faults))
    trained = policy.data.alignment
    if trained not in (None, data.alignment):
        logger.warning(
            "trained on data aligned by %s, evaluated on data aligned by %s", trained, data.alignment
        )
