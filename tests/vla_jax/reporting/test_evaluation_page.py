import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.evaluation.metrics import metrics_of_subsets
from vla_jax.reporting.evaluation_page import factor, report_html
from vla_jax.reporting.page import ReportFigure, number, table

VOID = {"meta", "img", "br", "hr", "link", "input"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))


class WellFormed(HTMLParser):
    """Checks that tags nest, and collects every attribute and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    parser = WellFormed()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def metrics_of(samples=20, segments=True, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(samples, 8, 7))
    target[..., 6] = 1
    has_sensor = np.arange(samples) % 2 == 0
    masks = {"align <1>": np.arange(samples) < 5} if segments else {}
    drift = {"final_mm": 1.5, "mean_mm": 1.0, "worst_mm": 2.0, "final_deg": 0.5, "mean_deg": 0.2, "worst_deg": 0.9,
             "episodes": []}  # fmt: skip

    def of(scale):
        return {**metrics_of_subsets(target * scale, target, has_sensor, masks, LAB_ACTIONS), "drift": drift}

    factors = {"overall_mse": 4.0, "motion_mse": 0.5, "overall_mae": 2.0, "first_action_mse": None}
    return {
        **of(0.5),
        "baselines": {name: of(0.0) for name in ("zero", "mean", "previous")},
        "factors": dict.fromkeys(("zero", "mean", "previous"), factors),
        "latency": {"p50_ms": 1.25, "p90_ms": 2.0, "p99_ms": 3.0, "mean_ms": 1.1, "compile_ms": 900.0, "calls": 7,
                    "batch_size": 1, "device": "cpu"},
        "policy": {"checkpoint": "runs/<a>&b", "step": 12, "model_type": "regression", "fusion": "concat"},
        "data": {"path": "data", "split": "val", "episodes": 3, "samples": samples, "action_hz": 10.0,
                 "views": ["View1", "View2"]},
        "features": {"processor": {"size": {"height": 28}}, "adapter": None},
        "versions": {"jax": "0.0"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return report_html(metrics_of(), [ReportFigure("A <figure>", "what & where", PNG)], LAB_ACTIONS)


def test_page_is_well_formed_and_needs_nothing_else(page):
    parser = parse(page)
    for tag, name, value in parser.attributes:
        if name in ("src", "href", "data", "action", "srcset"):
            assert tag == "img"
            assert value.startswith("data:image/png;base64,")
    assert "http" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not re.search(r"<(script|link|iframe|object)", page)


def test_page_says_what_was_measured(page):
    metrics = metrics_of()
    text = " ".join(parse(page).text)
    assert "egression policy, fusion concat, step 12" in text
    assert "20 samples of 3 episodes" in text
    for value in (
        metrics["overall_mse"],
        metrics["baselines"]["zero"]["overall_mse"],
        metrics["mae_per_dim"][2],
    ):
        assert number(value) in text
    for phrase in ("align <1>", "runs/<a>&b", "A <figure>", "what & where", "View1, View2", "size height 28"):
        assert phrase in text
    assert "1.25" in text
    assert "NaN" not in text
    assert "None" not in text


def test_the_page_leads_with_motion_and_marks_what_is_worse_than_a_mean():
    metrics = metrics_of()
    metrics["r2_per_dim"] = [0.5, -0.25, -52.0, 0.1, 0.2, 0.3, None]
    metrics["intervals"] = {"position_rmse": [0.5, 0.75], "angle_rmse": None}
    metrics["training"] = {"recipe": "small", "seed": 5, "optimizer.lr": 0.001}
    page = report_html(metrics, [], LAB_ACTIONS)
    cards = page.split('<div class="cards">')[1].split("<section>")[0]
    length = (3 * metrics["translation_mse"]) ** 0.5
    assert cards.index("position error") < cards.index("angle error") < cards.index("better than")
    assert f"<b>{number(length)} mm</b>" in cards
    assert "95 % interval over episodes 0.5 to 0.75" in cards
    assert "overall" not in cards
    assert '<td class="bad">-0.25</td>' in page
    assert '<td class="bad">below −1</td>' in page
    assert "-52" not in page
    text = " ".join(parse(page).text)
    for phrase in ("optimizer.lr 0.001", "seed 5", "angle error, RMS [°]"):
        assert phrase in text


def test_data_without_segments_or_sensor_has_a_report():
    metrics = metrics_of(segments=False)
    assert "Segments" not in report_html(metrics, [], LAB_ACTIONS)
    empty = metrics_of()
    for entry in (empty, *empty["baselines"].values()):
        entry["subsets"]["with_sensor"] = {**entry["subsets"]["with_sensor"], "samples": 0, "motion_mse": None,
                                           "overall_mse": None, "overall_mae": None}  # fmt: skip
    parse(report_html(json.loads(json.dumps(empty)), [], LAB_ACTIONS))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (12, "12"), (0.123456, "0.123"), (1234.5, "1234"), (1.5e-6, "1.50e-06"),
     (99999.0, "99999"), (3.2e7, "3.20e+07"), (-0.5, "-0.5"), (1000.0, "1000")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_factor_is_green_where_the_policy_is_better():
    assert factor(2.0).style == "good"
    assert factor(0.5).style == "bad"
    assert factor(None).text == "–"


def test_table_escapes():
    assert "<b>" not in table(("a", "b"), [["<b>", "<b>"]])
