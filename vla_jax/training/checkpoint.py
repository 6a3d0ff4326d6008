"""Checkpoints that describe themselves: everything to resume, and everything to run the policy, in one directory.

RUN/checkpoints/<step>/ is one Orbax checkpoint with the checksums of all its files, written under a temporary name and
renamed when complete. Items:

    params, ema_params   parameters and their average, one array per name (`sensor_encoder.….kernel`)
    statistics           BatchNorm's running moments
    normaliser           offsets and scales of actions, sensor and features
    optimizer            optimizer state (absent from imported policies)
    metadata             JSON: format version, training configuration, identity of the features and of the data set,
                         step, position in the data, metrics, scalars not yet logged, library versions

Arrays are restored onto today's devices whatever the number they were saved from; whatever is read is compared with its
checksum first.
"""

import contextlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from vla_jax.errors import UserError
from vla_jax.policy.network import PolicyNetwork
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage import config_json
from vla_jax.storage.checksums import CHECKSUMS_FILE, find_changes, write_checksums
from vla_jax.storage.replacing import put_in_place, remove_folder, remove_leftovers
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import parameter_name
from vla_jax.training.processes import is_main_process
from vla_jax.training.state import TrainState

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
VERSION_WITHOUT_CHECKSUMS = 1
CHECKPOINTS = "checkpoints"
VALIDATION = "validation"
BEST_METRIC = f"{VALIDATION}/action_mse"
_STATE_ITEMS = ("params", "ema_params", "statistics", "optimizer")
_METADATA_FILE = "data.json"  # What Orbax's JSON handler calls it.
# Names of folders beside the checkpoints that a process that was killed leaves; all processes of a run write into one.
_UNFINISHED, _ORBAX_UNFINISHED = ".unfinished", ".orbax-checkpoint-tmp"
_NUM_CHANGES_NAMED = 3
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
    """Writes checkpoints of one run in the background; keeps the newest `keep` and the best by validation.

    With several processes each makes one and calls it alike; the first of them finishes and discards checkpoints.
    """

    def __init__(self, run: Path, *, keep: int = 2) -> None:
        self._directory = (run / CHECKPOINTS).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._is_first_process = is_main_process()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if self._is_first_process:
            _remove_remains(self._directory)
        self._scores = _scores(run)

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
        unlogged: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied out, so that training may donate them.

        unlogged: scalars of the updates since the last log line, which a resumed run's next line counts too.

        Raises:
            UserError: this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        items: dict[str, Any] = {name: named_leaves(getattr(state, name)) for name in _STATE_ITEMS}
        items["normaliser"] = _normaliser_arrays(normaliser)
        items["metadata"] = _metadata(step, config, identity, normaliser, data_position, metrics, unlogged)
        unfinished = self._directory / f"{step}{_UNFINISHED}"
        with _writing(unfinished), _context():
            written = ocp.save_checkpointables_async(unfinished, _non_empty(items), overwrite=True)
        self._scores[step] = metrics.get(BEST_METRIC)
        self._pending = self._thread.submit(self._finish, written, unfinished)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _finish(self, written: Any, unfinished: Path) -> None:
        with _writing(unfinished):
            written.result()
            if self._is_first_process:
                _commit(unfinished)
                self._discard_old()

    def _discard_old(self) -> None:
        scored = {step: score for step, score in self._scores.items() if score is not None}
        kept = {*sorted(self._scores)[-self._keep :], *sorted(scored, key=scored.__getitem__)[:1]}
        for step in self._scores.keys() - kept:
            remove_folder(self._directory / str(step))
            del self._scores[step]


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
    unfinished = directory.absolute().with_name(f"0{_UNFINISHED}")
    with _writing(unfinished), _context():
        ocp.save_checkpointables(unfinished, _non_empty(items), overwrite=True)
        _commit(unfinished)
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
    _check_sound(directory, (item, "statistics", "normaliser"))
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
    _check_sound(directory, (*_STATE_ITEMS, "normaliser"))
    items = _restore(directory, {name: getattr(abstract_state, name) for name in _STATE_ITEMS})
    step = jax.device_put(np.int32(metadata["step"]), abstract_state.step.sharding)
    state = TrainState(step=step, **dict(zip(_STATE_ITEMS, items, strict=True)))
    return state, _restore_normaliser(directory, metadata), metadata


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
    has_checksums = (directory / CHECKSUMS_FILE).is_file()
    if has_checksums:
        _check_sound(directory, ("metadata",))
    try:
        metadata = json.loads((directory / "metadata" / _METADATA_FILE).read_text())
        version = metadata["format_version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory} is not a readable vla-jax checkpoint: {error}") from error
    if version not in (FORMAT_VERSION, VERSION_WITHOUT_CHECKSUMS):
        raise UserError(f"{directory} has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    if not has_checksums and version != VERSION_WITHOUT_CHECKSUMS:
        raise _damaged(directory, [f"{CHECKSUMS_FILE} is missing"])
    metadata.setdefault("unlogged", [])  # Checkpoints of the older format have none.
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
        stored = ocp.metadata(directory.absolute(), item).metadata
        return {name: tuple(leaf.shape) for name, leaf in stored.items()}


def _check_sound(directory: Path, items: Collection[str]) -> None:
    """Compares what is to be read of a checkpoint with its checksums.

    Raises:
        UserError: something has changed since it was written.
    """
    if not (directory / CHECKSUMS_FILE).is_file() and _has_no_checksums_yet(directory):
        logger.warning("%s was written before checkpoints had checksums: it is read unchecked", directory)
        return
    changes = find_changes(directory, items)
    if changes:
        raise _damaged(directory, changes)


def _has_no_checksums_yet(directory: Path) -> bool:
    return read_metadata(directory)["format_version"] == VERSION_WITHOUT_CHECKSUMS


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


def _commit(unfinished: Path) -> None:
    """Makes a complete folder the checkpoint that its name says, with the checksums of all its files."""
    write_checksums(unfinished)
    put_in_place(unfinished, unfinished.with_name(unfinished.name.removesuffix(_UNFINISHED)))


def _remove_remains(directory: Path) -> None:
    """Removes what processes that were killed left behind."""
    remove_leftovers(directory)
    for child in directory.iterdir():
        if any(mark in child.name for mark in (_UNFINISHED, _ORBAX_UNFINISHED)):
            shutil.rmtree(child)


def _scores(run: Path) -> dict[int, float | None]:
    """Reads the validation errors of a run's checkpoints; one that cannot be read is left out."""
    scores = {}
    for step in checkpoint_steps(run):
        try:
            metrics = read_metadata(run / CHECKPOINTS / str(step))["metrics"]
        except UserError as error:
            logger.warning("left alone: %s", error)
        else:
            scores[step] = metrics.get(BEST_METRIC)
    return scores


@contextlib.contextmanager
def _writing(unfinished: Path) -> Iterator[None]:
    """Says in one line why a checkpoint cannot be written, and leaves nothing of it."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore says a full disk with a ValueError.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"cannot write {unfinished.with_suffix('')}: {error}") from error


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
    unlogged: Sequence[Mapping[str, float]] = (),
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config": json.loads(config_json.to_json(config)),
        "identity": {"features": identity.features, "data": identity.data},
        "centre_ascan": normaliser.centre_ascan,
        "data_position": dict(data_position),
        "metrics": dict(metrics),
        "unlogged": [dict(scalars) for scalars in unlogged],
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _train_config(metadata: Mapping[str, Any], directory: Path) -> TrainConfig:
    return config_json.from_json(TrainConfig, json.dumps(metadata["config"]), source=str(directory))
