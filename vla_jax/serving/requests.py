"""From a message to a request that fits the policy, or to everything that does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.contracts.checks import shown
from vla_jax.serving.request_spec import FEATURES, MAX_PROMPT, MAX_SEED, PICTURES, ArrayInput, RequestSpec

PICTURE_KEYS = ("images", "prompt")
FEATURE_KEYS = ("vl", "vl_mask")
STATE_KEYS = ("state", "state_window", "state_window_mask")
PREFIX_KEYS = ("prefix", "prefix_length")
# A fault names what a client wrote; no more than so many of them, and of each no more than a line.
MAX_FAULTS = 20


class RequestError(ValueError):
    """A request that cannot be answered; the text says all that is wrong with it."""


@dataclass(frozen=True)
class Request:
    """One row for a policy, checked: float32 in recorded units, of the shapes that it was compiled for.

    Either pictures and prompt are there, or features. None: the request has none, or the policy reads none.
    """

    vl: Float[np.ndarray, "s v"] | None
    vl_mask: Bool[np.ndarray, " s"] | None
    prompt: str | None
    images: Mapping[str, np.ndarray | bytes] | None
    sensor: Float[np.ndarray, "t c"] | None
    state: Float[np.ndarray, " p"] | None
    state_window: Float[np.ndarray, "w p"] | None
    state_window_mask: Bool[np.ndarray, " w"] | None
    feature_age: Float[np.ndarray, ""] | None
    previous_chunk: Float[np.ndarray, "h a"] | None
    prefix: Float[np.ndarray, "n a"] | None
    prefix_length: int
    seed: int


def read_request(message: Any, spec: RequestSpec) -> Request:
    """Returns the request that a decoded message is.

    Raises:
        RequestError: it does not fit; names every difference.
    """
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise RequestError("a request is a map from names to values")
    given = {name: value for name, value in message.items() if value is not None}
    faults: list[str] = []
    kind = _kind(given, spec, faults)
    read = _read_arrays(given, spec, kind, faults)
    prompt, images = _read_pictures(given, spec, faults) if kind == PICTURES else (None, None)
    prefix_length = _read_prefix_length(given, read, spec, faults)
    seed = _read_whole("seed", given.get("seed", 0), MAX_SEED, faults)
    if faults:
        more = [f"{len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise RequestError("; ".join(faults[:MAX_FAULTS] + more))
    vl, vl_mask = _whole_slots(read, spec)
    return Request(
        vl=vl,
        vl_mask=vl_mask,
        prompt=prompt,
        images=images,
        sensor=read.get("sensor"),
        state=read.get("state"),
        state_window=read.get("state_window"),
        state_window_mask=read.get("state_window_mask"),
        feature_age=read.get("feature_age"),
        previous_chunk=read.get("previous_chunk"),
        prefix=read.get("prefix"),
        prefix_length=prefix_length,
        seed=seed,
    )


def _kind(given: Mapping[str, Any], spec: RequestSpec, faults: list[str]) -> str:
    """Returns which kind of request it is, and notes keys that no such request has."""
    kind = PICTURES if any(name in given for name in PICTURE_KEYS) else FEATURES
    if kind == PICTURES and not spec.takes_pictures:
        faults.append("this server has no backbone for pictures: send vl, or start it with --backbone")
    if kind == PICTURES and any(name in given for name in FEATURE_KEYS):
        faults.append("vl and images exclude each other: send features, or pictures and prompt")
    known = (
        *(*PICTURE_KEYS, *FEATURE_KEYS, *STATE_KEYS, *PREFIX_KEYS),
        *("sensor", "feature_age", "previous_chunk", "seed"),
    )
    for number, name in enumerate(name for name in given if name not in known):
        # Nobody sees more faults than that, and looking for what was meant takes time.
        hint = _meant(name, known) if number < MAX_FAULTS else ""
        faults.append(f"{shown(name)} is unknown{hint}")
    return kind


def _meant(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name[:100], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _read_arrays(
    given: Mapping[str, Any], spec: RequestSpec, kind: str, faults: list[str]
) -> dict[str, np.ndarray]:
    """Returns the arrays that the policy reads, by name."""
    read = {}
    for name, expected in spec.arrays.items():
        if not expected.is_read or (kind == PICTURES and name in FEATURE_KEYS):
            continue
        if name not in given:
            if expected.required:
                faults.append(f"{name} is missing: {expected.wanted}, {expected.meaning}")
            continue
        value = given[name] if expected.shape else _number(given[name])
        fault = _misfit(value, expected)
        if fault is None:
            read[name] = _as(value, expected.dtype)
        else:
            faults.append(f"{name} {fault}")
    if "vl" in read and "vl_mask" in read and len(read["vl"]) != len(read["vl_mask"]):
        faults.append(f"vl has {len(read['vl'])} slots, vl_mask {len(read['vl_mask'])}")
    faults += [f"{name} is not finite" for name, values in read.items() if not np.isfinite(values).all()]
    return read


def _number(value: Any) -> Any:
    """Returns a plain number as an array; everything else as it is."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return np.asarray(value) if is_number else value


