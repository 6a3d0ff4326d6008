"""What users of data sets import: packing one, its features and batches, and the reference's samples.

The names live in `vla_jax.dataset` and `vla_jax.reference`; this package is where they have always been found.
"""

from vla_jax.lazy_names import lazy_names

_NAMES = {
    "BatchIterator": "vla_jax.dataset.batches",
    "BatchLoader": "vla_jax.dataset.batches",
    "EpisodeEntry": "vla_jax.dataset.packed_dataset",
    "EpisodeOptions": "vla_jax.dataset.options",
    "FeatureStatistics": "vla_jax.dataset.statistics",
    "FeatureTable": "vla_jax.dataset.feature_table",
    "ImageRef": "vla_jax.dataset.records",
    "PackedDataset": "vla_jax.dataset.packed_dataset",
    "PackedMeta": "vla_jax.dataset.packed_dataset",
    "PrepareOptions": "vla_jax.dataset.options",
    "VLRecord": "vla_jax.dataset.records",
    "make_batch": "vla_jax.dataset.batches",
    "prepare": "vla_jax.dataset.preparation",
    "reference_samples": "vla_jax.reference.samples",
    "sequential_batches": "vla_jax.dataset.batches",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
