"""Two ranks of an export, killed at random moments: nothing that was written is lost, damaged or redone."""

import itertools
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
from feature_cache.encoder import RecordEncoder
from feature_cache.maintenance import damaged_shards
from feature_cache.store import FeatureStore, shard_paths
from feature_cache.worklist import make_worklist

NUM_KILLS = 30
NUM_RECORDS = 120


def run_rank(rank, world_size, backbone, records, cache, log):
    """Exports the share of one rank, every batch a shard, so that many kills hit a shard being written.

    log: file that gets a line `<number of the batch> <key>` for each record that has been encoded.
    """
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    exporter._SHARD_BYTES = 1
    encode, add, num_batches = RecordEncoder.encode, exporter.ShardWriter.add, itertools.count()
    batch = [0]

    def counted_encode(*arguments):
        features = encode(*arguments)
        batch[0] = next(num_batches)
        return features

    def logged_add(writer, key, features, **options):
        os.write(file, f"{batch[0]} {key}\n".encode())
        add(writer, key, features, **options)

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    RecordEncoder.encode, exporter.ShardWriter.add = counted_encode, logged_add
    files = find_backbone(backbone)
    provenance = files.provenance()
    work = make_worklist(provenance.digest(), records)
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


def logged(logs):
    """Returns key → (rank, number of the batch) of all records that the ranks have encoded."""
    return {
        line.split()[1]: (rank, line.split()[0])
        for rank, log in enumerate(logs)
        if log.exists()
        for line in log.read_text().splitlines()
    }


@pytest.mark.slow
def test_nothing_written_is_lost_damaged_or_redone(tmp_path, tiny_path, write_records, start_rank):
    records = write_records(NUM_RECORDS)
    provenance = find_backbone(str(tiny_path)).provenance()
    keys = [item.key for item in make_worklist(provenance.digest(), records)]
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]

    def start_ranks(cache):
        for log in logs:
            log.unlink(missing_ok=True)
        return [start_rank(rank, 2, str(tiny_path), records, cache, logs[rank]) for rank in range(2)]

    finish(start_rank(0, 1, str(tiny_path), records, tmp_path / "whole", logs[0]))
    draw = random.Random(0)
    caches, before = [tmp_path / "killed0"], Counter()
    for _ in range(NUM_KILLS):
        ranks = start_ranks(caches[-1])
        # A moment by what has been done, for how fast that is depends on the machine; some before anything is.
        num_encoded = draw.randint(0, NUM_RECORDS // 5)
        while len(logged(logs)) < num_encoded and any(process.is_alive() for process in ranks):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        for process in ranks:
            process.kill()
            process.join()
        encoded, directory = logged(logs), caches[-1] / provenance.name()
        if (directory / "provenance.json").exists():
            assert damaged_shards(caches[-1]) == []
            after = written(directory)
            assert before <= after
            assert after - before <= Counter(encoded.keys())
            before = after
        lost = {batch for key, batch in encoded.items() if key not in before}
        # Every batch is a shard here: a rank loses at most the one in hand.
        assert len(lost) == len({rank for rank, _ in lost})
        if len(before) == NUM_RECORDS:
            caches.append(tmp_path / f"killed{len(caches)}")
            before = Counter()
    for process in start_ranks(caches[-1]):
        finish(process)
    whole = FeatureStore.open(tmp_path / "whole", provenance.name()).read(keys)
    for cache in caches:
        assert written(cache / provenance.name()) == Counter(dict.fromkeys(keys, 1))
        killed = FeatureStore.open(cache, provenance.name()).read(keys)
        for expected, found in zip(whole, killed, strict=True):
            np.testing.assert_array_equal(expected, found)
