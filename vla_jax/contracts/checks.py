"""Checks of configurations, declared where the fields are: a field's type says what it holds, `Range` how large.

    steps: Count = 10_000
    min_lr: NotNegative = 1e-6

`check` in `__post_init__` refuses what does not fit, all of it in one line. Types are strict: 1.9, "2" and True are no
whole numbers, and whatever has a range is finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vla_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST_INT = 2**31 - 1
"""Of counts: they are int32 on the devices."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have: from `low` to `high`, both included; above or below the other two."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: object) -> bool:
        """Whether a value is a finite number in the range."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and self.above < value < self.below

    def wanted(self, value: object) -> str:
        """Returns what would do in place of a value that does not."""
        if isinstance(value, int | float) and value > self.high > 1:
            return f"at most {self.high}"
        if math.isfinite(self.above):
            return "positive" if self.above == 0 else f"above {self.above:g}"
        if math.isfinite(self.below):
            return f"in [{self.low:g}, {self.below:g})"
        if self.high <= 1:
            return f"in [{self.low:g}, {self.high:g}]"
        return "0 or more" if self.low == 0 else f"at least {self.low:g}"


Count = Annotated[int, Range(low=1, high=LARGEST_INT)]
Whole = Annotated[int, Range(low=0, high=LARGEST_INT)]
Seed = Annotated[int, Range(low=0, high=2**63 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, below=1)]
"""Of a whole, which is none itself."""
ShareOrWhole = Annotated[float, Range(low=0, high=1)]


def check(config: "DataclassInstance") -> None:
    """Refuses values that do not fit their fields' types, choices and ranges.

    Raises:
        UserError: names the class, and every such field with its value and what would do.
    """
    hints = get_type_hints(type(config), include_extras=True)
    found = [
        (entry.name, problem(hints[entry.name], getattr(config, entry.name))) for entry in fields(config)
    ]
    faults = [f"{type(config).__name__}.{name} {text}" for name, text in found if text]
    if faults:
        raise UserError("; ".join(faults))


def problem(hint: Any, value: object) -> str | None:
    """Says why a value is none of a type: of a number, a text, a choice, or one of several of them.

    Returns the end of a sentence ("is 1.9; it must be a whole number"); None where it fits, and for types that are
    checked elsewhere.
    """
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        ranges = [note for note in notes if isinstance(note, Range)]
        wrong = problem(kind, value)
        unfit = [limits for limits in ranges if wrong is None and not limits.holds(value)]
        if wrong is None and not unfit:
            return None
        whole = "a whole number, " if kind is int and wrong else ""
        return f"is {shown(value)}; it must be {whole}{ranges[0].wanted(value)}" if ranges else wrong
    if get_origin(hint) in (Union, UnionType):
        wrong = [problem(member, value) for member in get_args(hint) if member is not NoneType]
        fits = (value is None and NoneType in get_args(hint)) or None in wrong
        return None if fits else wrong[0]
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"is {unknown_choice(value, get_args(hint))}"
    wanted, fits = _NAMES.get(hint, ("", lambda _: True))
    return None if fits(value) else f"is {shown(value)}; it must be {wanted}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: object) -> bool:
    # Larger whole numbers are no floats.
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300
    )


_NAMES: dict[Any, tuple[str, Callable[[object], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_int),
    float: ("a number", _is_float),
    str: ("a text", lambda value: isinstance(value, str)),
}


def shown(value: object) -> str:
    """Returns a value for a message: short, and of lists and objects no more than what they are."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} characters)"


def unknown_choice(value: object, choices: tuple[str, ...]) -> str:
    """Returns the value, what there is to choose from, and the closest of it."""
    close = get_close_matches(str(value), choices, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{shown(value)}; choose one of {', '.join(choices)}{hint}"


def check_heads(config: object, width: int, heads: int, what: str) -> None:
    """Refuses a width that attention heads do not divide."""
    if width % heads:
        raise UserError(
            f"{type(config).__name__}: {what} {width} is not divisible by {heads} attention heads"
        )
