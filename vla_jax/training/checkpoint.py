"""Checkpoints that describe themselves: everything to resume, and everything to run the policy, in one directory.

RUN/checkpoints/<step>/ is one Orbax checkpoint, written under a temporary name and renamed when complete. Items:

    params, ema_params   parameters and their average, one array per name (`sensor_encoder.….kernel`)
    statistics           BatchNorm's running moments
    normaliser           offsets and scales of actions, sensor and features
    optimizer            optimizer state (absent from imported policies)
    metadata             JSON: format version, training configuration, identity of the features and of the data set,
                         step, position in the data, metrics, library versions

Arrays are restored onto today's devices whatever the number they were saved from.
"""

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from flax import nnx
from orbax.checkpoint import v1 as ocp

from vla_jax import config_json
from vla_jax.errors import UserError
from vla_jax.models.policy_network import PolicyNetwork
from vla_jax.normalisation import Normaliser
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import parameter_name
from vla_jax.training.state import TrainState

FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"
VALIDATION = "validation"
BEST_METRIC = f"{VALIDATION}/action_mse"
_STATE_ITEMS = ("params", "ema_params", "statistics", "optimizer")
_METADATA_FILE = "data.json"  # What Orbax's JSON handler calls it.
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "vla-jax")


@dataclass(frozen=True)
class RunIdentity:
    """What a policy was trained on, kept in every checkpoint.

    features: provenance of the vision-language features (backbone, prompt template, pooling, …).
    data: description of the data set (views, rates, window, alignment, path).
    """

    features: dict[str, Any]
    data: dict[str, Any]


@dataclass(frozen=True)
class LoadedPolicy:
    """A restored policy, ready to run: the network holds the averaged weights when there are any."""

    network: PolicyNetwork
    normaliser: Normaliser
    config: TrainConfig
    identity: RunIdentity
    step: int
    path: Path
    metrics: dict[str, float]


