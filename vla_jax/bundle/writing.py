"""Exports a policy as a folder: programs for one row and for any number, weights, specs, checksums, the reader.

The weights are arguments of the programs, under their names in a safetensors file, and the normalisation is inside.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32
from safetensors.numpy import save

from vla_jax.bundle import run
from vla_jax.contracts.observation import Observation
from vla_jax.errors import UserError
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.storage import config_json
from vla_jax.storage.array_items import named_leaves
from vla_jax.storage.checksums import write_checksums
from vla_jax.storage.replacing import put_in_place, temporary_folder, writing_to

PLATFORMS = ("cpu", "cuda")
MEANINGS = {
    "vl": "features in the training data's slots, as cached",
    "vl_mask": "which slots are there",
    "sensor": "newest window as recorded, oldest row first: force, then the A-scan",
    "has_sensor": "which rows have a sensor",
    "state": "the arm's newest pose, as recorded",
    "state_window": "the arm's last poses, oldest first; what is left out is missing",
    "state_window_mask": "which of them are there",
    "feature_age": "seconds from the oldest picture behind the features to now",
    "previous_chunk": "actions of the past, in the actions' units",
    "prefix": "actions from this tick on that are planned already, in the actions' units",
    "prefix_length": "how many of them are promised",
    "plan_length": "how many of them are planned, promised ones and others",
}
"""Of each field of an observation, for people."""
REQUIRED = ("vl", "vl_mask", "state", "feature_age", "previous_chunk")
"""Those of them that a policy which reads them must be given."""


def write_bundle(policy: InsertionPolicy, out: Path) -> None:
    """Writes the folder `out`, complete or not at all.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    check_free(out)
    programs = export_programs(policy)
    weights = {name: np.asarray(value) for name, value in named_leaves(policy.weights).items()}
    with writing_to(out), temporary_folder(out) as folder:
        (folder / "programs").mkdir()
        for size, program in programs.items():
            (folder / run.PROGRAMS[size]).write_bytes(program)
        (folder / run.WEIGHTS).write_bytes(save(weights))
        (folder / run.SPECS).write_text(json.dumps(describe(policy), indent=2) + "\n", encoding="utf-8")
        (folder / "run.py").write_bytes(Path(run.__file__).read_bytes())
        write_checksums(folder)
        put_in_place(folder, out)


def check_free(out: Path) -> None:
    """Raises UserError where something is there already; better said before anything is loaded."""
    if out.exists():
        raise UserError(f"{out}: exists; choose a new folder for the bundle")


def export_programs(policy: InsertionPolicy) -> dict[str, bytes]:
    """Returns the serialized programs, by their batch size: "1", and "b" for any.

    Each takes the weights by their names, and the inputs: those of `describe`, `key` and `fold` (`_row_keys`).
    """
    structure, names = jax.tree.structure(policy.weights), list(named_leaves(policy.weights))

    def predict(weights: dict[str, Array], inputs: dict[str, Array]) -> Array:
        read = {name: value for name, value in inputs.items() if name not in ("key", "fold")}
        keys = _row_keys(inputs["key"], inputs["fold"])
        return policy.act(
            jax.tree.unflatten(structure, [weights[name] for name in names]), Observation(**read), keys
        )

    weights = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in named_leaves(policy.weights).items()
    }
    row = {name: value[0] for name, value in _example(policy).items()}
    row |= {"key": np.zeros(2, np.uint32), "fold": np.int32(0)}
    export = jax.export.export(jax.jit(predict), platforms=PLATFORMS)
    exported = {}
    for size, batch in {"1": 1, "b": jax.export.symbolic_shape("b")[0]}.items():
        inputs = {
            name: jax.ShapeDtypeStruct((batch, *value.shape), value.dtype) for name, value in row.items()
        }
        exported[size] = bytes(export(weights, inputs).serialize())
    return exported


def _row_keys(data: UInt32[Array, "b 2"], fold: Int[Array, " b"]) -> Key[Array, " b"]:
    """Returns the key of each row: what is to be folded into it is, where that is no −1."""
    keys = jax.random.wrap_key_data(data, impl="threefry2x32")
    return jnp.where(fold < 0, keys, jax.vmap(jax.random.fold_in)(keys, fold.astype(jnp.uint32)))


def describe(policy: InsertionPolicy) -> dict[str, Any]:
    """Returns the specs: JSON values that say what goes in and what comes out, and what the policy is."""
    data, metadata = policy.data, policy.loaded.metadata
    inputs = {
        name: {
            "shape": ["b", *value.shape[1:]],
            "dtype": str(value.dtype),
            "required": name in REQUIRED,
            "meaning": MEANINGS[name],
        }
        for name, value in _example(policy).items()
    }
    return {
        "format": run.FORMAT,
        "jax": jax.__version__,
        "written": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platforms": list(PLATFORMS),
        "inputs": inputs,
        "not_read": [name for name in MEANINGS if name not in inputs],
        "slots_may_lack": policy.slots_may_lack,
        "prefix_max": policy.prefix_max or (policy.config.horizon if policy.guided else 0),
        "actions": config_json.to_plain(data.actions),
        "data": {name: value for name, value in config_json.to_plain(data).items() if name != "actions"},
        "features": config_json.to_plain(policy.features),
        "head": policy.config.head.kind,
        "sampler": policy.sampler,
        "sampling_steps": policy.sampling_steps,
        "guided": policy.guided,
        "checkpoint": f"{policy.loaded.path}, step {metadata.step}",
        "identity": config_json.to_plain(metadata.identity),
        "versions": dict(metadata.versions),
    }


def _example(policy: InsertionPolicy) -> dict[str, np.ndarray]:
    """Returns the fields that a policy reads, of an observation of one row."""
    read = vars(policy.read(policy.example()))
    return {name: np.asarray(value) for name, value in read.items() if value is not None}
