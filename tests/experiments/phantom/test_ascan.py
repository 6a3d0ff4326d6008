"""The A-scan: depth axis, attenuation, speckle, interfaces, recorded range."""

import numpy as np
import pytest

from experiments.phantom.ascan import (
    BEAM_RADIUS_MM,
    BIN_MM,
    FLOOR_VALUE,
    NUM_BINS,
    VALUE_PER_DB,
    VALUE_RANGE,
    AscanModel,
    instrument_power,
    optical_mm,
    recorded_values,
)
from experiments.phantom.tissue import GEL, GEL_INDEX, TARGET, TissueLayers

LAYERS = TissueLayers(membrane_mm=2.0, target_mm=6.0)


def scans(tip_mm, *, seed=0, sideways_mm=0.0, membrane_mm=LAYERS.membrane_mm, layers=LAYERS):
    """Tissue power without the instrument's fixed lines, [t, 1025]."""
    tip = np.atleast_1d(np.asarray(tip_mm, dtype=float))
    model = AscanModel(layers, np.random.default_rng(seed))
    return model.power(tip, np.full(tip.shape, membrane_mm), sideways_mm) - instrument_power()


def correlation(a, b):
    return np.corrcoef(np.log(a), np.log(b))[0, 1]


def test_shape_and_type():
    power = AscanModel(LAYERS, np.random.default_rng(0)).power(np.linspace(0, 0.1, 65), np.full(65, 2.0), 0.0)
    assert power.shape == (65, NUM_BINS)
    assert power.dtype == np.float32


@pytest.mark.parametrize("tip", [2.5, 4.0, 5.5])
def test_the_target_appears_at_its_distance_from_the_tip(tip):
    front = int(np.argmax(scans(tip)[0, 20:] > 500)) + 20  # nothing before it is this bright in gel
    assert front * BIN_MM == pytest.approx(6.0 - tip, abs=0.02)


def test_a_distance_in_air_appears_shorter_by_the_refractive_index():
    surface = int(np.argmax(scans(-3.0)[0]))
    assert surface * BIN_MM == pytest.approx(3.0 / GEL_INDEX, abs=BIN_MM)
    np.testing.assert_allclose(optical_mm([-1.36, 0.0, 1.36]), [-1.0, 0.0, 1.36])


def test_the_membrane_appears_where_it_is_and_at_the_tip_while_it_is_pushed():
    peak = np.argmax(scans(1.0)[0, :300])
    assert peak * BIN_MM == pytest.approx(1.0, abs=BIN_MM)
    pushed = scans(2.3, membrane_mm=2.3)[0]
    assert np.argmax(pushed[:300]) == 0
    behind = scans(2.3, membrane_mm=2.0)[0]
    assert behind[:10].max() < pushed[0] / 10


def test_mean_power_falls_exponentially_as_beer_and_lambert_say():
    """Mean of many independent phantoms, corrected for the fibre's collection, against exp(-2 mu z)."""
    tip, first, last = 6.05, 40, 200  # inside the target layer, clear of both faces
    mean = np.mean([scans(tip, seed=seed)[0, first:last] for seed in range(120)], axis=0)
    depth = np.arange(first, last) * BIN_MM
    corrected = mean * (1 + (depth / 1.4) ** 2)
    slope, intercept = np.polyfit(depth, np.log(corrected), 1)
    assert slope == pytest.approx(-2 * TARGET.attenuation_per_mm, rel=0.1)
    assert intercept == pytest.approx(TARGET.backscatter_db * np.log(10) / 10, abs=0.1)


def test_light_is_lost_in_the_layers_in_front():
    """The same bins of target layer, seen through 1 mm more of gel, lose exp(-2 mu) and the collection's fall."""
    near = np.mean([scans(5.0, seed=s)[0, 220:400].mean() for s in range(40)])
    far = np.mean([scans(4.0, seed=s)[0, 420:600].mean() for s in range(40)])
    collection = (1 + (1.55 / 1.4) ** 2) / (1 + (2.55 / 1.4) ** 2)
    assert far / near == pytest.approx(np.exp(-2 * GEL.attenuation_per_mm) * collection, rel=0.1)


def test_speckle_is_fully_developed():
    """Rayleigh amplitude: the intensity is exponentially distributed, so its contrast is 1."""
    tip, bins = 6.05, slice(60, 180, 10)
    intensity = np.array([scans(tip, seed=seed)[0, bins] for seed in range(200)])
    intensity /= intensity.mean(axis=0)
    assert intensity.std() == pytest.approx(1.0, abs=0.1)
    assert np.mean(intensity < np.log(2)) == pytest.approx(0.5, abs=0.04)  # the median of exp(-x)


def test_pushing_slides_the_same_speckle_towards_the_tip():
    before, after = scans([2.5, 2.5 + 40 * BIN_MM])
    shifted = before[140:440] / after[100:400]
    # The same scatterers: the ratio is smooth (attenuation and collection), not speckled.
    assert np.abs(np.diff(np.log(shifted))).max() < 0.05


def test_moving_sideways_replaces_the_speckle_but_not_the_interfaces():
    here, near, far = (
        scans(2.5, sideways_mm=x)[0] for x in (0.0, 0.05 * BEAM_RADIUS_MM, 0.5 * np.pi * BEAM_RADIUS_MM)
    )
    gel = slice(100, 600)
    assert correlation(here[gel], near[gel]) > 0.9
    assert abs(correlation(here[gel], far[gel])) < 0.5
    face = round((LAYERS.target_back_mm - 2.5) / BIN_MM)
    assert face + 1 >= np.argmax(far[face - 40 :]) + face - 40 >= face - 1


def test_recorded_values_are_logarithmic_with_a_noise_floor():
    power = np.full((200, NUM_BINS), 1e4, np.float32)
    values = recorded_values(power, 1.0, 0.0, 2.2, np.random.default_rng(0))
    assert values.mean() == pytest.approx(FLOOR_VALUE + VALUE_PER_DB * 40, abs=0.5)
    floor = recorded_values(np.zeros((200, NUM_BINS), np.float32), 1.0, 3.0, 2.2, np.random.default_rng(0))
    assert floor.mean() == pytest.approx(FLOOR_VALUE + 3.0, abs=0.5)
    assert 4 < floor.std() < 14


def test_recorded_values_stay_in_the_recorded_range_and_noise_is_fresh():
    model = AscanModel(LAYERS, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    rows = np.concatenate(
        [
            recorded_values(model.power(np.full(65, tip), np.full(65, 2.0), 0.0), 1.05, 4.0, 2.2, rng)
            for tip in (-8.0, -1.0, 1.0, 3.0, 5.5, 6.3)
        ]
    )
    assert rows.min() >= VALUE_RANGE[0]
    assert rows.max() == VALUE_RANGE[1]  # the end face saturates, as in the recordings
    assert 30 < rows.mean() < 80
    assert not np.array_equal(rows[0], rows[1])


def test_far_above_the_phantom_only_the_instrument_is_seen():
    assert scans(-200.0)[0].max() == pytest.approx(0.0, abs=1e-2)
