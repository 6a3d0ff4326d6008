"""Checks of configurations: each refuses a value in one line that names the class, the field and what would do."""

from dataclasses import fields
from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from vla_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_choices(config: "DataclassInstance") -> None:
    """Refuses a value outside a `Literal` field's choices, and offers the closest one.

    Raises:
        UserError: names the class, the field, the value and the choices.
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        choices = _choices(hints[entry.name])
        value = getattr(config, entry.name)
        if choices and value is not None and value not in choices:
            raise UserError(f"{_name(config, entry.name)} is {unknown_choice(value, choices)}")


def unknown_choice(value: object, choices: tuple[str, ...]) -> str:
    """Returns the value, what there is to choose from, and the closest of it."""
    close = get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{value!r}; choose one of {', '.join(choices)}{hint}"


def check_at_least_one(config: object, *names: str) -> None:
    """Refuses counts below 1."""
    _check(config, names, lambda value: value >= 1, "at least 1")


def check_positive(config: object, *names: str) -> None:
    """Refuses numbers that are not above 0."""
    _check(config, names, lambda value: value > 0, "positive")


def check_not_negative(config: object, *names: str) -> None:
    """Refuses numbers below 0."""
    _check(config, names, lambda value: value >= 0, "0 or more")


def check_share(config: object, *names: str, whole: bool = False) -> None:
    """Refuses what is no share of a whole. whole: 1 is one too."""
    if whole:
        _check(config, names, lambda value: 0.0 <= value <= 1.0, "in [0, 1]")
    else:
        _check(config, names, lambda value: 0.0 <= value < 1.0, "in [0, 1)")


def check_heads(config: object, width: int, heads: int, what: str) -> None:
    """Refuses a width that attention heads do not divide."""
    if width % heads:
        raise UserError(
            f"{type(config).__name__}: {what} {width} is not divisible by {heads} attention heads"
        )


def _check(config: object, names: tuple[str, ...], holds: Any, wanted: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise UserError(f"{_name(config, name)} is {value}; it must be {wanted}")


def _name(config: object, field: str) -> str:
    return f"{type(config).__name__}.{field}"


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) in (Union, UnionType):
        return tuple(choice for part in get_args(hint) for choice in _choices(part))
    return get_args(hint) if get_origin(hint) is Literal else ()
