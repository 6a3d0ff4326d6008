"""Runs a bundled policy with jax, numpy and flatbuffers (with which jax reads exported programs), and nothing else.

    from run import load  # this file lies in every bundle; a copy of it under any name will do

    policy = load("BUNDLE")
    actions = policy.predict(vl=vl, vl_mask=vl_mask, sensor=sensor)  # [b, horizon, actions] float32

What the inputs and the actions mean: specs.json. `python BUNDLE/run.py` checks the folder and times the policy.
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

FORMAT = "vla-jax-bundle-1"
SPECS, WEIGHTS, CHECKSUMS = "specs.json", "weights.safetensors", "SHA256SUMS"
PROGRAMS = {"1": "programs/batch_1.bin", "b": "programs/batch_any.bin"}
"""For one row, and for any number of rows."""
MASKS = ("vl_mask", "has_sensor", "state_window_mask")
_TYPES = {"F32": np.float32, "I32": np.int32, "U32": np.uint32, "BOOL": np.bool_}


class BundleError(Exception):
    """A folder is no bundle, is damaged, or cannot be read by this jax; one line that says what to do."""


def load(folder: str | Path, *, batch_size: int = 1) -> "BundledPolicy":
    """Reads a bundle, compares it with its checksums, and compiles it for a batch size.

    With JAX_COMPILATION_CACHE_DIR set, a later process reads the compiled program instead.

    Raises:
        BundleError: see there.
    """
    folder = Path(folder)
    checksums = _read_checksums(folder)
    for name in (SPECS, *PROGRAMS.values()):
        _check(folder, name, checksums)
    specs = json.loads((folder / SPECS).read_bytes())
    found = specs.get("format") if isinstance(specs, dict) else None
    if found != FORMAT:
        raise BundleError(f"{folder} has format {found}, this is a reader of {FORMAT}; use its own run.py")
    # Hashing the weights takes as long as all the rest.
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(_check, folder, WEIGHTS, checksums)
        try:
            programs = {size: (folder / name).read_bytes() for size, name in PROGRAMS.items()}
            policy = BundledPolicy(specs, _read_weights(folder / WEIGHTS), programs)
            policy.compile(batch_size)
        finally:
            checked.result()
    return policy


class BundledPolicy:
    """Predicts the next actions, as `vla_jax.InsertionPolicy` does.

    Attributes:
        specs: specs.json.
    """

    def __init__(
        self, specs: Mapping[str, Any], weights: Mapping[str, np.ndarray], programs: Mapping[str, bytes]
    ) -> None:
        """programs: exported, by batch size: "1", and "b" for any. `load` makes one of a folder."""
        self.specs = specs
        self._weights = jax.device_put(dict(weights), may_alias=False)
        self._programs = programs
        self._compiled: dict[int, Any] = {}

    def predict(self, *, key: jax.Array | np.ndarray | None = None, **observation: Any) -> np.ndarray:
        """Returns the actions that follow each row, [b, horizon, actions] float32, in the units of the specs.

        observation: the specs' inputs, in recorded units; those that are not required may be None or left out, and
            those that the policy does not read may be there all the same. Without a sensor no row has one, without
            `has_sensor` every row has one; the arm's last poses and their mask likewise. A prefix may be shorter than
            the horizon; without `prefix_length` all of it is promised, without `plan_length` nothing else is planned.
        key: as of `jax.random.key`, for policies that draw: one, or one for each row. None is that of 0.

        Raises:
            ValueError: inputs do not fit, all of them are named; or the actions would not be finite.
        """
        known = {*self.specs["inputs"], *self.specs["not_read"]}
        faults = [f"{name} is unknown" for name in observation if name not in known]
        given = {name: observation.get(name) for name in self.specs["inputs"]}
        required = (name for name, value in self.specs["inputs"].items() if value["required"])
        faults += [f"{name} is required" for name in required if given[name] is None]
        if faults:
            raise ValueError(f"predict: {'; '.join(faults)}")
        inputs = self._complete({name: value for name, value in given.items() if value is not None})
        batch = inputs["vl"].shape[0] if inputs["vl"].ndim else 0
        inputs |= _key_of_each_row(key, batch)
        faults = self._faults(inputs, batch)
        if faults:
            raise ValueError(f"predict: {'; '.join(faults)}")
        actions = np.asarray(self.compile(batch)(self._weights, inputs))
        if not np.isfinite(actions).all():
            raise ValueError("predict: the predicted actions are not finite: is an input?")
        return actions

    def compile(self, batch_size: int) -> Any:
        """Returns the program for a batch size; compiled the first time."""
        if batch_size not in self._compiled:
            try:
                program = jax.export.deserialize(bytearray(self._programs["1" if batch_size == 1 else "b"]))
            except Exception as error:
                raise BundleError(
                    f"jax {jax.__version__} cannot read what jax {self.specs['jax']} exported ({error}); install that "
                    "one here, or bundle the policy again with one that is at most 6 months older"
                ) from error
            inputs = {
                name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
                for name, (shape, dtype) in self._arguments().items()
            }
            self._compiled[batch_size] = jax.jit(program.call).lower(self._weights, inputs).compile()
        return self._compiled[batch_size]

    def example(self, batch_size: int = 1) -> dict[str, np.ndarray]:
        """Returns inputs of the right shapes: zero everywhere, everything present."""
        made = {
            name: np.zeros((batch_size, *value["shape"][1:]), value["dtype"])
            for name, value in self.specs["inputs"].items()
        }
        return made | {name: np.ones_like(made[name]) for name in MASKS if name in made}

    def _arguments(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a row, and type, of all that the programs take."""
        read = {
            name: (tuple(value["shape"][1:]), value["dtype"]) for name, value in self.specs["inputs"].items()
        }
        return read | {"key": ((2,), "uint32"), "fold": ((), "int32")}

    def _complete(self, given: dict[str, Any]) -> dict[str, np.ndarray]:
        """Adds what was left out, and gives all the types that the programs take."""
        arguments = self._arguments()
        read = {name: np.asarray(value, arguments[name][1]) for name, value in given.items()}
        batch = read["vl"].shape[:1]
        if self.specs["slots_may_lack"] and read["vl"].ndim == 3 and read["vl_mask"].ndim == 2:
            lacking = max(0, arguments["vl"][0][0] - read["vl"].shape[1])
            read["vl"] = np.pad(read["vl"], ((0, 0), (0, lacking), (0, 0)))
            read["vl_mask"] = np.pad(read["vl_mask"], ((0, 0), (0, lacking)))
        if "sensor" in arguments:
            if "sensor" not in read:
                read["sensor"] = np.zeros((*batch, *arguments["sensor"][0]), np.float32)
                read["has_sensor"] = np.zeros(batch, bool)
            read.setdefault("has_sensor", np.ones(batch, bool))
        if "state_window" in arguments:
            if "state_window" not in read:
                read["state_window"] = np.zeros((*batch, *arguments["state_window"][0]), np.float32)
                read["state_window_mask"] = np.zeros((*batch, *arguments["state_window_mask"][0]), bool)
            read.setdefault("state_window_mask", np.ones(read["state_window"].shape[:2], bool))
        if "prefix" in arguments:
            if "prefix" not in read:
                read["prefix"] = np.zeros((*batch, 0, arguments["prefix"][0][1]), np.float32)
                read |= {name: np.zeros(batch, np.int32) for name in ("prefix_length", "plan_length")}
            prefix = read["prefix"]
            if prefix.ndim == 3:
                read.setdefault("prefix_length", np.full(batch, prefix.shape[1], np.int32))
                rows = max(0, arguments["prefix"][0][0] - prefix.shape[1])
                read["prefix"] = np.pad(prefix, ((0, 0), (0, rows), (0, 0)))
            read.setdefault("prefix_length", np.zeros(batch, np.int32))
            read.setdefault("plan_length", read["prefix_length"])
        return read

    def _faults(self, inputs: Mapping[str, np.ndarray], batch: int) -> list[str]:
        expected = {name: (batch, *shape) for name, (shape, _) in self._arguments().items()}
        faults = [
            f"{name} has shape {value.shape}, expected {expected[name]}"
            for name, value in inputs.items()
            if value.shape != expected[name]
        ]
        if batch < 1:
            faults.append("the batch is empty")
        if "prefix" in inputs and not faults:
            length, planned = inputs["prefix_length"], inputs["plan_length"]
            longest, horizon = self.specs["prefix_max"], expected["prefix"][1]
            if not ((length >= 0) & (length <= longest)).all():
                faults.append(f"prefix_length is {length.tolist()}, each must be from 0 to {longest}")
            if not ((planned >= length) & (planned <= horizon)).all():
                faults.append(
                    f"plan_length is {planned.tolist()}, each must be from prefix_length to {horizon}"
                )
        return faults


