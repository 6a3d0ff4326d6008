"""The reference's samples, recorded from it, for the two episodes beside this test's data."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from tests.paths import PARITY
from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from tests.vla_jax.recordings.test_legacy import NUM_ACTIONS, write_legacy_episode
from vla_jax.errors import UserError
from vla_jax.reference.samples import reference_samples

RECORDED = json.loads((PARITY / "dataset_semantics.json").read_text())
RUNS = [(kind, i) for kind in ("old", "new") for i in range(len(RECORDED[kind]))]


@pytest.mark.parametrize(("kind", "run"), RUNS)
def test_samples_equal_the_recorded_ones(kind, run):
    recorded = RECORDED[kind][run]
    samples = reference_samples(PARITY / "episodes" / RECORDED["episodes"][kind], **recorded["settings"])
    assert len(samples) == recorded["len"]
    for sample, item in zip(samples, recorded["items"], strict=True):
        for name in (
            "instruction",
            "images",
            "has_sensor",
            "cache_key",
            "vlm_idx",
            "reuse_step",
            "confidence",
        ):
            assert sample[name] == item[name], name
        assert sample["actions"].dtype == item["actions_dtype"]
        np.testing.assert_array_equal(sample["actions"], np.array(item["actions"], np.float32))
        window = RECORDED["sensor_windows"][item["sensor"]]
        assert list(sample["sensor_data"].shape) == window["shape"]
        digest = hashlib.sha256(np.ascontiguousarray(sample["sensor_data"]).tobytes()).hexdigest()
        assert digest == window["sha256_float32"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        reference_samples(tmp_path, horizon=8, vlm_reuse_count=3, sensor_window_size=65)


def samples_of(folder):
    return reference_samples(folder, horizon=8, vlm_reuse_count=1, sensor_window_size=4)


def test_no_camera_views_in_the_metadata_give_no_pictures(tmp_path):
    named = write_windows_episode(tmp_path / "t" / "named")
    assert [len(sample["images"]) for sample in samples_of(named)[:2]] == [2, 2]
    metadata = json.loads((named / "metadata.json").read_text())
    for views in ({}, {"camera_views": []}):
        del metadata["camera_views"]
        metadata |= views
        (named / "metadata.json").write_text(json.dumps(metadata))
        assert [sample["images"] for sample in samples_of(named)[:2]] == [[], []]
        metadata["camera_views"] = []


def test_a_legacy_episode_without_instruction_has_the_reference_s_sentence(tmp_path):
    folder = write_legacy_episode(tmp_path / "Blue_point" / "e", instruction=None)
    assert {sample["instruction"] for sample in samples_of(folder)} == {"Perform needle insertion task."}
    given = reference_samples(folder, horizon=8, vlm_reuse_count=1, sensor_window_size=4, instruction="go")
    assert {sample["instruction"] for sample in given} == {"go"}


ROWS = np.arange(1, NUM_ACTIONS + 1)[:, None] + np.linspace(0, 0.5, 1026)[None]


@pytest.mark.parametrize(
    ("sensor_data", "stored"),
    [
        (ROWS[:10], np.pad(ROWS[:10], ((0, 20), (0, 0)))),
        ({"force": ROWS[:10, 0], "fpi": ROWS[:10, 1:]}, np.pad(ROWS[:10], ((0, 20), (0, 0)))),
        (
            {"force": ROWS[:10, :1], "fpi": ROWS[:, 1:]},
            np.c_[np.pad(ROWS[:10, 0], (0, 20)), ROWS[:, 1:]],
        ),
        ({"force": ROWS[:, 0]}, np.c_[ROWS[:, :1], np.zeros((NUM_ACTIONS, 1025))]),
        ({"fpi": ROWS[:, 1:]}, np.c_[np.zeros(NUM_ACTIONS), ROWS[:, 1:]]),
        ({"force": None, "fpi": ROWS[:, 1:]}, np.c_[np.zeros(NUM_ACTIONS), ROWS[:, 1:]]),
    ],
    ids=["short array", "short parts", "short force", "no fpi", "no force", "force is None"],
)
def test_incomplete_legacy_sensor_data_are_filled_up_with_zeros(sensor_data, stored, tmp_path):
    samples = samples_of(write_legacy_episode(tmp_path / "t" / "e", sensor_data=sensor_data))
    assert [sample["vlm_idx"] for sample in samples] == [0, 8]
    for sample in samples:
        assert sample["has_sensor"]
        assert sample["confidence"] == 1.0
        start = sample["vlm_idx"]
        np.testing.assert_array_equal(sample["sensor_data"], stored[start : start + 4].astype(np.float32))


def test_legacy_sensor_data_of_another_width_are_refused(tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e", sensor_data={"fpi": ROWS[:, :1000]})
    with pytest.raises(UserError, match=r"fpi is \(30, 1000\) float64, expected numbers \(T, 1025\)"):
        samples_of(folder)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_sensor_file_beside_a_pickle_without_sensor_data_does_not_count(is_named, tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e", sensor_data=None)
    if not is_named:
        content = pickle.loads((folder / "data.pkl").read_bytes())
        del content["sensor_data"]
        (folder / "data.pkl").write_bytes(pickle.dumps(content))
    np.save(folder / "sensor_data.npy", ROWS.astype(np.float32))
    for sample in samples_of(folder):
        assert not sample["has_sensor"]
        assert sample["confidence"] == 0.5
        assert not sample["sensor_data"].any()
        assert sample["sensor_data"].shape == (4, 1026)


def test_a_sensor_file_of_the_right_shape_wins(tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e")
    np.save(folder / "sensor_data.npy", ROWS.astype(np.float32))
    np.testing.assert_array_equal(samples_of(folder)[1]["sensor_data"], ROWS[8:12].astype(np.float32))
