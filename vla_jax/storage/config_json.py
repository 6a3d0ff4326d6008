"""JSON round trip of the frozen configuration dataclasses."""

import json
from typing import TypeVar

import cattrs
from cattrs.errors import BaseValidationError
from cattrs.strategies import configure_union_passthrough

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
        return _CONVERTER.structure(json.loads(text), cls)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error
    except (BaseValidationError, TypeError, ValueError) as error:
        faults = "; ".join(cattrs.transform_error(error))
        raise UserError(f"{source}: does not describe a {cls.__name__}: {faults}") from error