def _misfit(value: Any, expected: ArrayInput) -> str | None:
    """Says what is wrong with the type or the shape of a value; None where it fits."""
    wanted = f"expected {expected.wanted}"
    if not isinstance(value, np.ndarray):
        return f"{_is(value)}, {wanted}"
    if value.dtype.kind not in ("b" if expected.dtype == "bool" else "fiu"):
        return f"is of type {value.dtype}, {wanted}"
    shape = value.shape
    fits = shape == expected.shape
    if expected.may_be_shorter and len(shape) == len(expected.shape) and shape[1:] == expected.shape[1:]:
        fits, wanted = 1 <= shape[0] <= expected.shape[0], f"{wanted}, or fewer of the first"
    return None if fits else f"has shape {list(shape)}, {wanted}"


def _as(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # Too large is not finite, and told as that.
        return values.astype(dtype)


def _whole_slots(
    read: Mapping[str, np.ndarray], spec: RequestSpec
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns features and mask with as many slots as the policy was compiled for; those added are masked."""
    if "vl" not in read:
        return None, None
    vl, num_slots = read["vl"], spec.arrays["vl"].shape[0]
    mask = read.get("vl_mask", np.ones(len(vl), bool))
    lacking = num_slots - len(vl)
    return np.pad(vl, ((0, lacking), (0, 0))), np.pad(mask, (0, lacking))


def _read_pictures(
    given: Mapping[str, Any], spec: RequestSpec, faults: list[str]
) -> tuple[str, Mapping[str, Any]]:
    prompt, images = given.get("prompt"), given.get("images")
    if not isinstance(prompt, str) or not 0 < len(prompt) <= MAX_PROMPT:
        faults.append(f"prompt {_is(prompt)}, expected a text of 1 to {MAX_PROMPT} characters")
    if not isinstance(images, dict):
        faults.append(f"images {_is(images)}, expected a map from views to pictures")
        images = {}
    present = {view: picture for view, picture in images.items() if picture is not None}
    for view, picture in present.items():
        if view not in spec.views:
            faults.append(
                f"view {shown(view)} is none of the policy's: {', '.join(spec.views) or 'it has none'}"
            )
        elif not isinstance(picture, bytes) and not _is_pixels(picture):
            faults.append(
                f"images/{view} is {_described(picture)}, expected uint8 [height, width, 3] or a file's bytes"
            )
    return str(prompt), present


def _is_pixels(picture: Any) -> bool:
    is_colour = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3
    return is_colour and picture.dtype == np.uint8


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else shown(value)


def _is(value: Any) -> str:
    return "is missing" if value is None else f"is {_described(value)}"


def _read_prefix_length(
    given: Mapping[str, Any], read: Mapping[str, np.ndarray], spec: RequestSpec, faults: list[str]
) -> int:
    """Returns how many actions of the prefix are promised."""
    there = [name for name in PREFIX_KEYS if name in given]
    if not there:
        return 0
    if not spec.longest_prefix:
        # Not left out like other things that are not read: who sends one counts on getting it back.
        faults.append(
            f"{' and '.join(there)} cannot be given to a policy that was trained without a prefix and is not guided"
        )
        return 0
    if "prefix" not in given:
        faults.append("prefix_length goes with prefix")
        return 0
    rows = len(read["prefix"]) if "prefix" in read else spec.longest_prefix
    if "prefix_length" not in given and rows > spec.longest_prefix:
        faults.append(
            f"prefix has {rows} actions, {spec.longest_prefix} can be promised: say how many with prefix_length"
        )
        return 0
    longest = min(rows, spec.longest_prefix)
    return _read_whole("prefix_length", given.get("prefix_length", rows), longest, faults)


def _read_whole(name: str, value: Any, largest: int, faults: list[str]) -> int:
    """Returns a whole number from 0 to the largest."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not 0 <= int(value) <= largest:
        faults.append(f"{name} {_is(value)}, expected a whole number from 0 to {largest}")
        return 0
    return int(value)
