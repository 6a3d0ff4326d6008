"""Which rate each parameter group gets at each update."""

import dataclasses

import numpy as np
import pytest

from vla_jax.errors import UserError
from vla_jax.training.config import OptimizerConfig, Rewarm
from vla_jax.training.learning_rate import rewarm, trapezoid
from vla_jax.training.optimizer import make_schedule

CONFIG = OptimizerConfig(lr=1e-3, sensor_lr=2e-3, min_lr=1e-5, warmup_ratio=0.1, hold_ratio=0.2)
UPDATES = np.arange(100)


def rates(config, group="expert", total=100, updates=UPDATES):
    schedule = make_schedule(config, group, total)
    return np.array([schedule(int(update)) for update in updates])


def expected(function, config, peak, total=100, updates=UPDATES, **options):
    shape = {"warmup_ratio": config.warmup_ratio, "hold_ratio": config.hold_ratio} | options
    return function(updates, total_updates=total, peak=peak, minimum=config.min_lr, **shape)


def test_groups_have_their_own_peaks():
    np.testing.assert_allclose(rates(CONFIG), expected(trapezoid, CONFIG, 1e-3), rtol=1e-5)
    np.testing.assert_allclose(rates(CONFIG, "encoder"), expected(trapezoid, CONFIG, 2e-3), rtol=1e-5)


def test_cosine_has_no_hold_and_constant_no_shape():
    cosine = dataclasses.replace(CONFIG, schedule="cosine")
    np.testing.assert_allclose(rates(cosine), expected(trapezoid, CONFIG, 1e-3, hold_ratio=0.0), rtol=1e-5)
    assert rates(cosine).argmax() in (9, 10)
    constant = dataclasses.replace(CONFIG, schedule="constant")
    np.testing.assert_allclose(rates(constant), 1e-3)


def test_a_schedule_that_goes_by_epochs_keeps_each_rate_for_one():
    by_epoch = dataclasses.replace(CONFIG, schedule_interval=10)
    found = rates(by_epoch).reshape(10, 10)
    assert (found == found[:, :1]).all()
    np.testing.assert_allclose(
        found[:, 0], expected(trapezoid, CONFIG, 1e-3, total=10, updates=np.arange(10)), rtol=1e-5
    )


def test_a_second_warm_up_begins_at_the_rate_where_the_run_stopped():
    again = dataclasses.replace(CONFIG, rewarm=Rewarm(step=40, lr=3e-4, sensor_lr=6e-4))
    for group, peak, previous in (("expert", 1e-3, 3e-4), ("encoder", 2e-3, 6e-4)):
        found = rates(again, group, total=140, updates=np.arange(40, 140))
        np.testing.assert_allclose(found, expected(rewarm, CONFIG, peak, previous=previous), rtol=1e-5)
        assert found[0] == pytest.approx(previous)
        assert found.max() == pytest.approx(peak)


@pytest.mark.parametrize("wrong", [{"schedule": "linear"}, {"schedule_interval": 0}, {"lr": 0.0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError):
        dataclasses.replace(CONFIG, **wrong)
