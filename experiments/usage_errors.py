"""Mistakes on the command line in one line, the closest option first, instead of tyro's boxes.

The only file that knows tyro's parse events. They are no part of its stable interface: where a version has none, or
others, its own boxes are what one sees.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import tyro

from vla_jax.errors import UserError

try:
    from tyro import _errors as events
except ImportError:
    events = None

_POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


@contextlib.contextmanager
def one_line_usage_errors(arguments: Any, words: Sequence[str], program: str) -> Iterator[None]:
    """Raises a `UserError` where `tyro.cli` would print a box and exit.

    arguments, words: what tyro is given. program: the command, as it was called.
    """
    if not hasattr(events, "on_parse_error"):
        yield
        return

    def refuse(event: Any) -> None:
        # First of all, since tyro would rather miss what a mistyped option was meant to give.
        mistake = _mistyped(words, option_names(arguments))
        if mistake is None:
            try:
                mistake = _describe(event, words)
            except AttributeError:  # An event of another version.
                return
        if mistake is not None:
            raise UserError(f"{mistake} ({program} --help says more)")

    with events.on_parse_error(refuse):
        yield


def _mistyped(words: Sequence[str], names: Sequence[str]) -> str | None:
    """Names the first word that looks like an option and is none, and the option that is closest to it."""
    for word in words:
        given = word.split("=")[0]
        name = given.replace("_", "-")
        if name.startswith("--") and name not in names:
            return f"unknown option {given}{_did_you_mean(name, names)}"
    return None


def _describe(event: Any, words: Sequence[str]) -> str | None:
    """Says what an event is about; None for one that is not known."""
    match type(event).__name__:
        case "UnrecognizedArgs":
            return f"unexpected argument {event.tokens[0]}"
        case "MissingArgs":
            missing = [
                entry.arg.get_invocation_text()[1].as_str_no_ansi() for entry in event.missing_arguments
            ]
            return f"missing: {', '.join(missing)}"
        case "MissingSubcommand":
            return f"give one of {', '.join(event.subcommand_spec.parser_from_name)}"
        case "InvalidChoice":
            return _no_such_value(event.argument, event.value)
        case "BadValue" if event.reason == "too_few_values":
            return f"{_name(event.argument)} is missing" + (
                "" if event.argument.is_positional() else f" its value {event.argument.lowered.metavar}"
            )
        case "InstantiationFailure" if event.argument is not None:
            name = event.argument.display_name()
            values = [value for option, value in pairwise(words) if option == name]
            return _no_such_value(event.argument, values[-1] if values else None)
    return None


def _no_such_value(argument: Any, value: str | None) -> str:
    takes = argument.lowered.metavar
    choices = takes.strip("{}").split(",") if takes.startswith("{") else []
    if choices:
        takes = f"one of {', '.join(choices)}"
    if value is None:
        return f"{_name(argument)} takes {takes}"
    return f"{_name(argument)} takes {takes}, not {value}{_did_you_mean(value, choices)}"


def _did_you_mean(given: str, names: Sequence[str]) -> str:
    close = get_close_matches(given, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.display_name()


def option_names(arguments: Any) -> list[str]:
    """Returns every option of a command, those of all its subcommands included.

    arguments: a dataclass, with others nested in it, or a union of annotated ones.
    """
    if not dataclasses.is_dataclass(arguments):
        members = [typing.get_args(member)[0] for member in typing.get_args(arguments)]
        return sorted({name for member in members for name in option_names(member)})
    names, hints = ["--help"], typing.get_type_hints(arguments, include_extras=True)
    for field in dataclasses.fields(arguments):
        hint = hints[field.name]
        kind, notes = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
        nested = [part for part in (kind, field.default_factory) if dataclasses.is_dataclass(part)]
        if nested:
            names += option_names(nested[0])
        elif _POSITIONAL not in notes:
            name = field.name.replace("_", "-")
            names += (
                [f"--{name}", f"--no-{name}"] if bool in (kind, *typing.get_args(kind)) else [f"--{name}"]
            )
    return names
