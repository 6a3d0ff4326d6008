"""What the page's program is given, and what stands without it."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.vla_jax.evaluation.rollouts import LAYERS, Shaft, lower, rollout
from tests.vla_jax.reporting.test_evaluation_page import parse
from vla_jax.evaluation.replay import replay
from vla_jax.reporting.film import make_film
from vla_jax.reporting.film_player import SCRIPT, film_html
from vla_jax.reporting.film_svg import BOTTOM, TOP, DepthAxis


def film_of(episode, title="best", **settings):
    return make_film(title, episode, replay(Shaft(**settings), episode), 10**6)


def data_of(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_a_film_has_everything_for_each_tick():
    episode = lower(0, steps=20)
    film = film_of(episode)
    text = film_html(film)
    data = data_of(text)
    assert data["rate"] == pytest.approx(10)
    assert data["time"] == pytest.approx(episode.time_s)
    assert [base64.b64decode(frame) for frame in data["frames"]] == list(film.frames)
    assert max(data["frame"]) == len(data["frames"]) - 1
    assert all(len(texts) == 21 for texts in data["readings"])
    ascan = data["ascan"]
    values = np.frombuffer(base64.b64decode(ascan["values"]), np.uint8).reshape(21, -1)
    np.testing.assert_array_equal(values, film.ascans)
    assert ascan["start"] == pytest.approx(episode.outcome.scene.tip_mm[:, 2])
    # As many rows as the program finds to write in, and a point of each moving path for each tick.
    assert text.count("<dd>") == len(data["readings"])
    trails = re.findall(r'class="trail" points="([^"]*)"', text)
    assert [len(points.split(" ")) for points in trails] == [21, 21, 21]


def test_every_class_that_the_program_looks_for_is_there():
    text = film_html(film_of(lower(0)))
    for name in set(re.findall(r'querySelector(?:All)?\("[^"]*\.([a-z]+)', SCRIPT)) - {"film"}:
        assert f'class="{name}"' in text, name


def test_without_the_program_the_last_tick_stands():
    film = film_of(lower(0, steps=20))
    text = film_html(film)
    parse(text)
    assert "<dd>2.0 s</dd>" in text
    assert "<dd>past the membrane</dd>" in text
    assert 'aria-label="time"' in text
    last = base64.b64encode(film.frames[-1]).decode()
    assert f'src="data:image/webp;base64,{last}"' in text


def test_names_stay_text():
    for title in ("</script><b>", 'a" onload="x'):
        text = film_html(film_of(lower(0), title))
        parse(text)
        assert title not in text
    episode = lower(0)
    scene = replace(episode.outcome.scene, layers_mm={**LAYERS, "</script><i>": 1.5})
    text = film_html(film_of(replace(episode, outcome=replace(episode.outcome, scene=scene))))
    parse(text)
    assert "past the </script><i>" in data_of(text)["readings"][2]
    assert "<i>" not in text
    assert "&lt;i&gt;" in text


def test_a_film_without_a_scene_sensor_or_pictures_still_plays():
    bare = rollout(4, False, "got_lost")
    text = film_html(make_film("worst", bare, [], 10))
    parse(text)
    assert "got lost" in text
    data = data_of(text)
    assert "ascan" not in data
    assert len(data["readings"]) == 1
    assert "<svg" not in text
    assert "<img" not in text


def test_layers_tip_and_picture_share_one_axis_of_depth():
    scene = lower(0).outcome.scene
    axis = DepthAxis(scene)
    assert axis(axis.top_mm) == TOP
    assert axis(axis.bottom_mm) == BOTTOM
    assert (np.diff(axis(np.array([-2.0, 0.0, 1.0, 3.0]))) > 0).all()
    assert axis(-100.0) == TOP
    text = film_html(film_of(lower(0)))
    for depth in LAYERS.values():
        # In the A-scans' drawing and in both sides of the path.
        assert len(re.findall(f'class="(?:stop|layer)" [^>]*y1="{axis(depth):.1f}"', text)) == 3
