"""A directory of named items, trees of arrays and JSON, that is complete or absent; with checksums of all its files.

Arrays are stored by Orbax, one for each leaf under its dotted name, and restored onto today's devices whatever the
number they were saved from.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from vla_jax.errors import UserError
from vla_jax.storage.checksums import write_checksums
from vla_jax.storage.replacing import put_in_place, remove_leftovers, why_not_written

_JSON_FILE = "data.json"  # What Orbax's JSON handler calls it.
# Names of folders that a killed process leaves beside the finished ones; all processes of a run write into one.
# How tensorstore tells of a full disk or of a quota that is used up.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "RESOURCE_EXHAUSTED")
_UNFINISHED, _ORBAX_UNFINISHED = ".unfinished", ".orbax-checkpoint-tmp"


class PendingItems:
    """Items that are being written in the background; `finish` makes them appear."""

    def __init__(self, directory: Path, written: Any) -> None:
        self._directory = directory
        self._written = written

    def finish(self, *, commit: bool = True) -> None:
        """Waits until everything is on disk and gives it its name. commit: False where another process does that.

        Raises:
            UserError: it could not be written; nothing is left of it.
        """
        with _writing(self._directory):
            self._written.result()
            if commit:
                unfinished = _unfinished(self._directory)
                write_checksums(unfinished)
                put_in_place(unfinished, self._directory)


def begin_writing(
    directory: Path, arrays: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]
) -> PendingItems:
    """Starts to write items; returns when the arrays are copied out, so that they may be donated.

    arrays: trees of arrays by item; a tree without any (a network without BatchNorm) is left out. values: JSON values
    by item. The directory's parent must exist.

    Raises:
        UserError: it cannot be written.
    """
    directory = directory.absolute()
    named = {item: named_leaves(tree) for item, tree in arrays.items()}
    items = {item: leaves for item, leaves in named.items() if leaves}
    with _writing(directory), _context(*values):
        written = ocp.save_checkpointables_async(
            str(_unfinished(directory)), {**items, **values}, overwrite=True
        )
    return PendingItems(directory, written)


def remove_remains(parent: Path) -> None:
    """Removes what processes that were killed left behind in a folder."""
    remove_leftovers(parent)
    for child in parent.iterdir():
        if any(mark in child.name for mark in (_UNFINISHED, _ORBAX_UNFINISHED)):
            shutil.rmtree(child)


def read_json(directory: Path, item: str) -> Any:
    """Reads a JSON item.

    Raises:
        OSError, ValueError: it is missing, or no JSON.
    """
    return json.loads((directory / item / _JSON_FILE).read_text())


def stored_shapes(directory: Path, item: str) -> dict[str, tuple[int, ...]]:
    """Reads the names and shapes of an item's arrays; an item that was never written has none."""
    if not (directory / item).is_dir():
        return {}
    values = [child.name for child in directory.iterdir() if (child / _JSON_FILE).is_file()]
    with _reading(directory), _context(*values):
        stored: Any = ocp.metadata(str(directory.absolute()), item).metadata
        return {name: tuple(leaf.shape) for name, leaf in stored.items()}


def restore(directory: Path, abstract: Mapping[str, Any]) -> list[Any]:
    """Restores items onto the shapes, dtypes and shardings of `abstract`, on one device where it names none.

    Raises:
        UserError: they do not fit, with every disagreement, or are damaged.
    """
    wanted = {item: named_leaves(tree) for item, tree in abstract.items()}
    faults = []
    for item, leaves in wanted.items():
        stored = stored_shapes(directory, item)
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
        loaded = ocp.load_checkpointables(str(directory.absolute()), targets)
    return [
        jax.tree.unflatten(
            jax.tree.structure(tree), [loaded[item][name] for name in wanted[item]] if wanted[item] else []
        )
        for item, tree in abstract.items()
    ]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns a pytree's leaves under dotted names; names are unique and stable."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns a tree path as dotted names, for instance `expert.layers.0.linear1.kernel`."""
    names = jax.tree_util.keystr(path, simple=True, separator=".")
    return names.removesuffix(".value")


def _unfinished(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}{_UNFINISHED}")


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Says in one line why items cannot be written, and leaves nothing of them."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore says a full disk with a ValueError.
        unfinished = _unfinished(directory)
        for remains in (unfinished, unfinished.with_name(unfinished.name + _ORBAX_UNFINISHED)):
            shutil.rmtree(remains, ignore_errors=True)
        if any(sign in str(error) for sign in _FULL):
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = why_not_written(error) if isinstance(error, OSError) else None
        raise UserError(f"cannot write {directory}: {reason or error}") from error


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns whatever Orbax and its storage layers raise for damaged items into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{directory} is damaged and cannot be restored: {error}") from error


def _context(*values: str) -> ocp.Context:
    """Stores each JSON item as one readable file; by default Orbax would make arrays of its numbers."""
    registry = ocp.handlers.local_registry()
    for item in values:
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=item)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context
