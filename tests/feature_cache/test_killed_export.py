"""Two ranks of an export, killed at random moments: nothing that was written is lost, damaged or redone."""

import multiprocessing
import os
import random
import time
from collections import Counter

import numpy as np
import pytest

from feature_cache import exporter
from feature_cache import shard as shards
from feature_cache.backbone import find_backbone
from feature_cache.maintenance import damaged_shards
from feature_cache.store import FeatureStore, shard_paths
from feature_cache.work import make_work

NUM_KILLS = 30
NUM_RECORDS = 120


def run_rank(rank, world_size, backbone, records, cache):
    """Exports the share of one rank, every batch a shard, so that many kills hit a shard being written."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    exporter._SHARD_BYTES = 1
    files = find_backbone(backbone)
    provenance = files.provenance()
    work = make_work(provenance.digest(), records)
    exporter.export(files, provenance, work, cache, device="cpu", batch_tokens=300, num_threads=1)


@pytest.fixture(scope="module")
def start_rank():
    """Returns a function that starts a rank in a fork of a process that has done the slow imports and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            __name__,
            "transformers.models.auto.tokenization_auto",
            "transformers.models.qwen2.tokenization_qwen2",
            "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
            "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        ]
    )

    def start(*arguments):
        process = context.Process(target=run_rank, args=arguments, daemon=True)
        process.start()
        return process

    return start


def finish(process):
    process.join(timeout=120)
    assert process.exitcode == 0


def written(directory):
    """Returns how often each key occurs in the shards of a provenance directory."""
    tables = [shards.read_table(path) for path in shard_paths(directory)]
    return Counter(key for table in tables for key in shards.unpack_keys(table.keys))


@pytest.mark.slow
def test_nothing_written_is_lost_damaged_or_redone(tmp_path, tiny_path, write_records, start_rank):
    records = write_records(NUM_RECORDS)
    provenance = find_backbone(str(tiny_path)).provenance()
    keys = [item.key for item in make_work(provenance.digest(), records)]
    finish(start_rank(0, 1, str(tiny_path), records, tmp_path / "warm-up"))
    begin = time.monotonic()
    finish(start_rank(0, 1, str(tiny_path), records, tmp_path / "whole"))
    usual_seconds = time.monotonic() - begin
    draw, completed = random.Random(0), 0
    cache, before = tmp_path / "killed0", Counter()
    for _ in range(NUM_KILLS):
        directory = cache / provenance.name()
        ranks = [start_rank(rank, 2, str(tiny_path), records, cache) for rank in range(2)]
        time.sleep(draw.uniform(0.3, 0.9) * usual_seconds)
        for process in ranks:
            process.kill()
            process.join()
        if (directory / "provenance.json").exists():
            assert damaged_shards(cache) == []
            after = written(directory)
            assert before <= after
            before = after
        if len(before) == NUM_RECORDS:
            completed += 1
            cache, before = tmp_path / f"killed{completed}", Counter()
    for process in [start_rank(rank, 2, str(tiny_path), records, cache) for rank in range(2)]:
        finish(process)
    assert written(cache / provenance.name()) == Counter(dict.fromkeys(keys, 1))
    whole, killed = (
        FeatureStore.open(path, provenance.name()).read(keys) for path in (tmp_path / "whole", cache)
    )
    for expected, found in zip(whole, killed, strict=True):
        np.testing.assert_array_equal(expected, found)
