"""Configurations of what heads build on: what is refused, and how."""

import pytest

from vla_jax.contracts.checks import check
from vla_jax.errors import UserError
from vla_jax.models.config import FusionConfig, SensorEncoderConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SensorEncoderConfig(hidden_dim=3), "transformer width 6 is not divisible by 8"),
        (lambda: SensorEncoderConfig(dropout=1.0), "dropout is 1.0"),
    ],
)
def test_impossible_values_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_misspelt_choice_gets_the_closest_one():
    config = FusionConfig()
    # Around the type checker of the tests, which would refuse the value first.
    object.__setattr__(config, "strategy", "crossattention")
    with pytest.raises(
        UserError, match=r"FusionConfig.strategy is 'crossattention'.*did you mean 'cross_attention'"
    ):
        check(config)
