import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec
from vla_jax.evaluation.drift import Drift
from vla_jax.evaluation.metrics import action_metrics
from vla_jax.reporting.evaluation_plots import (
    Trace,
    _layered,
    age_figure,
    drift_figure,
    horizon_figure,
    scatter_figure,
    trace_figure,
)
from vla_jax.reporting.style import STYLE


def picture(drawing):
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, dpi=150)
    image = Image.open(buffer).convert("RGB")
    assert image.width > 1000
    return np.asarray(image).reshape(-1, 3)


def has_colour(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels - wanted).max(axis=1) < 8).any()


def trace(length=30, segments=(("align", 0.0, 1.0), ("hold", 2.0, 9.0))):
    time = np.arange(length) / 10
    wave = np.sin(time)[:, None] * np.ones(7)
    return Trace("episode\nsecond line", time, wave, wave + 0.2, tuple(segments))


@pytest.mark.parametrize("traces", [[trace()], [trace(), trace(12, ()), trace(1)]])
def test_traces(traces):
    pixels = picture(trace_figure(traces, LAB_ACTIONS))
    assert has_colour(pixels, "#2563eb")
    assert has_colour(pixels, "#111827")


def test_horizon_draws_the_policy_and_each_baseline():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(10, 8, 7))
    metrics = {name: action_metrics(target * scale, target, LAB_ACTIONS) for name, scale in
               (("policy", 0.9), ("zero", 0.0), ("mean", 0.3), ("previous", 0.6))}  # fmt: skip
    pixels = picture(horizon_figure(metrics))
    for colour in ("#2563eb", "#9ca3af", "#d97706", "#059669"):
        assert has_colour(pixels, colour)


def test_drift():
    drifts = [Drift(i, 20 + i, np.linspace(0, 1 + i, 20 + i), np.linspace(0, 1, 20 + i)) for i in range(3)]
    assert has_colour(picture(drift_figure(drifts, 10.0)), "#111827")
    picture(drift_figure([Drift(0, 1, np.ones(1), np.zeros(1))], 10.0))


def test_scatter_of_many_points_and_of_constant_dimensions():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(900, 8, 7))
    target[..., 5] = 0
    picture(scatter_figure(target * 0.9, target, [0.99] * 5 + [None, None], LAB_ACTIONS))


def test_actions_of_another_arm_are_drawn():
    actions = ActionSpec(("j1", "grip"), ("deg", ""), horizon=8, rate_hz=10.0)
    target = np.random.default_rng(0).normal(size=(9, 8, 2))
    picture(scatter_figure(target, target, [0.9, 0.9], actions))
    time = np.arange(9) / 10
    picture(trace_figure([Trace("title", time, target[:, 0], target[:, 0], ())], actions))
    picture(drift_figure([Drift(0, 9, None, np.ones(9))], 10.0))
    metrics = action_metrics(target, target, actions)
    picture(horizon_figure({"policy": metrics}))


def test_a_drawing_is_an_svg_a_pdf_and_a_part_of_a_page_in_its_colours():
    target = np.random.default_rng(0).normal(size=(900, 8, 7))
    drawing = scatter_figure(target, target, [0.9] * 7, LAB_ACTIONS)
    file = drawing.svg()
    ElementTree.fromstring(file)
    assert file == drawing.svg()
    assert "#2563eb" in trace_figure([trace()], LAB_ACTIONS).svg()
    assert drawing.pdf().startswith(b"%PDF")
    # Thousands of points are one picture in it.
    assert len(file) < 500_000
    part = drawing.inline()
    assert "recorded" in part
    assert not re.search(r"<\?xml|DOCTYPE|xmlns|#111827|#ffffff", part)
    assert not re.search(r"<svg[^>]* (width|height)=", part)
    assert "viewBox" in part
    names = set(re.findall(r"var\(--(\w+)\)", part + trace_figure([trace()], LAB_ACTIONS).inline()))
    assert {"ink", "blue", "grey", "line", "card"} <= names
    daylight, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    assert all(f"--{name}:" in daylight and f"--{name}:" in dark.split("} }")[0] for name in names)


def test_drawing_leaves_no_global_state():
    trace_figure([trace()], LAB_ACTIONS)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_segments_that_lie_in_others_are_bands():
    segments = (("insert", 0.0, 4.0), ("near_target", 3.0, 5.0), ("hold", 4.0, 6.0), ("shaky", 3.9, 7.0))
    assert [is_nested for *_, is_nested in _layered(segments)] == [False, False, False, True]
    segments = (("insert", 0.0, 4.0), ("near_target", 2.5, 4.5), ("hold", 4.0, 6.0))
    assert [is_nested for *_, is_nested in _layered(segments)] == [False, True, False]


def test_errors_against_age_are_lengths_in_their_units():
    by_age = [
        {
            "feature_age_s": age,
            "translation_mse": (age + 1) ** 2 / 3,
            "rotation_mse": None,
            "overall_mse": 1.0,
        }
        for age in (0.1, 0.9)
    ]
    (axis,) = age_figure(by_age, LAB_ACTIONS).figure.axes
    assert axis.get_ylabel() == "position error, RMS [mm]"
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0.1, 1.1], [0.9, 1.9]])