class CheckpointWriter:
    """Writes checkpoints of one run in the background; keeps the newest `keep` and the best by validation."""

    def __init__(self, run: Path, *, keep: int = 2) -> None:
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            (run / CHECKPOINTS).absolute(),
            context=_context(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        n=1, get_metric_fn=_best_metric, reverse=True, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        config: TrainConfig,
        normaliser: Normaliser,
        identity: RunIdentity,
        data_position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied out, so that training may donate them."""
        items: dict[str, Any] = {name: named_leaves(getattr(state, name)) for name in _STATE_ITEMS}
        items["normaliser"] = _normaliser_arrays(normaliser)
        items["metadata"] = _metadata(step, config, identity, normaliser, data_position, metrics)
        self._checkpointer.save_checkpointables_async(
            step, _non_empty(items), force=True, metrics=dict(metrics) or None
        )

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()


def save_policy(
    run: Path,
    network: PolicyNetwork,
    *,
    config: TrainConfig,
    normaliser: Normaliser,
    identity: RunIdentity,
) -> Path:
    """Writes a network as RUN's only checkpoint, step 0 without optimizer state, and returns its path.

    Raises:
        UserError: RUN already has a checkpoint.
    """
    directory = run / CHECKPOINTS / "0"
    if checkpoint_steps(run):
        raise UserError(f"{run} already holds a checkpoint; choose another directory")
    _, params, statistics = nnx.split(network, nnx.Param, ...)
    items = {
        "params": named_leaves(params),
        "ema_params": named_leaves(params),
        "statistics": named_leaves(statistics),
        "normaliser": _normaliser_arrays(normaliser),
        "metadata": _metadata(0, config, identity, normaliser, {}, {}),
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _context():
        ocp.save_checkpointables(directory.absolute(), _non_empty(items))
    return directory


def load_policy(path: Path, *, checkpoint: str = "latest") -> LoadedPolicy:
    """Restores the policy of a run directory or of one checkpoint in it.

    checkpoint: "latest" or "best" (by validation), when `path` is a run.

    Raises:
        UserError: there is no checkpoint, or it is damaged or of another format.
    """
    directory = resolve_checkpoint(Path(path), checkpoint)
    metadata = read_metadata(directory)
    config = _train_config(metadata, directory)
    abstract = nnx.eval_shape(lambda: PolicyNetwork(config.policy, rngs=nnx.Rngs(0)))
    structure, abstract_params, abstract_statistics = nnx.split(abstract, nnx.Param, ...)
    item = "ema_params" if config.ema_decay > 0 else "params"
    params, statistics = _restore(directory, {item: abstract_params, "statistics": abstract_statistics})
    return LoadedPolicy(
        network=nnx.merge(structure, params, statistics),
        normaliser=_restore_normaliser(directory, metadata),
        config=config,
        identity=RunIdentity(**metadata["identity"]),
        step=metadata["step"],
        path=directory,
        metrics=metadata["metrics"],
    )


def restore_state(
    directory: Path, abstract_state: TrainState
) -> tuple[TrainState, Normaliser, dict[str, Any]]:
    """Restores a training state with the shardings of `abstract_state`, and what was saved beside it.

    abstract_state: `jax.ShapeDtypeStruct` leaves with today's shardings.

    Raises:
        UserError: the checkpoint does not hold such a state.
    """
    metadata = read_metadata(directory)
    items = _restore(directory, {name: getattr(abstract_state, name) for name in _STATE_ITEMS})
    step = jax.device_put(np.int32(metadata["step"]), abstract_state.step.sharding)
    state = TrainState(step=step, **dict(zip(_STATE_ITEMS, items, strict=True)))
    return state, _restore_normaliser(directory, metadata), metadata


def checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps of RUN's complete checkpoints, ascending.

    Orbax takes any folder with a numeric name for a checkpoint; here one must hold what it says.
    """
    directory = run / CHECKPOINTS
    if not directory.is_dir():
        return []
    return sorted(int(child.name) for child in directory.iterdir() if _is_checkpoint(child))


def resolve_checkpoint(path: Path, checkpoint: str = "latest") -> Path:
    """Returns the checkpoint directory meant by a run, its `checkpoints` folder, or one checkpoint.

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
        scored = {
            step: read_metadata(run / CHECKPOINTS / str(step))["metrics"].get(BEST_METRIC) for step in steps
        }
        scored = {step: score for step, score in scored.items() if score is not None}
        if not scored:
            raise UserError(f"{run} has no validated checkpoint to be the best; use the latest")
        return run / CHECKPOINTS / str(min(scored, key=scored.__getitem__))
    return run / CHECKPOINTS / str(steps[-1])


def read_metadata(directory: Path) -> dict[str, Any]:
    """Reads a checkpoint's JSON item and checks its format version.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    try:
        metadata = json.loads((directory / "metadata" / _METADATA_FILE).read_text())
        version = metadata["format_version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory} is not a readable vla-jax checkpoint: {error}") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{directory} has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    return metadata


def saved_config(directory: Path) -> TrainConfig:
    """Reads the configuration that a checkpoint was trained with."""
    return _train_config(read_metadata(directory), directory)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns a pytree's leaves under dotted names; names are unique and stable."""
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _restore(directory: Path, abstract: Mapping[str, Any]) -> list[Any]:
    """Restores items onto the shapes, dtypes and shardings of `abstract`, listing every disagreement at once."""
    wanted = {item: named_leaves(tree) for item, tree in abstract.items()}
    for item in wanted:
        _check_readable(directory / item)
    faults = []
    for item, leaves in wanted.items():
        stored = _stored_shapes(directory, item)
        faults += [f"{item}/{name} is missing" for name in leaves.keys() - stored.keys()]
        faults += [f"{item}/{name} is unknown" for name in stored.keys() - leaves.keys()]
        faults += [
            f"{item}/{name} has shape {stored[name]}, the configuration says {leaves[name].shape}"
            for name in leaves.keys() & stored.keys()
            if tuple(stored[name]) != tuple(leaves[name].shape)
        ]
    if faults:
        raise UserError(f"{directory} does not fit its configuration: " + "; ".join(sorted(faults)))
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        item: {
            name: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default
            )
            for name, leaf in leaves.items()
        }
        for item, leaves in wanted.items()
        if leaves
    }
    with _reading(directory):
        loaded = ocp.load_checkpointables(directory.absolute(), targets)
    return [
        jax.tree.unflatten(
            jax.tree.structure(tree), [loaded[item][name] for name in wanted[item]] if wanted[item] else []
        )
        for item, tree in abstract.items()
    ]


