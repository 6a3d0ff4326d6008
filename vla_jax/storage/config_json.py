"""JSON round trip of the frozen configuration dataclasses, strict in types and ranges (`vla_jax.contracts.checks`)."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from vla_jax.contracts.checks import problem, shown
from vla_jax.errors import UserError

ConfigT = TypeVar("ConfigT")

MAX_FAULTS = 20

_TAGS: dict[type, tuple[str, Callable[[str], type]]] = {}
_UPGRADES: dict[type, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def to_json(config: object) -> str:
    """Returns a frozen dataclass, nested ones included, as indented JSON."""
    return json.dumps(to_plain(config), indent=2)


def from_json(cls: type[ConfigT], text: str, *, source: str = "configuration") -> ConfigT:
    """Builds `cls` from the JSON that `to_json` wrote.

    Unknown keys are refused; missing ones take the dataclass's defaults. `source` names the file in errors.

    Raises:
        UserError: the text is no JSON, or does not describe a `cls`; every fault is named.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error
    return from_plain(cls, values, source=source)


def read_json(cls: type[ConfigT], path: Path) -> ConfigT:
    """Builds `cls` from a file. Raises UserError as `from_json` does, and where it cannot be read."""
    try:
        return from_json(cls, path.read_text(encoding="utf-8"), source=str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def to_plain(config: object) -> Any:
    """Returns a frozen dataclass as JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        tags = {tag: getattr(config, tag) for base, (tag, _) in _TAGS.items() if isinstance(config, base)}
        return tags | {
            field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)
        }
    if isinstance(config, Mapping):
        return {name: to_plain(value) for name, value in config.items()}
    return [to_plain(value) for value in config] if isinstance(config, tuple | list) else config


def from_plain(cls: type[ConfigT], values: Any, *, source: str = "configuration") -> ConfigT:
    """Builds `cls` from JSON values; see `from_json`."""
    faults: list[str] = []
    built = _build(cls, values, "", faults)
    if faults:
        listed = "; ".join(faults[:MAX_FAULTS])
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise UserError(f"{source}: does not describe a {cls.__name__}: {listed}{more}")
    return built


def register_tagged(base: type, tag: str, class_of: Callable[[str], type]) -> None:
    """Keeps which subclass of `base` a value is, under the key `tag`.

    tag: name of a class attribute of every subclass. class_of: the value of the tag → the subclass.
    """
    _TAGS[base] = (tag, class_of)


def register_upgrade(cls: type, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Lets `from_json` read what earlier versions wrote of a `cls`: `upgrade` turns its JSON values into today's."""
    _UPGRADES[cls] = upgrade


def _build(hint: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Returns a value of a type, made of JSON values; what does not fit is added to the faults, by its dotted name."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Annotated and dataclasses.is_dataclass(parts[0]):
        return _build(parts[0], value, where, faults)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(hint, value, where, faults)
    if kind in (typing.Union, types.UnionType):
        built = [part for part in parts if dataclasses.is_dataclass(part) or typing.get_origin(part) is tuple]
        if value is None and types.NoneType in parts:
            return None
        if built:
            return _build(built[0], value, where, faults)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            faults.append(f"{where} is {shown(value)}; it must be a list")
            return ()
        return tuple(_build(parts[0], item, f"{where}[{i}]", faults) for i, item in enumerate(value))
    if kind is dict:
        if not isinstance(value, dict):
            faults.append(f"{where} is {shown(value)}; it must be an object")
            return {}
        return {name: _build(parts[1], item, f"{where}.{name}", faults) for name, item in value.items()}
    if text := problem(hint, value):
        faults.append(f"{where} {text}")
        return value
    wanted = parts[0] if kind is typing.Annotated else hint
    return float(value) if wanted is float else value


def _build_dataclass(cls: type, values: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(values, dict):
        faults.append(f"{where or 'it'} is {shown(values)}; it must be an object")
        return None
    num_before = len(faults)
    try:
        for base, (tag, class_of) in _TAGS.items():
            if issubclass(cls, base):
                if not isinstance(values.get(tag), str):
                    raise UserError(
                        f"the key {tag!r} is missing" if tag not in values else f"{tag} is no text"
                    )
                cls = class_of(values[tag])
                values = {name: value for name, value in values.items() if name != tag}
        if cls in _UPGRADES:
            values = _UPGRADES[cls](values)
    except (UserError, TypeError, ValueError, AttributeError) as error:
        faults.append(f"{where or 'it'}: {error}")
        return None
    entries = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls, include_extras=True)
    given = {}
    for name, value in values.items():
        dotted = f"{where}.{name}" if where else name
        if name in entries:
            given[name] = _build(hints[name], value, dotted, faults)
        else:
            close = get_close_matches(name, entries, n=1)
            faults.append(f"{shown(dotted)[1:-1]} is unknown{f'; did you mean {close[0]}?' if close else ''}")
    for name, field in entries.items():
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in values and not has_default:
            faults.append(f"{f'{where}.{name}' if where else name} is missing")
    if len(faults) > num_before:
        return None
    try:
        return cls(**given)
    except (UserError, TypeError, ValueError) as error:
        faults.append(str(error))
        return None
