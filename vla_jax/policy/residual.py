"""A trained residual beside its policy: RUN/residual, and what it makes of the actions that chunks have for a tick.

RUN/residual holds two items, with the checksums of their files (`vla_jax.storage.array_items`): `params`, the
parameters, and `metadata`, JSON of `ResidualMetadata`. It belongs to one checkpoint of RUN, and is refused beside any
other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.errors import UserError
from vla_jax.models.residual import ResidualConfig, ResidualNetwork
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage import config_json
from vla_jax.storage.array_items import begin_writing, read_json, restore
from vla_jax.storage.checksums import CHECKSUMS_FILE, file_digest, find_changes
from vla_jax.storage.replacing import replace_folder, temporary_folder, writing_to

RESIDUAL = "residual"
FORMAT_VERSION = 1
_PARAMS, _METADATA = "params", "metadata"


@dataclass(frozen=True)
class CheckpointIdentity:
    """A checkpoint, by what it holds: a run that is copied keeps it."""

    step: int
    digest: str | None
    """SHA-256 of its list of checksums; None of one that was written before there were any."""

    @classmethod
    def of(cls, loaded: PolicyArtifact) -> "CheckpointIdentity":
        """Returns the identity of the checkpoint that a policy was restored from."""
        sums = loaded.path / CHECKSUMS_FILE
        return cls(loaded.metadata.step, file_digest(sums) if sums.is_file() else None)


@dataclass(frozen=True)
class ErrorByChunkAge:
    """Mean square of the action error over all dimensions, in the actions' units, of held-out samples with a sensor."""

    chunk_age: int
    """Ticks since the chunk was predicted."""
    samples: int
    policy: float
    """Of the chunk's action as it is."""
    corrected: float


@dataclass(frozen=True)
class ResidualMetadata:
    """What a residual says of itself."""

    network: ResidualConfig
    checkpoint: CheckpointIdentity
    """What it corrects."""
    training: dict[str, Any]
    """How it was trained, and on which data (JSON values)."""
    held_out: tuple[ErrorByChunkAge, ...] = ()


class Residual:
    """Corrects actions; compiled once for each batch size it meets."""

    def __init__(self, network: ResidualNetwork, normaliser: Normaliser) -> None:
        """normaliser: the policy's."""
        self.config = network.config
        structure, params = nnx.split(network)
        self._leaves, tree = jax.tree.flatten((params, normaliser))

        def correct(leaves: list[jax.Array], *inputs: jax.Array) -> jax.Array:
            params, normaliser = jax.tree.unflatten(tree, leaves)
            return correction_of(nnx.merge(structure, params), normaliser, *inputs)

        self._compiled = jax.jit(correct)

    def correct(
        self,
        actions: Float[np.ndarray, "b a"],
        chunk_ages: Float[np.ndarray, " b"],
        sensor: Float[np.ndarray, "b t c"] | None,
        has_sensor: Bool[np.ndarray, " b"],
    ) -> Float[np.ndarray, "b a"]:
        """Returns what is to be executed in place of the actions that chunks have for a tick, in recorded units.

        Rows without a sensor, or without a chunk, come back as they are, bit for bit. A window that is not finite gives
        an action that is not.

        chunk_ages: `ChunkQueue.chunk_age`; NaN where no chunk gives the action, which then holds the arm. sensor: the
        newest window of the tick, as recorded; rows without one may hold anything, and None means that no row has one.
        """
        is_corrected = np.asarray(has_sensor, bool) & ~np.isnan(chunk_ages)
        if sensor is None or not is_corrected.any():
            return actions
        corrections = self._compiled(
            self._leaves,
            np.asarray(actions, np.float32),
            np.nan_to_num(chunk_ages).astype(np.float32),
            np.asarray(sensor, np.float32),
            is_corrected,
        )
        corrections = np.asarray(corrections)
        # What is zero is not added: −0 would become 0.
        return np.where(is_corrected[:, None] & (corrections != 0), actions + corrections, actions)

    def warm_up(self, batch_size: int = 1) -> None:
        """Compiles for a batch size, for windows of the length that it was trained with."""
        config, present = self.config, np.ones(batch_size, bool)
        sensor = np.zeros((batch_size, config.temporal_length, config.channels), np.float32)
        actions = np.zeros((batch_size, config.action_dim), np.float32)
        self.correct(actions, np.zeros(batch_size), sensor, present)


def correction_of(
    network: ResidualNetwork,
    normaliser: Normaliser,
    actions: Float[Array, "b a"],
    chunk_ages: Float[Array, " b"],
    sensor: Float[Array, "b t c"],
    has_sensor: Bool[Array, " b"],
) -> Float[Array, "b a"]:
    """Returns what is added to actions, all in recorded units; traceable. A constant dimension stays as it is."""
    normalised = normaliser.normalise_actions(actions[:, None])[:, 0]
    correction = network(normaliser.normalise_sensor(sensor), has_sensor, normalised, chunk_ages)
    return correction * normaliser.action_scale[None]


def residual_folder(checkpoint: Path) -> Path:
    """Returns where the residual of a checkpoint lies: in its run."""
    return checkpoint.absolute().parent.parent / RESIDUAL


def save_residual(checkpoint: Path, network: ResidualNetwork, metadata: ResidualMetadata) -> Path:
    """Writes the residual of a checkpoint, in place of another one that its run has, and returns where it is.

    Raises:
        UserError: it cannot be written.
    """
    place = residual_folder(checkpoint)
    values = {_METADATA: {"format_version": FORMAT_VERSION, **config_json.to_plain(metadata)}}
    with writing_to(place), temporary_folder(place) as folder:
        made = folder / RESIDUAL
        begin_writing(made, {_PARAMS: nnx.state(network, nnx.Param)}, values).finish()
        replace_folder(made, place)
    return place


def load_residual(loaded: PolicyArtifact) -> Residual:
    """Restores the residual of a policy's run.

    Raises:
        UserError: there is none, it is damaged or of another format, or it belongs to another checkpoint.
    """
    place = residual_folder(loaded.path)
    again = f"python -m experiments.train_residual {loaded.path} DATA --cache CACHE"
    if not place.is_dir():
        raise UserError(f"{place.parent} has no residual; train one with: {again}")
    metadata = read_residual_metadata(place)
    if metadata.checkpoint != CheckpointIdentity.of(loaded):
        raise UserError(
            f"{place} corrects another checkpoint (step {metadata.checkpoint.step}) than {loaded.path}; name that one, "
            f"or train a residual for this one with: {again}"
        )
    structure, abstract = nnx.split(
        nnx.eval_shape(lambda: ResidualNetwork(metadata.network, rngs=nnx.Rngs(0)))
    )
    (params,) = restore(place, {_PARAMS: abstract})
    return Residual(nnx.merge(structure, params), loaded.normaliser)


def read_residual_metadata(place: Path) -> ResidualMetadata:
    """Reads what a residual says of itself, once all its bytes are as they were written.

    Raises:
        UserError: it is damaged, or of another format.
    """
    if changes := find_changes(place):
        raise UserError(f"{place} is damaged ({changes[0]}); train it again with train_residual")
    try:
        values: Mapping[str, Any] = dict(read_json(place, _METADATA))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{place} is no residual: {error}") from error
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{place} has format {values.get('format_version')}; this version reads {FORMAT_VERSION}"
        )
    fields = {name: value for name, value in values.items() if name != "format_version"}
    return config_json.from_plain(ResidualMetadata, fields, source=str(place))
