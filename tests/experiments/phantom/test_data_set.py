"""Sets of episodes: numbering, equal bytes, resuming, refusing."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.phantom.data_set import (
    STAGING_NAME,
    DataSetSettings,
    find_episodes,
    write_data_set,
    write_episode_of,
)
from vla_jax.errors import UserError

SETTINGS = DataSetSettings(seed=3, image_size=28, sensorless_fraction=0.5)


def digests(out: Path) -> dict[str, str]:
    """Every file below `out` with the digest of its bytes."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("three") / "phantom"
    write_data_set(out, 3, SETTINGS)
    return out


def test_equal_seeds_give_equal_bytes_in_any_number_of_processes(three, tmp_path):
    write_data_set(tmp_path / "again", 3, SETTINGS, num_workers=2)
    assert digests(tmp_path / "again") == digests(three)


def test_an_episode_does_not_depend_on_how_many_there_are(three, tmp_path):
    write_data_set(tmp_path / "one", 1, SETTINGS)
    one, all_three = digests(tmp_path / "one"), digests(three)
    assert one
    assert one.items() <= all_three.items()
    write_data_set(tmp_path / "other", 1, DataSetSettings(seed=4, image_size=28, sensorless_fraction=0.5))
    assert not set(digests(tmp_path / "other").values()) & set(one.values())


def test_missing_episodes_are_added_and_present_ones_left_alone(three, tmp_path):
    out = tmp_path / "phantom"
    shutil.copytree(three, out)
    first, *rest = sorted(out.glob("*/episode_*"))
    kept = {path: path.stat().st_mtime_ns for path in (p / "metadata.json" for p in rest)}
    shutil.rmtree(first)
    (out / STAGING_NAME / "episode_00001-123").mkdir(parents=True)  # left by a killed run
    added = []
    write_data_set(out, 3, SETTINGS, on_written=added.append)
    assert added == [first]
    assert digests(out) == digests(three)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (out / STAGING_NAME).exists()


def test_folders_follow_the_task(three):
    for path in three.glob("*/episode_*"):
        metadata = json.loads((path / "metadata.json").read_text())
        assert path.parent.name == metadata["task"] == metadata["phantom"]["scenario"]["marker"] + "_point"
    assert find_episodes(three, SETTINGS) == {0, 1, 2}


def test_every_episode_is_another_one(three):
    scenarios = [
        json.loads(path.read_text())["phantom"]["scenario"] for path in three.glob("*/*/metadata.json")
    ]
    assert len({scenario["target_mm"] for scenario in scenarios}) == 3


def test_episodes_of_other_settings_are_not_mixed_in(three):
    for settings in (
        DataSetSettings(seed=4, image_size=28, sensorless_fraction=0.5),
        DataSetSettings(seed=3, image_size=56, sensorless_fraction=0.5),
        DataSetSettings(seed=3, image_size=28, sensorless_fraction=0.5, overlapping_windows=True),
        DataSetSettings(seed=3, image_size=28, sensorless_fraction=0.5, breathing_fraction=0.5),
    ):
        with pytest.raises(UserError, match="other settings"):
            write_data_set(three, 4, settings)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"phantom": {}}'])
def test_a_directory_with_something_else_is_refused(tmp_path, content):
    path = tmp_path / "Red_point" / "episode_00000" / "metadata.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match="not of a phantom episode"):
        write_data_set(tmp_path, 1, SETTINGS)


def test_other_files_and_unwritable_places_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("work of years")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        write_data_set(tmp_path, 1, SETTINGS)
    with pytest.raises(UserError, match="is a file"):
        write_data_set(tmp_path / "thesis.tex", 1, SETTINGS)
    with pytest.raises(UserError, match="cannot write"):
        write_data_set(tmp_path / "thesis.tex" / "below", 1, SETTINGS)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"image_size": 5}, {"sensorless_fraction": 1.5}, {"sensorless_fraction": -0.1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
        DataSetSettings(**{"seed": 0} | wrong)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.2, 8), (0.5, 20), (1.0, 40)])
def test_the_sensorless_fraction_is_kept_and_spread(fraction, expected):
    for seed in range(5):
        settings = DataSetSettings(seed=seed, sensorless_fraction=fraction)
        without = [index for index in range(40) if not settings.has_sensor(index)]
        assert len(without) == expected
        if 0 < fraction < 1:
            assert np.ptp(np.diff(without)) <= 1


def test_a_share_of_the_episodes_breathes_beside_the_others(tmp_path):
    settings = DataSetSettings(seed=3, image_size=28, breathing_fraction=0.25, disturbed_fraction=0.0)
    assert sum(settings.breathes(index) for index in range(40)) == 10
    first = next(index for index in range(40) if settings.breathes(index))
    motions = [
        json.loads((write_episode_of(index, out=tmp_path, settings=settings) / "metadata.json").read_text())[
            "phantom"
        ]["scenario"]["motion"]["amplitude_mm"]
        for index in (first, first + 1)
    ]
    assert motions[0] > 0.2
    assert motions[1] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_as_many_nudged_episodes_breathe_as_others(seed):
    settings = DataSetSettings(seed=seed, breathing_fraction=0.5)
    kinds = Counter((settings.is_disturbed(index), settings.breathes(index)) for index in range(40))
    assert set(kinds.values()) == {10}


def test_episodes_from_before_there_was_an_option_are_gone_on_with(three, tmp_path):
    old = shutil.copytree(three, tmp_path / "old")
    for path in old.glob("*/*/metadata.json"):
        metadata = json.loads(path.read_text())
        assert metadata["phantom"]["settings"].pop("breathing_fraction") == 0.0
        path.write_text(json.dumps(metadata))
    assert find_episodes(old, SETTINGS) == {0, 1, 2}
