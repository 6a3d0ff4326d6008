"""Data sets of version 2 open as they are; `prepare` reads their episodes again."""

import json
import shutil

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from tests.vla_jax.recordings.test_capture import write_capture_episode
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import prepare
from vla_jax.recordings.capture import CaptureOptions
from vla_jax.recordings.legacy import LegacyOptions

LATER_FIELDS = ("sensor_channels", "state_names", "action_names", "action_units", "in_whole_chunks")


def as_version_2(path):
    """Writes a data set's descriptions as version 2 had them; its arrays were the same."""
    index = json.loads((path / "dataset.json").read_text())
    options = index.pop("episode_options")
    own = {"allow_external_images": False, "match_limit": 0.01}
    for given in options.pop("readers").values():
        own |= given
    if "match_limit_ms" in own:
        own["match_limit"] = own.pop("match_limit_ms") / 1000
    index["part_options"] = options | own | {"version": 2}
    index["format_version"] = index["meta"]["format_version"] = 2
    del index["spec"], index["columns"]
    (path / "dataset.json").write_text(json.dumps(index))
    file = path / index["content"] / "episodes.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        for name in LATER_FIELDS:
            del entry[name]
    file.write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    write_windows_episode(root / "t" / "windows")
    write_windows_episode(root / "t" / "silent", seed=1, has_sensor=False)
    write_capture_episode(root / "t" / "capture")
    write_legacy_episode(root / "t" / "legacy")
    return root


@pytest.mark.parametrize("alignment", ["timestamp", "index"])
@pytest.mark.parametrize(
    "readers",
    [{}, {"legacy": LegacyOptions(True), "capture": CaptureOptions(500)}],
    ids=["defaults", "own options"],
)
def test_version_2_opens_with_equal_arrays_and_spec_and_is_prepared_anew(
    alignment, readers, source, tmp_path
):
    options = PrepareOptions(episode=EpisodeOptions(alignment=alignment, readers=readers))
    now = prepare([str(source)], tmp_path / "now", options).dataset
    shutil.copytree(tmp_path / "now", tmp_path / "old")
    as_version_2(tmp_path / "old")
    old = PackedDataset.open(tmp_path / "old")
    assert old.spec == now.spec
    assert old.describe() | {"path": "", "samples": ""} == now.describe() | {"path": "", "samples": ""}
    assert old.episodes == now.episodes
    for file in now.content.glob("*.npy"):
        np.testing.assert_array_equal(old.array(file.stem), now.array(file.stem))
    again = prepare([str(source)], tmp_path / "old", options)
    assert again.num_read == 4
    for file in now.content.glob("*.npy"):
        np.testing.assert_array_equal(again.dataset.array(file.stem), now.array(file.stem), err_msg=file.stem)
    assert again.dataset.spec == now.spec
    assert json.loads((tmp_path / "old" / "dataset.json").read_text())["format_version"] == 3


def test_version_2_prepared_otherwise_is_read_again(source, tmp_path):
    prepare([str(source)], tmp_path / "old", PrepareOptions())
    as_version_2(tmp_path / "old")
    options = PrepareOptions(episode=EpisodeOptions(readers={"capture": CaptureOptions(500)}))
    assert prepare([str(source)], tmp_path / "old", options).num_read == 4


def test_a_set_of_legacy_episodes_alone_has_no_state(source, tmp_path):
    dataset = prepare([str(source / "t" / "legacy")], tmp_path / "d", PrepareOptions()).dataset
    assert dataset.spec.state == ()
    assert np.isnan(dataset.ticks.pose).all()
    assert dataset.ticks.pose.shape == (30, 6)
    as_version_2(tmp_path / "d")
    assert PackedDataset.open(tmp_path / "d").spec == dataset.spec
