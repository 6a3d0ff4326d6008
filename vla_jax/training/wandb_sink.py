"""A run's numbers in Weights & Biases, when asked for; without network too (`WANDB_MODE=offline`)."""

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_jax.errors import UserError
from vla_jax.storage import config_json
from vla_jax.storage.replacing import replace_text
from vla_jax.training.config import TrainConfig

RUN_ID_FILE = "wandb_run_id"
PROJECT = "vla-jax"


def require_wandb() -> None:
    """Refuses when the package is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs the wandb package: pip install 'vla-jax[wandb]'")


class WandbSink:
    """Sends metrics to one Weights & Biases run, whose id RUN keeps, so that a resumed training goes on with it.

    Project, entity, mode and the like come from wandb's own environment variables.

    Raises:
        UserError: wandb is not installed, or refuses to begin (not logged in, no network).
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        require_wandb()
        import wandb

        self._run = self._begin(wandb, run, config)
        # A run resumed from a checkpoint logs some steps again, which wandb's own counter would refuse.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def close(self, *, failed: bool = False) -> None:
        """Sends what is left, and marks the run as failed or finished."""
        self._run.finish(exit_code=int(failed))

    def _begin(self, wandb: Any, run: Path, config: TrainConfig) -> Any:
        id_file = run / RUN_ID_FILE
        is_known = id_file.is_file()
        run_id = id_file.read_text().strip() if is_known else secrets.token_hex(8)
        try:
            started = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", run.resolve().name),
                id=run_id,
                resume="allow",
                dir=str(run),
                config=json.loads(config_json.to_json(config)),
                settings=wandb.Settings(silent=True),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"wandb cannot begin: {error}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        if not is_known:
            replace_text(id_file, run_id + "\n")
        return started
