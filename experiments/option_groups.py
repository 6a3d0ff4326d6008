"""Options that set fields of a configuration, in titled groups of a command's help."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from experiments.config_options import given, options_for

Groups = Mapping[str, Mapping[str, str]]
"""Title of a group → option → dotted name of the field that it sets."""


def grouped_options(
    config: type, groups: Groups, *, default: str | None = None, values: Mapping[str, str] | None = None
) -> type:
    """Makes a dataclass with one of `options_for` in it for each group. default, values: see there."""
    made = {
        title: options_for(config, names, default=default, values=values) for title, names in groups.items()
    }
    return in_groups(made)


def in_groups(options: Mapping[str, type]) -> type:
    """Makes a dataclass of several, each with its options under its title."""
    parts = [
        (
            _field(title),
            Annotated[group, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title)],
            dataclasses.field(default_factory=group),
        )
        for title, group in options.items()
    ]
    return dataclasses.make_dataclass("Options", parts, frozen=True)


def given_in_groups(options: Any, groups: Groups) -> dict[str, Any]:
    """Returns the values of the options that were given, under their fields' dotted names."""
    found = {}
    for title, names in groups.items():
        found |= given(group_of(options, title), names)
    return found


def group_of(options: Any, title: str) -> Any:
    """Returns the options of one group."""
    return getattr(options, _field(title))


def _field(title: str) -> str:
    return title.replace(" ", "_")
