"""A reference cache is imported and trained on, in the commands a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_cache.store import FeatureStore
from tests.commands import error_line, run_command
from tests.vla_jax.recordings.recorded_episodes import write_data_set
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.reference.samples import reference_samples

SETTINGS = {"horizon": 8, "vlm_reuse_count": 3, "sensor_window_size": 65}
WIDTH = 12


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Episodes, the reference's cache of them, and the data set under both alignments."""
    root = tmp_path_factory.mktemp("reference")
    # The last refresh shows the last picture of both views, by time as by index.
    write_data_set(root / "episodes", 4, seconds=3.1, image_hz=4.0)
    (root / "reference").mkdir()
    for path in sorted((root / "episodes").rglob("metadata.json")):
        for sample in reference_samples(path.parent, **SETTINGS):
            values = np.random.default_rng(len(sample["images"][0]) + sample["vlm_idx"]).normal(
                size=(1, 1, WIDTH)
            )
            file = root / "reference" / f"{sample['cache_key']}.pt"
            torch.save(torch.from_numpy(values.astype(np.float16)), file)
    for alignment in ("index", "timestamp"):
        run_command("prepare", root / "episodes", "--out", root / alignment, "--alignment", alignment)
    return root


def import_cache(workspace, cache, *, data="index", reference: Path | None = None, status=0):
    folder = reference or workspace / "reference"
    options = ("--backbone", "Qwen/a 3B model")
    return run_command("cache", "import", cache, folder, workspace / data, *options, status=status)


def test_a_reference_cache_is_imported_and_trained_on(workspace, tmp_path):
    dataset = PackedDataset.open(workspace / "index")
    said = import_cache(workspace, tmp_path / "cache").stdout
    num = len(dataset.required_records())
    assert f"{num} records imported, 0 already there" in said
    assert "have no features" not in said
    assert f"0 records imported, {num} already there" in import_cache(workspace, tmp_path / "cache").stdout
    stats = run_command("cache", "stats", tmp_path / "cache").stdout
    assert "a 3B model" in " ".join(stats.split())
    assert "imported" in stats
    options = ("--out", tmp_path / "run", "--recipe", "debug", "--steps", "2")
    trained = run_command("train", workspace / "index", "--cache", tmp_path / "cache", *options)
    assert f"1 feature slots of width {WIDTH}" in trained.stderr


@pytest.mark.slow
def test_training_goes_on_without_what_is_missing_when_told_to(workspace, tmp_path):
    said = import_cache(workspace, tmp_path / "cache", data="timestamp").stdout
    dataset = PackedDataset.open(workspace / "timestamp")
    ((name, _),) = FeatureStore.provenances(tmp_path / "cache")
    num = len(FeatureStore.open(tmp_path / "cache", name))
    required = len(dataset.required_records())
    assert 0 < num < required
    assert f"{num} records imported" in said
    assert "left out" in said
    assert f"{required - num} of {required} records have no features, the first: " in said
    assert "--alignment index can use all files" in said
    arguments = ("train", workspace / "timestamp", "--cache", tmp_path / "cache", "--out", tmp_path / "run",
                 "--recipe", "debug", "--steps", "2")  # fmt: skip
    line = error_line(run_command(*arguments, status=2))
    assert f"{required - num} of {required} records" in line
    assert "experiments.cache import" in line
    assert "--allow-missing" in line
    trained = run_command(*arguments, "--allow-missing")
    assert f"{required - num} of {required} records" in trained.stderr
    judge = ("evaluate", tmp_path / "run", workspace / "timestamp", "--cache", tmp_path / "cache",
             "--out", tmp_path / "report")  # fmt: skip
    assert "records that" in run_command(*judge, "--allow-missing").stderr
    judged = json.loads((tmp_path / "report/metrics.json").read_text())["data"]
    assert judged["samples"] > 0
    assert judged["samples"] + judged["samples_without_features"] == len(dataset.sample_ticks("val"))


def test_files_that_match_nothing_are_one_line(workspace, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    torch.save(torch.zeros(1, 1, WIDTH), foreign / "somebody_vlm0.pt")
    (foreign / "episode_000_vlm0.pt").write_bytes(b"damaged")
    line = error_line(import_cache(workspace, tmp_path / "cache", reference=foreign, status=2))
    assert "none of 2 files could be used" in line
    assert "1 file(s) of no episode of the data set, the first: somebody_vlm0.pt" in line
    assert "1 file(s) unreadable, the first: episode_000_vlm0.pt" in line
    assert "no such directory" in error_line(
        import_cache(workspace, tmp_path / "cache", reference=tmp_path / "absent", status=2)
    )
    assert not (tmp_path / "cache").exists()
