"""The closed-loop report: its files, its page, its figures."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.vla_jax.evaluation.rollouts import ACTIONS, Shaft, lower, rollout
from tests.vla_jax.reporting.test_evaluation_page import parse
from vla_jax.errors import UserError
from vla_jax.evaluation.rollout_summary import Trial, rollout_json
from vla_jax.reporting.film import make_films
from vla_jax.reporting.rollout_page import rollout_html
from vla_jax.reporting.rollout_plots import example_of, failure_reasons, measure_label
from vla_jax.reporting.rollout_report import rollout_arrays, write_rollouts
from vla_jax.reporting.rollout_tables import measures_of

CHECKPOINT = {"path": "runs/<a>", "step": 300}


def trials():
    good = [lower(seed, steps=20) for seed in (2, 0, 1)]
    mixed = [lower(seed, steps=20 if seed else 14) for seed in range(3)]
    return [Trial("<good>", good, CHECKPOINT), Trial("mixed", mixed, CHECKPOINT)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    films = {trial.name: make_films(trial, Shaft(), 10**5) for trial in trials()}
    return out, write_rollouts(out, trials(), ACTIONS, {"episodes": 3, "seed": 0}, films)


def test_the_files_are_there_and_agree(written):
    out, content = written
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "rollout.json", "rollouts.npz"]
    stored = json.loads((out / "rollout.json").read_text())
    assert stored == content
    assert [run["success"]["rate"] for run in stored["runs"]] == [1.0, pytest.approx(2 / 3)]
    assert stored["runs"][1]["failures"] == {"not_there": 1}
    with np.load(out / "rollouts.npz") as arrays:
        assert arrays["success"].sum() == 5


def test_the_arrays_hold_every_tick_of_every_episode():
    arrays = rollout_arrays(trials())
    assert arrays["run"].tolist() == ["<good>", "mixed"]
    assert arrays["trial"].tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays["seed"].tolist() == [0, 1, 2, 0, 1, 2]
    assert arrays["failure"].tolist() == ["", "", "", "not_there", "", ""]
    assert (arrays["tick_end"] - arrays["tick_begin"]).tolist() == [21, 21, 21, 15, 21, 21]
    for trial in trials():
        for episode in trial.rollouts:
            row = np.flatnonzero(
                (arrays["run"][arrays["trial"]] == trial.name) & (arrays["seed"] == episode.seed)
            )[0]
            ticks = slice(arrays["tick_begin"][row], arrays["tick_end"][row])
            np.testing.assert_array_equal(arrays["pose"][ticks], episode.pose)
            np.testing.assert_array_equal(arrays["action"][ticks][:-1], episode.actions)
            assert np.isnan(arrays["action"][ticks][-1]).all()
            np.testing.assert_array_equal(arrays["tip_mm"][ticks], episode.outcome.scene.tip_mm)
            assert arrays["stop_mm"][row] == episode.outcome.scene.layers_mm["stop"]
            decided = arrays["decision_tick"][arrays["decision_episode"] == row]
            np.testing.assert_array_equal(decided, episode.decision_tick)
    assert arrays["measure_depth_error_um"] == pytest.approx([0, 0, 0, 1200, 0, 0], abs=1e-6)


def test_what_an_environment_does_not_tell_is_nan():
    arrays = rollout_arrays([Trial("a", [rollout(0, error=None, stopped=True), rollout(1, error=2.0)])])
    np.testing.assert_array_equal(arrays["measure_error"], [np.nan, 2.0])
    np.testing.assert_array_equal(arrays["measure_stopped"], [1.0, np.nan])
    assert np.isnan(arrays["tip_mm"]).all()
    assert arrays["tip_mm"].shape == (10, 3)
    assert np.isnan(arrays["stop_mm"]).all()


def test_the_page_needs_nothing_else_and_escapes_names(written):
    page = (written[0] / "report.html").read_text()
    assert "<good>" not in page
    assert "runs/<a>" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert not re.search(r"(?:fetch|import|XMLHttpRequest|url)\(", page)
    parser = parse(page)
    text = "".join(parser.text)
    for shown in ("&lt;good&gt;", "mixed", "67 %", "not there"):
        assert shown in page or shown in text
    images = re.findall(r"data:image/png;base64,([^\"]+)", page)
    # Distribution, both paths, and where the one failure went wrong.
    assert len(images) == 4


def test_a_report_is_written_whole_or_not_at_all(written, tmp_path):
    page = tmp_path / "report.html"
    page.mkdir()  # what cannot be replaced by a file
    with pytest.raises(UserError, match="cannot write the report"):
        write_rollouts(tmp_path, trials(), ACTIONS, {}, {})
    assert not (tmp_path / "rollout.json").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def page_of(parts, **films):
    return rollout_html(rollout_json(parts, ACTIONS, {}), parts, films)


def titles(page):
    return re.findall(r"<h2>([^<]*)</h2>", page)


def test_figures_appear_with_what_they_compare():
    episodes = [rollout(seed, seed > 0, None if seed else "lost", error=seed * 1.0) for seed in range(4)]
    nominal = Trial("a", episodes)
    late = Trial("a", episodes, feature_latency_s=0.4)
    dark = Trial("a", episodes, shift="dark")
    latency, shift = "Success against the age of features", "Success by shift"
    assert not {latency, shift, "Compared on the same seeds"} & set(titles(page_of([nominal])))
    assert latency in titles(page_of([nominal, late]))
    assert shift not in titles(page_of([nominal, late]))
    assert shift in titles(page_of([nominal, dark]))
    assert latency not in titles(page_of([nominal, dark]))
    both = page_of([nominal, late, dark, Trial("b", episodes)])
    assert {latency, shift, "Compared on the same seeds"} <= set(titles(both))
    parse(both)


@pytest.mark.parametrize(
    "episode",
    [rollout(0), rollout(0, False, "lost", error=None), rollout(0, False, None), lower(0, steps=3)],
    ids=["bare", "undefined", "not named", "short"],
)
def test_one_episode_of_any_kind_makes_a_page(episode):
    page = page_of([Trial("a", [episode])])
    parse(page)
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page)


def test_failures_are_named_by_frequency_with_an_example_in_their_middle():
    short = [lower(seed, steps=steps) for seed, steps in enumerate((3, 9, 15))]
    other = rollout(7, False, "lost")
    reasons = failure_reasons([other, *short, lower(9)])
    assert list(reasons) == ["not_there", "lost"]
    # They stopped 3.4, 2.2 and 1.0 mm before.
    assert example_of(reasons["not_there"]).seed == 1
    page = page_of([Trial("a", [other, *short])])
    assert re.search(r"not there</th><td class=\"strong\">3</td><td>1</td><td>2\.2", page)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("depth_error_um", "depth error [µm]"),
        ("peak_force_n", "peak force [N]"),
        ("time_s", "time [s]"),
        ("chunk_jump", "chunk jump"),
        ("jerk", "jerk"),
        ("s", "s"),
    ],
)
def test_measures_are_named_with_their_units(name, label):
    assert measure_label(name) == label


def test_measures_that_are_counted_are_no_columns():
    content = rollout_json([Trial("a", [rollout(0, error=1.0, stopped=True)])], ACTIONS, {})
    assert measures_of(content["runs"][0]) == ["error", "time_s", "chunk_jump"]


def test_figures_are_pictures_of_one_width(written):
    import base64

    page = (written[0] / "report.html").read_text()
    for encoded in re.findall(r"data:image/png;base64,([^\"]+)", page):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert image.width == 1350
            assert len(image.convert("RGB").getcolors(10**6)) > 10
