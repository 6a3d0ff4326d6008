"""JSON round trip of the frozen configuration dataclasses."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import cattrs
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn
from cattrs.strategies import configure_union_passthrough
from cattrs.v import format_exception

from vla_jax.errors import UserError

ConfigT = TypeVar("ConfigT")

_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
configure_union_passthrough(str | bool | int | float | None, _CONVERTER)


def to_json(config: object) -> str:
    """Returns a frozen dataclass, nested ones included, as indented JSON."""
    return json.dumps(_CONVERTER.unstructure(config), indent=2)


def from_json(cls: type[ConfigT], text: str, *, source: str = "configuration") -> ConfigT:
    """Builds `cls` from the JSON that `to_json` wrote.

    Unknown keys are refused; missing ones take the dataclass's defaults. `source` names the file in errors.

    Raises:
        UserError: the text is no JSON, or does not describe a `cls`; every fault is named.
    """
    try:
        return from_plain(cls, json.loads(text), source=source)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error


def to_plain(config: object) -> Any:
    """Returns a frozen dataclass as JSON values."""
    return json.loads(json.dumps(_CONVERTER.unstructure(config)))


def from_plain(cls: type[ConfigT], values: Any, *, source: str = "configuration") -> ConfigT:
    """Builds `cls` from JSON values; see `from_json`."""
    try:
        return _CONVERTER.structure(values, cls)
    except (BaseValidationError, TypeError, ValueError) as error:
        faults = "; ".join(cattrs.transform_error(error, format_exception=_say))
        raise UserError(f"{source}: does not describe a {cls.__name__}: {faults}") from error


def register_tagged(base: type, tag: str, class_of: Callable[[str], type]) -> None:
    """Keeps which subclass of `base` a value is, under the key `tag`.

    tag: name of a class attribute of every subclass. class_of: the value of the tag → the subclass.
    """

    def unstructure(value: Any) -> dict[str, Any]:
        return {
            tag: getattr(value, tag),
            **make_dict_unstructure_fn(type(value), _CONVERTER)(value),
        }

    def structure(values: Any, _: type) -> Any:
        if not isinstance(values, dict) or tag not in values:
            raise UserError(f"the key {tag!r} is missing")
        cls = class_of(values[tag])
        fields = {name: value for name, value in values.items() if name != tag}
        return make_dict_structure_fn(cls, _CONVERTER, _cattrs_forbid_extra_keys=True)(fields, cls)

    _CONVERTER.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, base), unstructure
    )
    _CONVERTER.register_structure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, base), structure
    )


def register_upgrade(cls: type, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Lets `from_json` read what earlier versions wrote of a `cls`: `upgrade` turns its JSON values into today's."""
    structure = make_dict_structure_fn(cls, _CONVERTER, _cattrs_forbid_extra_keys=True)
    _CONVERTER.register_structure_hook(
        cls, lambda values, _: structure(upgrade(values) if isinstance(values, dict) else values, cls)
    )


def _say(error: BaseException, wanted: type | None) -> str:
    return str(error) if isinstance(error, UserError) else format_exception(error, wanted)
