"""Where a run's checkpoints lie, which of them is meant, and whether it is as it was written.

RUN/checkpoints/<step>/ holds these items, with the checksums of all their files (`vla_jax.storage.array_items`):

    params, ema_params   parameters and their average, one array per name (`sensor_encoder.….kernel`)
    statistics           BatchNorm's running moments
    normaliser           offsets and scales of actions, sensor and features
    metadata             JSON: format version, and what acting needs beside the arrays (`PolicyMetadata`)
    optimizer, training  optimizer state, and JSON of what resuming needs (`vla_jax.training.checkpoint`); absent from
                         imported policies, as is the average

`vla_jax.policy.artifact` reads of it what acting needs.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vla_jax.contracts.metric_names import best_score
from vla_jax.errors import UserError
from vla_jax.policy.metadata import (
    FORMAT_VERSION,
    READABLE_VERSIONS,
    VERSION_WITHOUT_CHECKSUMS,
    PolicyMetadata,
    upgrade,
)
from vla_jax.storage.array_items import read_json
from vla_jax.storage.checksums import CHECKSUMS_FILE, find_changes

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
METADATA, TRAINING = "metadata", "training"
_NUM_CHANGES_NAMED = 3


def checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps of RUN's complete checkpoints, ascending.

    A folder with a numeric name is one only when it holds what a checkpoint says of itself.
    """
    directory = run / CHECKPOINTS
    if not directory.is_dir():
        return []
    return sorted(int(child.name) for child in directory.iterdir() if _is_checkpoint(child))


def resolve_checkpoint(path: Path, checkpoint: str = "latest") -> Path:
    """Returns the checkpoint directory meant by a run, its `checkpoints` folder, or one checkpoint.

    checkpoint: "latest" or "best" (by roll-outs, where it was judged so, else by validation), when `path` is no
        single one.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"no such directory: {path}; give a training output directory or a checkpoint in it")
    if _is_checkpoint(path):
        return path
    run = path.parent if path.name == CHECKPOINTS else path
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(
            f"{path} holds no checkpoint; train one with: python -m experiments.train … --out {path}"
        )
    if checkpoint == "best":
        found = {step: read_metadata(run / CHECKPOINTS / str(step)) for step in steps}
        newest = found[steps[-1]].identity.data_key
        # Errors on other data than the newest checkpoint's are not to be compared with its.
        scored = {
            step: score
            for step, metadata in found.items()
            if (score := best_score(metadata.metrics)) and metadata.identity.data_key == newest
        }
        if not scored:
            raise UserError(f"{run} has no validated checkpoint to be the best; use the latest")
        return run / CHECKPOINTS / str(min(scored, key=scored.__getitem__))
    return run / CHECKPOINTS / str(steps[-1])


def read_metadata(directory: Path) -> PolicyMetadata:
    """Reads what a checkpoint says of its policy.

    Raises:
        UserError: it is missing, damaged or of an unknown format.
    """
    return PolicyMetadata.from_plain(_read_parts(directory)[0], source=str(directory))


def read_training(directory: Path) -> dict[str, Any] | None:
    """Reads what a checkpoint says of its training (JSON values); None where there was none.

    Raises:
        UserError: as `read_metadata`.
    """
    _, training = _read_parts(directory)
    if training is not None or not (directory / TRAINING).is_dir():
        return training
    check_sound(directory, (TRAINING,))
    return _read_json(directory, TRAINING)


def check_sound(directory: Path, items: Collection[str]) -> None:
    """Compares items that are to be read with their checksums. Read the metadata first: it tells those checkpoints
    that were written before there were checksums from those that have lost them.

    Raises:
        UserError: something has changed since it was written.
    """
    if not (directory / CHECKSUMS_FILE).is_file():
        logger.warning("%s was written before checkpoints had checksums: it is read unchecked", directory)
        return
    changes = find_changes(directory, items)
    if changes:
        raise _damaged(directory, changes)


def _read_parts(directory: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Reads the metadata item as today's policy part, and the training part of formats that had it in the same item."""
    has_checksums = (directory / CHECKSUMS_FILE).is_file()
    if has_checksums:
        check_sound(directory, (METADATA,))
    raw = _read_json(directory, METADATA)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in READABLE_VERSIONS:
        raise UserError(f"{directory} has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    if not has_checksums and version != VERSION_WITHOUT_CHECKSUMS:
        raise _damaged(directory, [f"{CHECKSUMS_FILE} is missing"])
    if version == FORMAT_VERSION:
        return raw, None
    try:
        return upgrade(raw, source=str(directory))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory} is not a readable vla-jax checkpoint: {error!r}") from error


def _read_json(directory: Path, item: str) -> Any:
    try:
        return read_json(directory, item)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is not a readable vla-jax checkpoint: {error}") from error


def _damaged(directory: Path, changes: list[str]) -> UserError:
    """Says what has changed in a checkpoint, and which other one of its run can be used."""
    named = "; ".join(changes[:_NUM_CHANGES_NAMED])
    if len(changes) > _NUM_CHANGES_NAMED:
        named += f"; and {len(changes) - _NUM_CHANGES_NAMED} more"
    others = reversed(checkpoint_steps(directory.parent.parent))
    siblings = (directory.with_name(str(step)) for step in others if str(step) != directory.name)
    sound = next((other for other in siblings if not find_changes(other)), None)
    if sound is None:
        advice = "its run holds no other sound checkpoint"
    else:
        advice = (
            f"checkpoint {sound} is sound: name that one, or, to resume from it, move {directory.name} out of "
            f"{directory.parent} and run the same command again"
        )
    return UserError(f"{directory} is damaged ({named}); {advice}")


def _is_checkpoint(directory: Path) -> bool:
    return directory.name.isdecimal() and (directory / METADATA).is_dir()
