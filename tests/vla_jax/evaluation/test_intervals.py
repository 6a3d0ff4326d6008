"""Against published values, and what holds for any input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.evaluation.intervals import bootstrap_difference, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_is_the_published_one(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_s_interval_holds_the_rate_and_mirrors(case):
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = wilson_interval(trials - successes, trials)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    wider = high - low
    low, high = wilson_interval(4 * successes, 4 * trials)
    assert high - low < wider


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_no_rate_has_no_interval(successes, trials):
    with pytest.raises(ValueError, match="no rate"):
        wilson_interval(successes, trials)


def outcomes(only_a, only_b, both=5, neither=4):
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (1, 7, 0.0703),  # Fagerland et al. (2013), airway hyper-responsiveness
        (0, 5, 2 / 2**5),
        (5, 15, 0.0414),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_s_exact_test(only_a, only_b, p):
    a, b = outcomes(only_a, only_b)
    assert mcnemar_exact(a, b) == pytest.approx(p, abs=5e-5)
    assert mcnemar_exact(b, a) == mcnemar_exact(a, b)


def test_hundreds_of_episodes_do_not_overflow():
    a, b = outcomes(1500, 1500)
    assert mcnemar_exact(a, b) == 1.0
    assert mcnemar_exact(*outcomes(1500, 1000)) < 1e-20


def test_a_bootstrap_covers_a_known_difference_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.normal(scale=5.0, size=60)
        a, b = shared + rng.normal(size=60) + 0.3, shared + rng.normal(size=60)
        low, high = bootstrap_difference(a, b, np.mean, seed=seed)
        covered += low <= 0.3 <= high
        # What both share cancels: the interval is that of noise of √2, not of the spread of 5.
        assert high - low < 6 * np.sqrt(2 / 60)
    # 95 % of 200 are 190, with a deviation of 3.
    assert 178 <= covered <= 199


def test_a_bootstrap_is_a_function_of_its_seed_and_turns_around():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    interval = bootstrap_difference(a, b, np.median, seed=1)
    assert interval == bootstrap_difference(a, b, np.median, seed=1)
    assert interval != bootstrap_difference(a, b, np.median, seed=2)
    turned = bootstrap_difference(b, a, np.median, seed=1)
    assert turned == pytest.approx((-interval.high, -interval.low))
    assert bootstrap_difference(a + 1.0, a, np.median, seed=1) == pytest.approx((1.0, 1.0))


def test_values_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        bootstrap_difference(np.ones(2), np.ones(3), np.mean, seed=0)
