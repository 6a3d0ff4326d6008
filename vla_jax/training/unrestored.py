"""What the recipe `reference` cannot restore: it was decided when the data were packed and their features exported."""

import jax

from vla_jax.contracts.specs import FeatureSpec
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.policy.config import PolicyConfig


def unrestored(policy: PolicyConfig, features: FeatureSpec, dataset: PackedDataset) -> str | None:
    """Returns one line that names what differs from the reference, and how to have it; None where nothing does."""
    found = []
    if features.provenance is not None and features.provenance.pooling != "mean":
        found.append("features that are the mean over all tokens (export --pooling mean)")
    if dataset.spec.alignment != "index":
        found.append("pairing by index (prepare --alignment index)")
    if not _mixed_as_reference(dataset):
        found.append("windows drawn three times as often as legacy (prepare --weight windows=3)")
    groups = policy.sensor.statistics_groups
    if policy.uses_sensor and jax.device_count() > 1 and groups != jax.device_count():
        found.append("BatchNorm's statistics for each GPU (sensor.statistics_groups in a --config)")
    return f"not as in the reference: {'; '.join(found)}" if found else None


def _mixed_as_reference(dataset: PackedDataset) -> bool:
    """Whether samples of windows weigh three times those of legacy; twice as many are a source of priority's."""
    train = [entry for entry in dataset.episodes if entry.split == "train"]
    legacy = {entry.weight for entry in train if entry.format == "legacy"}
    windows = {entry.weight for entry in train if entry.format == "windows"}
    if not (legacy and windows):
        return True
    least = min(legacy)
    return windows == {3 * least} and legacy <= {least, 2 * least}
