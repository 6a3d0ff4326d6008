"""Options that set fields of a configuration, in titled groups of a command's help."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from experiments.config_options import given, options_for

Groups = Mapping[str, Mapping[str, str]]
"""Title of a group → option → dotted name of the field that it sets."""


def grouped_options(config: type, groups: Groups, *, default: str) -> type:
    """Makes a dataclass with one of `options_for` in it for each group. default: see there."""
    parts = []
    for title, names in groups.items():
        group = options_for(config, names, default=default)
        titled = Annotated[group, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title)]
        parts.append((_field(title), titled, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("Options", parts, frozen=True)


def given_in_groups(options: Any, groups: Groups) -> dict[str, Any]:
    """Returns the values of the options that were given, under their fields' dotted names."""
    found = {}
    for title, names in groups.items():
        found |= given(getattr(options, _field(title)), names)
    return found


def _field(title: str) -> str:
    return title.replace(" ", "_")
