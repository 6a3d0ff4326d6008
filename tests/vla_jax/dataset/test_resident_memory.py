"""A packed set larger than the memory it may take: reading it all leaves the process small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import REPOSITORY
from tests.vla_jax.dataset.test_batches import fill_cache, provenance
from tests.vla_jax.recordings.recorded_episodes import write_data_set
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import prepare

NUM_ROWS = 1_400_000
LIMIT = 1_000_000_000


def enlarge(dataset):
    """Gives a small set a sensor stream of 2.9 GB, a sparse file, over which its ticks are spread evenly."""
    content, num_ticks = dataset.content, len(dataset.ticks)
    with open(content / "sensor.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (NUM_ROWS, 1026)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + NUM_ROWS * 2052)
    entries = json.loads((content / "episodes.json").read_text())
    for entry in entries:
        entry["sensor_start"] = entry["tick_start"] * NUM_ROWS // num_ticks
        entry["sensor_stop"] = entry["tick_stop"] * NUM_ROWS // num_ticks
    (content / "episodes.json").write_text(json.dumps(entries))
    start = np.array([entry["sensor_start"] for entry in entries])[np.array(dataset.ticks.episode)]
    end = (np.arange(num_ticks) + 1) * NUM_ROWS // num_ticks
    np.save(content / "sensor_begin.npy", start)
    np.save(content / "sensor_end.npy", end)
    return PackedDataset.open(dataset.path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_reading_a_larger_set_stays_below_a_gigabyte(threads, tmp_path):
    source = write_data_set(tmp_path / "source", 20, seconds=20.0, views=("View1",), image_hz=1.0)
    options = PrepareOptions(sensor_window_size=650, val_fraction=0, num_workers=2)
    dataset = enlarge(prepare([str(source)], tmp_path / "data", options).dataset)
    assert dataset.sensor.nbytes > 2 * LIMIT
    fill_cache(dataset, tmp_path / "cache", provenance())
    # Each of the 4000 samples once: windows of 650 rows, 340 to 350 rows apart, reach every row of the stream.
    num_batches = len(dataset.sample_ticks("train")) // 64
    code = (
        "from experiments.benchmarks.feeding_cases import read_batches\n"
        f"print(read_batches({str(dataset.path)!r}, {str(tmp_path / 'cache')!r}, 64, {threads}, {num_batches}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True
    )
    peak = int(done.stdout)
    # At least the batches that wait, 85 MB each, must be there: it did read.
    assert 4 * 85_000_000 < peak < LIMIT
