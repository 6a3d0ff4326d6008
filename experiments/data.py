"""Opening the packed data set that a command is given."""

import sys
from pathlib import Path

from vla_jax.dataset.packed_dataset import PackedDataset


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
