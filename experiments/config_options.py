"""Options of a command that are fields of a configuration: type and description come from the dataclass itself."""

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import tyro


def options_for(config: type, names: Mapping[str, str], *, default: str) -> type:
    """Makes a dataclass of options that set fields of a configuration; each is None where it is not given.

    names: option → dotted name of the field in `config`, for instance "lr" → "optimizer.lr".
    default: what help says of the value that stays, for instance "the recipe's".
    """
    entries = []
    for option, name in names.items():
        kind, text = described(config, name)
        helped = tyro.conf.arg(help=text, help_behavior_hint=f"(default: {default})")
        entries.append((option, Annotated[kind | None, helped], None))
    return dataclasses.make_dataclass("Options", entries, frozen=True)


def given(options: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of the options that were given, under their fields' dotted names."""
    values = {name: getattr(options, option) for option, name in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def described(config: type, name: str) -> tuple[Any, str]:
    """Returns the type of a field, found by its dotted name, and the docstring under it.

    Where a field on the way is one of several dataclasses, the first that has the next one counts.

    Raises:
        AttributeError: there is no such field, or nothing is written under it.
    """
    first, _, rest = name.partition(".")
    members = typing.get_args(config) if isinstance(config, types.UnionType) else (config,)
    for member in members:
        hints = typing.get_type_hints(member) if dataclasses.is_dataclass(member) else {}
        if first in hints:
            if rest:
                return described(hints[first], rest)
            return hints[first], _docstrings(member)[first]
    raise AttributeError(f"{config} has no field {name}")


def _docstrings(config: type) -> dict[str, str]:
    """Returns the docstrings under a dataclass's fields, each in one line."""
    (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                found[name] = " ".join(words.split())
    return found