def _key_of_each_row(key: jax.Array | np.ndarray | None, batch: int) -> dict[str, np.ndarray]:
    """Returns the data of each row's key, and the number to fold into it; −1 where the row has a key of its own."""
    if key is None:
        key = jax.random.key(0)
    data = jax.random.key_data(key) if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    data = np.asarray(data, np.uint32)
    if data.ndim == 1:
        return {"key": np.broadcast_to(data, (batch, *data.shape)), "fold": np.arange(batch, dtype=np.int32)}
    return {"key": data, "fold": np.full(batch, -1, np.int32)}


def _read_checksums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder} is no bundle: {CHECKSUMS} cannot be read ({error})") from error
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _check(folder: Path, name: str, checksums: Mapping[str, str]) -> None:
    try:
        with (folder / name).open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(
            f"{folder} is damaged: {name} cannot be read ({error.strerror}); copy it again"
        ) from error
    if found != checksums.get(name):
        raise BundleError(f"{folder} is damaged: {name} is not what {CHECKSUMS} says; copy it again")


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a safetensors file: the header's length (8 bytes), the header (JSON), the arrays' bytes."""
    try:
        content = np.memmap(path, np.uint8, "r")
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:begin].tobytes())
        header.pop("__metadata__", None)
        return {
            name: content[begin:][slice(*entry["data_offsets"])]
            .view(_TYPES[entry["dtype"]])
            .reshape(entry["shape"])
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}; copy it again") from error


def _main(folder: Path) -> None:
    """Says what a bundle is, and how long it takes."""
    started = time.perf_counter()
    policy = load(folder)
    loaded = time.perf_counter()
    policy.predict(**policy.example())
    first = time.perf_counter()
    calls = 20
    for _ in range(calls):
        policy.predict(**policy.example())
    seconds = (time.perf_counter() - first) / calls
    actions = policy.specs["actions"]
    print(f"{folder}: {policy.specs['head']} policy, {policy.specs['checkpoint']}")
    for name, value in policy.specs["inputs"].items():
        needed = "" if value["required"] else ", may be left out"
        print(
            f"  {name} {value['dtype']} [{', '.join(map(str, value['shape']))}]: {value['meaning']}{needed}"
        )
    print(f"  actions [b, {actions['horizon']}, {len(actions['names'])}]: {', '.join(actions['names'])}")
    print(
        f"sound; loaded and compiled in {loaded - started:.2f} s, first action {first - loaded:.3f} s later, then "
        f"{1e3 * seconds:.1f} ms each on {jax.devices()[0].platform}"
    )


if __name__ == "__main__":
    try:
        _main(Path(__file__).parent)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
