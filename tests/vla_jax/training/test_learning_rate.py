"""Learning rates against those the reference used, update by update."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.paths import PARITY
from vla_jax.training.learning_rate import rewarm, trapezoid

CASES = json.loads((PARITY / "lr_schedules.json").read_text())


def in_group(rates, group_ratio):
    """The reference's scheduler writes its own rate for update 0 and scales each group's rate from then on."""
    return np.concatenate([rates[:1], rates[1:] * group_ratio])


@pytest.mark.parametrize(
    "case", CASES["trapezoid"], ids=lambda case: f"{case['total_steps']}-{case['warmup_ratio']}"
)
def test_trapezoid_equals_the_reference(case):
    rates = trapezoid(
        np.arange(len(case["lrs"])),
        total_updates=case["total_steps"],
        peak=case["base_lr"],
        minimum=case["min_lr"],
        warmup_ratio=case["warmup_ratio"],
        hold_ratio=case["hold_ratio"],
    )
    np.testing.assert_allclose(
        in_group(rates, case["optimizer_lr"] / case["base_lr"]), case["lrs"], rtol=1e-12
    )


@pytest.mark.parametrize(
    "case", CASES["rewarm"], ids=lambda case: f"{case['total_steps']}-{case['warmup_ratio']}"
)
def test_rewarm_equals_the_reference(case):
    rates = rewarm(
        np.arange(len(case["lrs"])),
        total_updates=case["total_steps"],
        previous=case["prev_lr"],
        peak=case["target_lr"],
        minimum=case["min_lr"],
        warmup_ratio=case["warmup_ratio"],
        hold_ratio=case["hold_ratio"],
    )
    left = case["initial_lr_left_by_earlier_scheduler"] or case["target_lr"]
    np.testing.assert_allclose(in_group(rates, left / case["target_lr"]), case["lrs"], rtol=1e-12)


def test_inside_jit_the_rates_are_those_of_the_host():
    options = {"total_updates": 200, "peak": 1e-4, "minimum": 1e-6, "warmup_ratio": 0.1, "hold_ratio": 0.3}
    updates = np.arange(200)
    compiled = jax.jit(lambda update: trapezoid(update, xp=jnp, **options))(jnp.asarray(updates))
    np.testing.assert_allclose(compiled, trapezoid(updates, **options), rtol=2e-5)
