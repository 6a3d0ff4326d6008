"""Two ranks of an export, killed at random moments: nothing that was written is lost, damaged or redone."""

import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch

from feature_cache import exporter
from feature_cache import shard as shards
from feature_cache.exporter import export
from feature_cache.maintenance import damaged_shards
from feature_cache.store import FeatureStore, shard_paths
from feature_cache.work import make_work

NUM_KILLS = 30
NUM_RECORDS = 160


def start_rank(rank, files, work, cache):
    """Forks a process that exports its share and returns its id; forking spares it the imports."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        export(files, *work, cache, batch_tokens=300, num_threads=1)
        os._exit(0)
    finally:
        os._exit(1)


def written(cache, provenance):
    """Returns how often each key occurs in the shards of a cache."""
    tables = [shards.read_table(path) for path in shard_paths(cache / provenance.name())]
    return Counter(key for table in tables for key in shards.unpack_keys(table.keys))


@pytest.fixture
def one_thread(monkeypatch, backbone):
    # A forked process inherits no threads of torch's pool, so it must not wait for any.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(exporter, "load_backbone", lambda files, **options: backbone)
    # Every batch a shard, so that many kills hit a shard that is being written.
    monkeypatch.setattr(exporter, "_SHARD_BYTES", 1)
    yield
    torch.set_num_threads(before)


def test_nothing_written_is_lost_damaged_or_redone(tmp_path, backbone_files, write_records, one_thread):
    provenance = backbone_files.provenance()
    work = provenance, make_work(provenance.digest(), write_records(NUM_RECORDS))
    keys = [item.key for item in work[1]]
    start = time.monotonic()
    export(backbone_files, *work, tmp_path / "whole", batch_tokens=300, num_threads=1)
    usual_seconds = time.monotonic() - start
    cache, draw = tmp_path / "killed", random.Random(0)
    before: Counter[str] = Counter()
    for _ in range(NUM_KILLS):
        ranks = [start_rank(rank, backbone_files, work, cache) for rank in range(2)]
        time.sleep(draw.uniform(0, 0.1) * usual_seconds)
        for process in ranks:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        if cache.exists() and (cache / provenance.name() / "provenance.json").exists():
            assert damaged_shards(cache) == []
            after = written(cache, provenance)
            assert before <= after
            before = after
    for rank in range(2):
        process = start_rank(rank, backbone_files, work, cache)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    # The second rank of the last run found its share already listed by the first; one more run closes the gap.
    export(backbone_files, *work, cache, batch_tokens=300, num_threads=1)
    assert written(cache, provenance) == Counter(dict.fromkeys(keys, 1))
    whole, killed = (
        FeatureStore.open(path, provenance.name()).read(keys) for path in (tmp_path / "whole", cache)
    )
    for expected, found in zip(whole, killed, strict=True):
        np.testing.assert_array_equal(expected, found)
