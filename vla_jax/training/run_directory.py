"""The directory of one training run: its lock, its readable configuration, and the batch that broke it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np

from vla_jax.contracts.observation import Batch
from vla_jax.storage import config_json, locks
from vla_jax.storage.array_items import named_leaves
from vla_jax.storage.replacing import replace_file, replace_text
from vla_jax.training.config import TrainConfig

CONFIG_FILE = "config.json"


def locked(run: Path) -> AbstractContextManager[None]:
    """Makes RUN and holds it, so that two processes never write one run.

    Raises:
        UserError: another process holds it, or RUN cannot be made.
    """
    return locks.locked(run, busy=f"another process is training into {run}; choose another --out")


def write_config(config: TrainConfig, run: Path) -> None:
    """Writes RUN/config.json, for people; checkpoints carry their own copy."""
    replace_text(run / CONFIG_FILE, config_json.to_json(config) + "\n")


def save_bad_batch(run: Path, step: int, batch: Batch, history: Mapping[int, float]) -> Path:
    """Writes the batch of an update whose loss was not finite to RUN/non_finite, and returns the file.

    An .npz with the batch in recorded units, its arrays under their own names (`vl`, `actions`, …; `tick` says where
    each sample is in the data set), and `history_step`, `history_loss`: the losses since the last log line. Each
    process writes its own share.
    """
    share = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    file = run / "non_finite" / f"step_{step}{share}.npz"
    file.parent.mkdir(exist_ok=True)
    # What numpy cannot name in a file (bfloat16 features) is widened.
    arrays = {
        name.rpartition(".")[2]: value if value.dtype.isbuiltin else value.astype(np.float32)
        for name, value in named_leaves(batch).items()
    }
    arrays |= {"history_step": np.array(list(history)), "history_loss": np.array(list(history.values()))}
    replace_file(file, lambda handle: np.savez(handle, **arrays))
    return file
