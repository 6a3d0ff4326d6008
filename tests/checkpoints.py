"""Looking into the checkpoints and logs that a run wrote."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from vla_jax.policy.checkpoints import CHECKPOINTS


def checkpoint_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Returns everything a checkpoint holds, as numpy arrays by name."""
    with warnings.catch_warnings():
        # Restored as saved, on the same device: no sharding needs to be given.
        warnings.filterwarnings("ignore", "Sharding info not provided")
        loaded = ocp.load_checkpointables((run / CHECKPOINTS / str(step)).absolute())
    return {
        f"{item}/{name}": np.asarray(value)
        for item in ("params", "ema_params", "statistics", "optimizer", "normaliser")
        for name, value in loaded[item].items()
    }


def logged_lines(run: Path) -> list[dict[str, Any]]:
    """Returns what a run has logged, apart from times; without a line that a killed process did not finish."""
    finished = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
        for line in finished
    ]