def _stored_shapes(directory: Path, item: str) -> dict[str, tuple[int, ...]]:
    """Reads the names and shapes of an item's arrays; an item that was never written has none."""
    if not (directory / item).is_dir():
        return {}
    with _reading(directory), _context():
        stored = ocp.checkpointables_metadata(directory.absolute()).metadata[item]
        return {name: tuple(leaf.shape) for name, leaf in stored.items()}


def _check_readable(item: Path) -> None:
    """Reads an item's every entry, one after another.

    Orbax reads in parallel, and each of its readers that meets damage prints a traceback of its own.

    Raises:
        UserError: an entry cannot be read.
    """
    if not item.is_dir():
        return
    try:
        database = {"driver": "ocdbt", "base": item.absolute().as_uri() + "/"}
        entries = tensorstore.KvStore.open(database).result()
        for key in entries.list().result():
            entries.read(key).result()
    except ValueError as error:
        raise UserError(f"{item} is damaged and cannot be restored: {error}") from error


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns whatever Orbax and its storage layers raise for a damaged checkpoint into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{directory} is damaged and cannot be restored: {error}") from error


def _context() -> ocp.Context:
    """Stores the metadata as one readable JSON file; by default Orbax would make arrays of its numbers."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="metadata")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _non_empty(items: dict[str, Any]) -> dict[str, Any]:
    """Leaves out items without arrays (a network without BatchNorm), for which Orbax has nothing to write."""
    return {name: item for name, item in items.items() if item}


def _is_checkpoint(directory: Path) -> bool:
    return directory.name.isdecimal() and (directory / "metadata").is_dir()


def _normaliser_arrays(normaliser: Normaliser) -> dict[str, Any]:
    return {
        entry.name: jnp.asarray(getattr(normaliser, entry.name))
        for entry in fields(Normaliser)
        if not entry.metadata.get("static")
    }


def _restore_normaliser(directory: Path, metadata: Mapping[str, Any]) -> Normaliser:
    shapes = _stored_shapes(directory, "normaliser")
    names = [entry.name for entry in fields(Normaliser) if not entry.metadata.get("static")]
    if sorted(shapes) != sorted(names):
        raise UserError(f"{directory}: the normaliser holds {sorted(shapes)}, expected {sorted(names)}")
    abstract = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    (arrays,) = _restore(directory, {"normaliser": abstract})
    return Normaliser(**arrays, centre_ascan=metadata["centre_ascan"])


def _metadata(
    step: int,
    config: TrainConfig,
    identity: RunIdentity,
    normaliser: Normaliser,
    data_position: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config": json.loads(config_json.to_json(config)),
        "identity": {"features": identity.features, "data": identity.data},
        "centre_ascan": normaliser.centre_ascan,
        "data_position": dict(data_position),
        "metrics": dict(metrics),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _train_config(metadata: Mapping[str, Any], directory: Path) -> TrainConfig:
    return config_json.from_json(TrainConfig, json.dumps(metadata["config"]), source=str(directory))


def _best_metric(metrics: Mapping[str, float]) -> float:
    return metrics[BEST_METRIC]
