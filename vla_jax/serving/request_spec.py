"""What a policy can be asked with: one table for the check of requests and for what the server tells its clients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_jax.contracts.specs import ActionSpec
from vla_jax.policy.insertion_policy import InsertionPolicy

FEATURES = "features"
PICTURES = "pictures"
MAX_SEED = 2**32 - 1
MAX_PROMPT = 8192
"""Characters."""
MAX_PIXELS = 2**21
"""Of a picture: 1920×1080 and a little more."""
MIN_SIDE, MAX_SIDE = 28, 4096
"""Pixels of a picture's sides."""


@dataclass(frozen=True)
class ArrayInput:
    """An array that a request may hold, for one row of a batch."""

    shape: tuple[int, ...]
    required: bool
    meaning: str
    """What it holds, and in which units."""
    dtype: str = "float32"
    """What it is turned into; any floats and whole numbers will do for float32."""
    may_be_shorter: bool = False
    """Whether the first axis may be shorter."""
    is_read: bool = True
    """False: it may be there, and is not looked at."""

    @property
    def wanted(self) -> str:
        """Shape and type in words."""
        return f"{list(self.shape)} {self.dtype}" if self.shape else "a number"

    def tell(self) -> dict[str, Any]:
        """Returns it for clients, as plain values."""
        told = {"shape": list(self.shape), "dtype": self.dtype, "required": self.required}
        shorter = {"first_axis": "may be shorter"} if self.may_be_shorter else {}
        return told | shorter | {"meaning": self.meaning}


@dataclass(frozen=True)
class RequestSpec:
    """Everything that requests to one policy may hold."""

    arrays: Mapping[str, ArrayInput]
    views: tuple[str, ...]
    takes_pictures: bool
    """Whether the server has the backbone; requests with features it takes in any case."""
    longest_prefix: int = 0
    """How many promised actions a prefix may have; 0: the policy takes no prefix."""

    @classmethod
    def of(cls, policy: InsertionPolicy, *, takes_pictures: bool) -> "RequestSpec":
        """Returns what a policy can be asked with. takes_pictures: there is an encoder for its features."""
        config, data = policy.config, policy.data
        slots = (config.vl_slots, config.vl_dim)
        shorter = policy.slots_may_lack
        arrays = {
            "vl": ArrayInput(slots, True, "features, as in the training's cache", may_be_shorter=shorter),
            "vl_mask": ArrayInput(
                slots[:1], False, "which slots are there; without it all are", "bool", shorter
            ),
        }
        if data.sensor is not None:
            # A window of any length is always asked for in one, so that nothing is compiled while serving.
            rows = policy.sensor_window or config.sensor.temporal_length
            arrays["sensor"] = ArrayInput(
                (rows, config.sensor.channels),
                False,
                f"newest rows{_rate(data.sensor.hz)}, oldest first: force, then the A-scan, as recorded; "
                "absent where there is no sensor",
                is_read=config.uses_sensor,
            )
        if data.state:
            reads = config.state is not None
            named = f"newest {', '.join(data.state)} of the arm, as recorded"
            arrays["state"] = ArrayInput((len(data.state),), reads, named, is_read=reads)
        if policy.state_window is not None:
            rows, every = policy.state_window.rows, policy.state_window.every
            between = "control tick" if every == 1 else f"{every} control ticks"
            arrays["state_window"] = ArrayInput(
                (rows, len(data.state)),
                False,
                f"{', '.join(data.state)} of the arm, as recorded, one every {between}, oldest first and the newest "
                "last; absent where they are not known",
            )
            arrays["state_window_mask"] = ArrayInput(
                (rows,), False, "which of them are there; without it all are", "bool"
            )
        if config.age is not None:
            arrays["feature_age"] = ArrayInput(
                (),
                True,
                "seconds from when the oldest of the pictures was taken to the state and the sensor rows",
            )
        if config.head.needs_previous_chunk:
            arrays["previous_chunk"] = ArrayInput(
                (data.actions.horizon, data.actions.size), True, f"actions of the past: {units(data.actions)}"
            )
        longest = data.actions.horizon if policy.guided else policy.prefix_max
        if longest:
            arrays["prefix"] = ArrayInput(
                (data.actions.horizon, data.actions.size),
                False,
                f"actions that are planned from now on, the promised ones first: {units(data.actions)}; without it "
                "nothing is planned",
                may_be_shorter=True,
            )
        return cls(arrays, data.views or (), takes_pictures, longest)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of requests that are answered."""
        return (FEATURES, PICTURES) if self.takes_pictures else (FEATURES,)

    def tell(self) -> dict[str, Any]:
        """Returns, for each kind of request, its keys and what they hold, as plain values."""
        features = {name: self.arrays[name].tell() for name in ("vl", "vl_mask")}
        common = {
            name: entry.tell()
            for name, entry in self.arrays.items()
            if name not in features and entry.is_read
        }
        common["seed"] = {
            "dtype": "int",
            "required": False,
            "meaning": f"noise of a policy that draws, 0 to {MAX_SEED}; 0 without it",
        }
        if self.longest_prefix:
            common["prefix_length"] = {
                "dtype": "int",
                "required": False,
                "meaning": "how many actions of the prefix are promised: they will be executed whatever the reply is, "
                f"and come back in it; at most {self.longest_prefix}, all of them without it",
            }
        pictures = {
            "prompt": {"dtype": "text", "required": True, "meaning": "what the policy is to do"},
            "images": {
                "views": list(self.views),
                "required": True,
                "meaning": "view → uint8 [height, width, 3] RGB, or the bytes of a JPEG or PNG file; a view "
                "without a picture is left out",
            },
        }
        told = {FEATURES: features | common}
        return told | ({PICTURES: pictures | common} if self.takes_pictures else {})


def units(actions: ActionSpec) -> str:
    """Returns the dimensions of an action with their units, for people: "dx (mm), gripper"."""
    pairs = zip(actions.names, actions.units, strict=True)
    return ", ".join(f"{name} ({unit})" if unit else name for name, unit in pairs)


def _rate(hz: float | None) -> str:
    return f" at {hz:g} Hz" if hz else ""
