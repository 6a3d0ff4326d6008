"""Opening the packed data set that a command is given."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import INDEX_FILE, PackedDataset
from vla_jax.dataset.preparation import prepare


def open_dataset(path: Path) -> PackedDataset:
    """Opens a data set and says on stderr when recorded files have changed since they were packed.

    Recordings that are gone are no reason to warn: a packed data set is used on other machines without them.

    Raises:
        UserError: it is missing, empty, damaged or of another version.
    """
    dataset = PackedDataset.open(path)
    changed = [line for line in dataset.check_sources() if line.endswith("has changed")]
    if changed:
        print(
            f"warning: {len(changed)} of {len(dataset.episodes)} episodes have changed since {path} was packed, "
            f"run prepare again to see them; first: {changed[0]}",
            file=sys.stderr,
        )
    return dataset


@contextlib.contextmanager
def open_or_prepare(path: Path, *, sensor: bool, num_workers: int) -> Iterator[PackedDataset]:
    """Opens a data set; prepares a folder of episodes, with or without their sensor, for as long as it is in use.

    Raises:
        UserError: nothing usable is there.
    """
    if not path.is_dir() or (path / INDEX_FILE).is_file():
        yield open_dataset(path)
        return
    with tempfile.TemporaryDirectory(prefix="vla-jax-prepared-") as folder:
        options = PrepareOptions(episode=EpisodeOptions(sensor=sensor), num_workers=num_workers)
        result = prepare([str(path)], Path(folder) / "data", options)
        faults = [finding for finding in result.findings if finding.is_fault]
        first = f", the first: {faults[0].episode}: {faults[0].reason}" if faults else ""
        print(
            f"{path}: recorded episodes, read with the defaults of `prepare`: {len(result.dataset.episodes)} used, "
            f"{len(result.faulty)} faulty and left out{first}",
            file=sys.stderr,
        )
        yield result.dataset


def num_processors() -> int:
    """Returns how many processes to start by default: one per usable processor, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, usable)
