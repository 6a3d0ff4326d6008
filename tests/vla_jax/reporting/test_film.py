"""Films of an episode in the shaft, whose pictures and A-scans are known."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.vla_jax.evaluation.rollouts import BIN_MM, LAYERS, Shaft, lower, rollout
from vla_jax.contracts.environment import Outcome, Scene
from vla_jax.evaluation.replay import replay
from vla_jax.evaluation.rollout_summary import Trial
from vla_jax.reporting.film import MMODE_MM, make_film, make_films, mmode, ranked

PLENTY = 10**6


def film_of(episode, max_bytes=PLENTY, **settings):
    return make_film("best", episode, replay(Shaft(**settings), episode), max_bytes)


def brightness(webp):
    """Mean of the left picture, which is as wide as high."""
    with Image.open(io.BytesIO(webp)) as image:
        assert image.size == (24, 8)
        return np.asarray(image.convert("L"), float)[:, :8].mean()


def test_each_new_picture_is_a_frame_and_each_tick_has_the_newest():
    film = film_of(lower(0, steps=20))
    assert film.views == ("View1", "View2")
    assert len(film.frames) == 11
    np.testing.assert_array_equal(film.frame_of_tick, np.arange(21) // 2)
    depths = lower(0, steps=20).pose[::2, 2]
    assert [brightness(frame) for frame in film.frames] == pytest.approx(100 + 20 * depths, abs=4)


def test_frames_are_left_out_evenly_when_they_need_too_much():
    whole = film_of(lower(0, steps=20))
    limit = sum(map(len, whole.frames)) // 2
    film = film_of(lower(0, steps=20), limit)
    assert sum(map(len, film.frames)) <= limit
    assert film.frames == whole.frames[::2] or film.frames == whole.frames[::3]
    stride = -(-len(whole.frames) // len(film.frames))
    np.testing.assert_array_equal(film.frame_of_tick, np.arange(21) // 2 // stride)
    assert len(film_of(lower(0), 1).frames) == 1


def test_without_pictures_or_sensor_there_are_none():
    film = film_of(lower(0, has_images=False, has_sensor=False), has_images=False, has_sensor=False)
    assert film.frames == ()
    assert film.ascans is None
    with pytest.raises(ValueError, match="no A-scans"):
        mmode(film, film.rollout.outcome.scene, 0, 1)


def test_the_m_mode_shows_a_layer_at_its_depth_whatever_the_tip_does():
    episode = lower(0, steps=20)
    film, scene = film_of(episode), episode.outcome.scene
    assert film.bin_mm == BIN_MM
    picture = mmode(film, scene, -3.0, 4.0)
    assert picture.shape == (round(7.0 / MMODE_MM), 21)
    depth = -3.0 + (np.arange(len(picture)) + 0.5) * 7.0 / len(picture)
    for tick, tip in enumerate(scene.tip_mm[:, 2]):
        column = picture[:, tick]
        # Nothing above the tip or beyond the sensor's reach.
        assert not column[depth < tip - MMODE_MM].any()
        assert not column[depth > tip + 3.0 + MMODE_MM].any()
        assert column[(depth > tip + MMODE_MM) & (depth < tip + 3.0 - MMODE_MM)].all()
        if LAYERS["floor"] - tip < 2.9:
            assert depth[column.argmax()] == pytest.approx(LAYERS["floor"], abs=BIN_MM + MMODE_MM)


def test_in_air_a_bin_is_deeper():
    episode = lower(0, steps=1, speed=0.0)
    scene = replace(episode.outcome.scene, air_index=2.0)
    picture = mmode(film_of(episode), scene, -3.0, 4.0)
    depth = -3.0 + (np.arange(len(picture)) + 0.5) * 7.0 / len(picture)
    # Two mm of air count as one of the sensor's three.
    assert depth[picture[:, 0] > 0].max() == pytest.approx(2.0, abs=0.1)


def test_episodes_are_ranked_by_success_then_by_the_first_measure():
    episodes = [
        rollout(0, False, "lost", error=None),
        rollout(1, False, "deep", error=1.0),
        rollout(2, error=9.0, time_s=1.0),
        rollout(3, error=4.0, time_s=2.0),
        rollout(4, error=4.0, time_s=2.0),
    ]
    assert [episode.seed for episode in ranked(episodes)] == [3, 4, 2, 1, 0]


@pytest.mark.parametrize(
    ("steps", "titles"),
    [
        ((20, 12, 5), {"worst": 2, "median": 1, "best": 0}),
        ((20, 12), {"worst": 1, "best": 0}),
        ((20,), {"worst": 0}),
    ],
)
def test_the_worst_the_median_and_the_best_are_filmed_once_each(steps, titles):
    trial = Trial("a", [lower(seed, steps=count) for seed, count in enumerate(steps)])
    films = make_films(trial, Shaft(), PLENTY)
    assert {film.title: film.rollout.seed for film in films} == titles


def test_a_scene_without_an_a_scan_s_scale_has_none():
    episode = lower(0)
    scene = Scene(episode.outcome.scene.tip_mm, episode.outcome.scene.force_n, LAYERS)
    bare = replace(episode, outcome=Outcome(True, scene=scene))
    assert film_of(bare).ascans is None
    assert film_of(replace(episode, outcome=Outcome(True))).ascans is None


def test_a_tick_without_sensor_is_dark():
    episode = lower(0, steps=20)
    readings = [
        replace(reading, sensor=None) if tick == 7 else reading
        for tick, reading in enumerate(replay(Shaft(), episode))
    ]
    film = make_film("best", episode, readings, PLENTY)
    assert not film.ascans[7].any()
    assert film.ascans[[6, 8]].all()
