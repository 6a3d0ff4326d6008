"""Recorded episodes in, batches out: readers, the packed data set, its features, and the batch loader."""

from vla_jax.data.batches import BatchIterator, BatchLoader, make_batch, sequential_batches
from vla_jax.data.features import FeatureTable
from vla_jax.data.packed import EpisodeEntry, ImageRef, PackedDataset, PackedMeta, VLRecord
from vla_jax.data.reference import reference_samples
from vla_jax.data.statistics import FeatureStatistics

__all__ = [
    "BatchIterator",
    "BatchLoader",
    "EpisodeEntry",
    "FeatureStatistics",
    "FeatureTable",
    "ImageRef",
    "PackedDataset",
    "PackedMeta",
    "VLRecord",
    "make_batch",
    "reference_samples",
    "sequential_batches",
]
