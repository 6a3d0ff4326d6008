"""The policy artifact: of a checkpoint, what acting needs, readable without the training's configuration."""

from dataclasses import dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.errors import UserError
from vla_jax.policy.checkpoints import (
    CHECKPOINTS,
    METADATA,
    check_sound,
    checkpoint_steps,
    read_metadata,
    resolve_checkpoint,
)
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.metadata import PolicyMetadata
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage.array_items import begin_writing, restore, stored_shapes


@dataclass(frozen=True)
class PolicyArtifact:
    """A policy, ready to run: the network holds the weights to act with, the averaged ones where there are any."""

    network: PolicyNetwork
    normaliser: Normaliser
    metadata: PolicyMetadata
    path: Path

    @property
    def config(self) -> PolicyConfig:
        """The network's configuration."""
        return self.network.config


def load_policy(path: Path, *, checkpoint: str = "latest") -> PolicyArtifact:
    """Restores the policy of a run directory or of one checkpoint in it.

    checkpoint: "latest" or "best" (by validation), when `path` is a run.

    Raises:
        UserError: there is no checkpoint, or it is damaged or of another format.
    """
    directory = resolve_checkpoint(Path(path), checkpoint)
    metadata = read_metadata(directory)
    structure, abstract_params, abstract_statistics = nnx.split(
        abstract_network(metadata.network), nnx.Param, ...
    )
    item = metadata.weights
    check_sound(directory, (item, "statistics", "normaliser"))
    params, statistics = restore(directory, {item: abstract_params, "statistics": abstract_statistics})
    return PolicyArtifact(
        network=nnx.merge(structure, params, statistics),
        normaliser=restore_normaliser(directory, metadata.normalisation),
        metadata=metadata,
        path=directory,
    )


def save_policy(run: Path, network: PolicyNetwork, normaliser: Normaliser, metadata: PolicyMetadata) -> Path:
    """Writes a policy that was not trained here as RUN's only checkpoint, and returns its path.

    metadata: of this network; its `weights` must be "params".

    Raises:
        UserError: RUN already has a checkpoint.
    """
    if checkpoint_steps(run):
        raise UserError(f"{run} already holds a checkpoint; choose another directory")
    directory = run / CHECKPOINTS / str(metadata.step)
    _, params, statistics = nnx.split(network, nnx.Param, ...)
    arrays = {"params": params, "statistics": statistics, "normaliser": jax.tree.map(jnp.asarray, normaliser)}
    directory.parent.mkdir(parents=True, exist_ok=True)
    begin_writing(directory, arrays, {METADATA: metadata.to_plain()}).finish()
    return directory


def restore_normaliser(directory: Path, config: NormalisationConfig) -> Normaliser:
    """Restores a checkpoint's normaliser. config: how it was made.

    Raises:
        UserError: the checkpoint does not hold one.
    """
    shapes = stored_shapes(directory, "normaliser")
    names = [entry.name for entry in fields(Normaliser) if not entry.metadata.get("static")]
    for group in ("state_", "motion_"):
        if not any(name.startswith(group) for name in shapes):
            # Of a policy that does not read the arm's state, or its last states.
            names = [name for name in names if not name.startswith(group)]
    if sorted(shapes) != sorted(names):
        raise UserError(f"{directory}: the normaliser holds {sorted(shapes)}, expected {sorted(names)}")
    abstract = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    (arrays,) = restore(directory, {"normaliser": abstract})
    return Normaliser(**arrays, centre_ascan=config.sensor == "centred")
