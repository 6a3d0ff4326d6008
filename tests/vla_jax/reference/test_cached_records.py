"""Files of the reference's feature cache find the record of their pictures, whatever the data set's alignment."""

import hashlib

import pytest

from feature_cache.keys import record_key
from tests.vla_jax.recordings.recorded_episodes import write_data_set, write_windows_episode
from tests.vla_jax.recordings.test_capture import write_capture_episode
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from vla_jax.dataset.feature_table import record_keys
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.reference import cached_records
from vla_jax.reference.cached_files import imported_provenance
from vla_jax.reference.cached_records import match_reference_files
from vla_jax.reference.samples import reference_samples

PROVENANCE = imported_provenance("a 3B model")
SETTINGS = {"horizon": 8, "vlm_reuse_count": 3, "sensor_window_size": 65}


def picture(folder, path):
    """A legacy pickle names its pictures as on another machine; they lie below the folders of their view."""
    if path.startswith("/"):
        *_, view, name = path.split("/")
        path = f"{view.replace('_', '/')}/{name}"
    return folder / path


def reference_keys(folder):
    """Returns file name → key of the record with the prompt and pictures that the reference encoded for it."""
    keys = {}
    for sample in reference_samples(folder, **SETTINGS):
        paths = [picture(folder, path) for path in sample["images"] if path]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        keys[f"{sample['cache_key']}.pt"] = record_key(PROVENANCE.digest(), sample["instruction"], digests)
    return keys


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Windows episodes longer than their picture lists reach, one without its first view, and a legacy one."""
    root = tmp_path_factory.mktemp("source")
    write_data_set(root, 2, seconds=6.0)
    write_windows_episode(root / "Task_0" / "one_view", seed=9, views=("View2",), seconds=3.0)
    write_legacy_episode(root / "Blue_point" / "recv_all_1")
    return root


def pack(source, out, alignment):
    return prepare([str(source)], out, PrepareOptions(episode=EpisodeOptions(alignment=alignment))).dataset


def all_keys(root):
    folders = [path.parent for name in ("metadata.json", "data.pkl") for path in sorted(root.rglob(name))]
    return {name: key for folder in folders for name, key in reference_keys(folder).items()}


def test_aligned_by_index_every_record_has_its_file(episodes, tmp_path):
    dataset = pack(episodes, tmp_path / "data", "index")
    keys = all_keys(episodes)
    match = match_reference_files(dataset, PROVENANCE, keys)
    assert {file.name: file.key for file in match.files} == {
        file.name: keys[file.name] for file in match.files
    }
    wanted = set(record_keys(dataset, dataset.required_records(), PROVENANCE))
    assert {file.key for file in match.files} == wanted
    # Beyond a view's last picture the reference repeats it, so several files are of the same pictures.
    (reason,) = match.unmatched
    assert reason == cached_records.SAME_PICTURES
    assert len(match.files) + len(match.unmatched[reason]) == len(keys)
    prompts = {file.name.split("_vlm")[0]: file.prompt for file in match.files}
    assert prompts["recv_all_1"] == "insert it"


def test_aligned_by_time_only_records_of_the_same_pictures_match(episodes, tmp_path):
    dataset = pack(episodes, tmp_path / "data", "timestamp")
    keys = all_keys(episodes)
    match = match_reference_files(dataset, PROVENANCE, keys)
    wanted = set(record_keys(dataset, dataset.required_records(), PROVENANCE))
    windows = {name: key for name, key in keys.items() if not name.startswith("recv_all")}
    assert {file.key for file in match.files} == wanted & set(keys.values())
    assert 0 < len({file.key for file in match.files} & set(windows.values())) < len(set(windows.values()))
    unused = match.unmatched[cached_records.UNUSED_PICTURES]
    assert unused
    assert not wanted & {keys[name] for name in unused}


def test_what_belongs_to_nothing_is_told_by_reason(tmp_path):
    root = tmp_path / "source"
    write_windows_episode(root / "Task_0" / "same_name")
    write_windows_episode(root / "Task_1" / "same_name", seed=1)
    write_windows_episode(root / "Task_1" / "blind", seed=2, views=())
    write_windows_episode(root / "Task_1" / "fine", seed=3)
    write_capture_episode(root / "Task_2" / "data_collection_1")
    write_legacy_episode(root / "Blue_point" / "recv_all_1")
    dataset = pack(root, tmp_path / "data", "index")
    names = [
        "fine_vlm0.pt", "fine_vlm1.pt", "absent_vlm0.pt", "same_name_vlm0.pt", "blind_vlm0.pt",
        "data_collection_1_vlm0.pt", "recv_all_1_vlm30.pt", "71c10a4447bab016f932d180.pt", "fine_vlm-1.pt",
    ]  # fmt: skip
    match = match_reference_files(dataset, PROVENANCE, names)
    assert [file.name for file in match.files] == ["fine_vlm0.pt"]
    assert match.unmatched == {
        cached_records.WRONG_NAME: ["71c10a4447bab016f932d180.pt", "fine_vlm-1.pt"],
        cached_records.NO_EPISODE: ["absent_vlm0.pt"],
        cached_records.NO_PICTURES: ["blind_vlm0.pt", "recv_all_1_vlm30.pt"],
        cached_records.CAPTURE_EPISODE: ["data_collection_1_vlm0.pt"],
        cached_records.UNUSED_PICTURES: ["fine_vlm1.pt"],
        cached_records.AMBIGUOUS_EPISODE: ["same_name_vlm0.pt"],
    }


def test_names_are_part_of_the_identity():
    other = imported_provenance("another model")
    assert other.digest() != PROVENANCE.digest()
    assert PROVENANCE.is_imported
    assert PROVENANCE.pooling == "mean"
