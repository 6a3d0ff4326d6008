"""Taking over the features of a PyTorch reference cache: one `.pt` file with a tensor (1, 1, V) per refresh.

The files say neither what made them nor what they show. What they show is found by their names (see
`vla_jax.reference.cached_records`); what made them is left to the user to name.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_cache.exporter import open_checked
from feature_cache.store import ShardWriter
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch
from vla_jax.progress import progress_bar

UNREADABLE = "unreadable"
WRONG_CONTENT = "without a tensor of shape (1, 1, V) of floating-point numbers"
NOT_FINITE = "with values that are not finite in float16"
OTHER_WIDTH = "of another width than most"


@dataclass(frozen=True)
class ImportedRecord:
    """One file to import: its path, the key of its record and the record's prompt."""

    path: Path
    key: str
    prompt: str


@dataclass(frozen=True)
class ImportSummary:
    """What an import did. num_present: files whose record the cache had already; unusable: reason → names."""

    num_written: int
    num_present: int
    unusable: dict[str, list[str]]


class UnusableFileError(Exception):
    """Why a file holds no features that can be taken over."""


def imported_provenance(backbone_name: str) -> Provenance:
    """Returns the provenance of features from a PyTorch reference cache, which does not say what made them.

    backbone_name: what the user says of it; here it is part of the digest, for it is all there is to tell two such
        caches apart.
    """
    return Provenance(
        backbone=f"unknown weights named {backbone_name}",
        backbone_name=backbone_name,
        adapter=None,
        processor={"imported_from": "PyTorch reference cache"},
        chat_template="unknown",
        pooling="mean",
    )


def reference_files(directory: str | os.PathLike) -> dict[str, Path]:
    """Returns the `.pt` files of a reference cache directory by name, ascending.

    Raises:
        UserError: no such directory, or no such files in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the feature cache of a PyTorch reference run")
    files = {path.name: path for path in sorted(directory.glob("*.pt")) if path.is_file()}
    if not files:
        raise UserError(f"{directory}: holds no .pt files; give the feature cache of a PyTorch reference run")
    return files


def import_features(
    cache_dir: str | os.PathLike, provenance: Provenance, records: list[ImportedRecord]
) -> ImportSummary:
    """Reads the files and writes those records that the cache lacks. Files that cannot be used are left out.

    Everything is read before anything is written, V numbers a file.

    Raises:
        UserError: torch is missing; the cache has other features under the same keys, or of another width.
    """
    import_torch("reading PyTorch files")
    features, unusable = _read_all(records)
    if not features:
        return ImportSummary(0, 0, unusable)
    store = open_checked(cache_dir, provenance)
    found = [record for record in records if record.key in features]
    width = next(iter(features.values())).shape[1]
    if len(store) and store.width != width:
        raise UserError(
            f"{store.directory}: holds features of width {store.width}, the files have {width}; give these "
            "another --backbone name"
        )
    positions = store.positions([record.key for record in found])
    for record, position in zip(found, positions.tolist(), strict=True):
        if position >= 0 and not np.array_equal(store.read_at(np.array([position]))[0], features[record.key]):
            raise UserError(
                f"{record.path}: {cache_dir} holds other features of the same pictures under the name "
                f"{provenance.backbone_name!r}; give these another --backbone name to keep both"
            )
    writer = ShardWriter(cache_dir, provenance)
    for record, position in zip(found, positions.tolist(), strict=True):
        if position < 0:
            writer.add(record.key, features[record.key], prompt=record.prompt)
    writer.flush()
    num_present = int((positions >= 0).sum())
    return ImportSummary(len(found) - num_present, num_present, unusable)


def _read_all(records: list[ImportedRecord]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Returns key → float16 (1, V), all of one width, and reason → names of the files that were left out."""
    features: dict[str, np.ndarray] = {}
    unusable: dict[str, list[str]] = {}
    for record in progress_bar(records, desc="import", unit="file", disable=not records):
        try:
            features[record.key] = read_reference_features(record.path)
        except UnusableFileError as error:
            unusable.setdefault(str(error), []).append(record.path.name)
    widths = Counter(array.shape[1] for array in features.values())
    for record in records:
        if record.key in features and features[record.key].shape[1] != widths.most_common(1)[0][0]:
            del features[record.key]
            unusable.setdefault(OTHER_WIDTH, []).append(record.path.name)
    return features, unusable


def read_reference_features(path: Path) -> np.ndarray:
    """Returns the features of one file, float16 (1, V); nothing in the file is executed.

    Raises:
        UnusableFileError: the file holds something else.
    """
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch, zipfile and pickle raise a dozen kinds of errors for a file that is damaged or hostile.
        raise UnusableFileError(UNREADABLE) from error
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.shape[:2] != (1, 1)
        or tensor.ndim != 3
        or not tensor.shape[2]
        or not tensor.is_floating_point()
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
    ):
        raise UnusableFileError(WRONG_CONTENT)
    features = tensor.detach()[0].to(torch.float16).numpy()
    if not np.isfinite(features).all():
        raise UnusableFileError(NOT_FINITE)
    return features
