"""The directory of one training run: its lock and its readable configuration."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from vla_jax import config_json
from vla_jax.errors import UserError
from vla_jax.training.config import TrainConfig


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Makes RUN and holds its lock, so that two processes never write one run.

    Raises:
        UserError: another process holds it, or RUN cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = (run / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training into {run}; choose another --out") from error
        yield


def write_config(config: TrainConfig, run: Path) -> None:
    """Writes RUN/config.json, for people; checkpoints carry their own copy."""
    temporary = run / "config.json.tmp"
    temporary.write_text(config_json.to_json(config) + "\n")
    temporary.replace(run / "config.json")
