"""The fields of nested configurations under dotted names, for instance `optimizer.lr`."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")


def replaced(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """Returns a configuration in which the named fields have these values.

    The fields of one dataclass are set, and so checked, together.
    """
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        first, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            own[name] = value
    own |= {name: replaced(getattr(config, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(config, **own) if own else config


def differing(a: "DataclassInstance", b: "DataclassInstance") -> list[str]:
    """Returns the names of the fields in which two configurations differ, sorted."""
    ours, theirs = (flat(dataclasses.asdict(config)) for config in (a, b))
    missing = object()
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name, missing) != theirs.get(name, missing)
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}.{name}" if prefix else name)
    return found
