"""Configurations as JSON: what is written comes back, and everything else is named, all at once."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.contracts.checks import Count, NotNegative, Share, check, problem
from vla_jax.errors import UserError
from vla_jax.storage import config_json


@dataclass(frozen=True)
class Inner:
    rate: NotNegative = 0.5
    kind: Literal["a", "bee"] = "a"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outer:
    count: Count
    inner: Inner = field(default_factory=Inner)
    share: Share = 0.0
    name: str | None = None
    width: Count | None = None
    pairs: tuple[float, ...] = ()
    flag: bool = False
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)
        if self.width is not None and self.width < self.count:
            raise UserError("Outer: width is less than count")


def read(**values):
    return config_json.from_json(Outer, json.dumps(values), source="FILE")


def test_what_is_written_comes_back():
    config = Outer(3, Inner(2, "bee"), 0.25, "x", 4, (1.0, 2.5), True, {"deep": [1, {"a": None}]})
    assert config_json.from_json(Outer, config_json.to_json(config)) == config
    # A whole number will do for a float, and becomes one.
    assert isinstance(read(count=1, share=0).share, float)


def test_all_faults_are_named_at_once():
    with pytest.raises(UserError) as caught:
        read(count=1.5, inner={"rate": -1, "kind": "be", "rat": 3}, share=1, name=3, pairs=[1, "x"], flag=1)
    told = str(caught.value)
    assert told.startswith("FILE: does not describe a Outer: ")
    assert told.split(": ", 2)[2].split("; ") == [
        "count is 1.5",
        "it must be a whole number, at least 1",
        "inner.rate is -1",
        "it must be 0 or more",
        "inner.kind is 'be'",
        "choose one of a, bee",
        "did you mean 'bee'?",
        "inner.rat is unknown",
        "did you mean rate?",
        "share is 1",
        "it must be in [0, 1)",
        "name is 3",
        "it must be a text",
        "pairs[1] is 'x'",
        "it must be a number",
        "flag is 1",
        "it must be true or false",
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "count is missing"),
        ({"count": None}, "count is None; it must be a whole number"),
        ({"count": True}, "count is True"),
        ({"count": 10**40}, "count is 1000.*characters.*; it must be at most 2147483647"),
        ({"count": 1, "inner": [1]}, "inner is a list; it must be an object"),
        ({"count": 1, "pairs": {"a": 1}}, "pairs is an object; it must be a list"),
        ({"count": 1, "free": 3}, "free is 3; it must be an object"),
        ({"count": 3, "width": 2}, "Outer: width is less than count"),
        ({"count": 1, "share": float("nan")}, "share is nan"),
        ({"count": 1, "inner": {"rate": float("inf")}}, "inner.rate is inf"),
    ],
)
def test_one_fault_is_named(values, told):
    with pytest.raises(UserError, match=told):
        read(**values)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional={entry.name: JSON for entry in dataclasses.fields(Outer)}) | JSON)
def test_whatever_the_values_are_there_is_a_configuration_or_one_line(values):
    try:
        built = config_json.from_plain(Outer, values)
    except UserError as error:
        assert "does not describe a Outer" in str(error)  # noqa: PT017
    else:
        assert dataclasses.replace(built) == built


@given(st.integers() | st.floats() | st.booleans() | st.text() | st.none())
def test_a_count_is_a_whole_number_in_its_range(value):
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
    assert (problem(Count, value) is None) is fits


def test_a_dataclass_refuses_all_that_does_not_fit_at_once():
    with pytest.raises(
        UserError, match=r"Inner.rate is -1; it must be 0 or more; Inner.kind is 'c'; choose one of"
    ):
        Inner(-1, "c")
