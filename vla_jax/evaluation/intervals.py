"""How sure a figure over episodes is: intervals of 95 %, and a test of two policies on the same episodes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Z_95 = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above it."""
RESAMPLES = 2000


class Interval(NamedTuple):
    """Both ends of a 95 % interval."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Interval:
    """Returns Wilson's score interval of a rate (Wilson, JASA 22, 1927; Newcombe, Stat. Med. 17, 1998, method 3).

    Unlike rate ± error it stays within 0 and 1, and says something of rates of 0 and 1.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials have no rate")
    rate, share = successes / trials, Z_95**2 / trials
    centre = (rate + share / 2) / (1 + share)
    half = Z_95 / (1 + share) * math.sqrt(rate * (1 - rate) / trials + share / (4 * trials))
    # Exact where every trial has ended alike; rounding would leave 1e-17.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


def mcnemar_exact(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> float:
    """Returns the two-sided p of McNemar's exact test: that a and b succeed equally often on the same episodes.

    Of the episodes that only one of them passes, each is as likely to be a's as b's: a binomial with one half
    (McNemar, Psychometrika 12, 1947; exact and conditional, as in Fagerland et al., BMC Med. Res. Methodol. 13, 2013).
    """
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def bootstrap_difference(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    statistic: Callable[..., np.ndarray],
    *,
    seed: int,
) -> Interval:
    """Returns the interval of statistic(a) − statistic(b) over pairs (percentiles of the bootstrap, Efron and
    Tibshirani, 1993, chapter 13): pairs are drawn anew together, so that what makes an episode hard for both counts
    for neither.

    statistic: called as np.mean and np.median are, with `axis`.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    rows = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    differences = statistic(a[rows], axis=1) - statistic(b[rows], axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Interval(float(low), float(high))
