import os
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from feature_cache import exporter
from feature_cache.backbone import Backbone
from feature_cache.encoder import RecordEncoder
from feature_cache.export_progress import SharedProgress
from feature_cache.exporter import export
from feature_cache.store import FeatureStore, shard_paths
from feature_cache.worklist import make_worklist
from tests.feature_cache.conftest import random_image
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar


@pytest.fixture
def work(backbone_files, write_records):
    provenance = backbone_files.provenance()
    return provenance, make_worklist(provenance.digest(), write_records(12))


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, backbone):
    monkeypatch.setattr(exporter, "load_backbone", lambda files, **options: backbone)


def content(cache, provenance, items):
    store = FeatureStore.open(cache, provenance.name())
    return store.read([item.key for item in items])


def export_all(files, work, cache, **options):
    return export(
        files, *work, cache, batch_tokens=options.pop("batch_tokens", 200), num_threads=1, **options
    )


def test_records_are_written_with_a_slot_per_cell_and_one_for_the_text(
    tmp_path, backbone_files, backbone, work
):
    summary = export_all(backbone_files, work, tmp_path / "cache")
    assert (summary.num_written, summary.num_present, summary.num_left) == (12, 0, 0)
    for item, features in zip(work[1], content(tmp_path / "cache", *work), strict=True):
        assert features.shape == (4 * len(item.images) + 1, 64)
        images = [Image.open(image.path).convert("RGB") for image in item.images]
        (expected,) = backbone.encode([backbone.processor.prepare(item.prompt, images)], work[0])
        np.testing.assert_allclose(features, expected.astype(np.float16), atol=2e-3)


def test_what_is_there_is_skipped_without_loading_the_backbone(tmp_path, backbone_files, work, monkeypatch):
    export_all(backbone_files, work, tmp_path)
    monkeypatch.setattr(exporter, "load_backbone", lambda *a, **k: pytest.fail("loaded"))
    summary = export_all(backbone_files, work, tmp_path)
    assert (summary.num_written, summary.num_present) == (0, 12)


def test_a_rank_whose_share_is_done_does_not_load_the_backbone(tmp_path, backbone_files, work, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = export_all(backbone_files, work, tmp_path).num_written
    monkeypatch.setattr(exporter, "load_backbone", lambda *a, **k: pytest.fail("loaded"))
    summary = export_all(backbone_files, work, tmp_path)
    assert (summary.num_written, summary.num_present, summary.num_left) == (0, done, 0)
    assert summary.num_elsewhere == 12 - done


def test_a_larger_work_list_adds_only_what_is_new(tmp_path, backbone_files, work):
    provenance, items = work
    export_all(backbone_files, (provenance, items[:5]), tmp_path)
    assert export_all(backbone_files, work, tmp_path).num_written == 7
    assert len(content(tmp_path, *work)) == 12


def test_the_shares_of_all_ranks_make_up_the_whole(tmp_path, backbone_files, work, monkeypatch):
    export_all(backbone_files, work, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "3")
    # Each rank would list the work before any has written; the first two are enough to leave a share undone.
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append(export_all(backbone_files, work, tmp_path / f"rank{rank}").num_written)
    assert 0 < sum(shares) < 12
    for rank in ("0", "1"):
        for path in shard_paths(tmp_path / f"rank{rank}" / work[0].name()):
            target = tmp_path / "many" / work[0].name()
            target.mkdir(parents=True, exist_ok=True)
            os.replace(path, target / path.name)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert export_all(backbone_files, work, tmp_path / "many").num_written == 12 - sum(shares)
    for one, many in zip(content(tmp_path / "one", *work), content(tmp_path / "many", *work), strict=True):
        np.testing.assert_array_equal(one, many)


def test_ranks_that_start_one_after_another_leave_and_repeat_nothing(
    tmp_path, backbone_files, work, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        written.append(export_all(backbone_files, work, tmp_path).num_written)
    assert min(written) > 0
    assert sum(written) == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_shard_and_the_next_run_goes_on(
    tmp_path, backbone_files, backbone, work, monkeypatch, number
):
    encode, calls = RecordEncoder.encode, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return encode(*arguments)

    handler = signal.getsignal(number)
    monkeypatch.setattr(RecordEncoder, "encode", interrupted)
    summary = export_all(backbone_files, work, tmp_path)
    assert summary.interrupted_by == number
    assert 0 < summary.num_written < 12
    assert summary.num_written + summary.num_left == 12
    assert signal.getsignal(number) == handler
    monkeypatch.setattr(RecordEncoder, "encode", encode)
    assert export_all(backbone_files, work, tmp_path).num_written == summary.num_left


def test_interrupted_exports_end_with_the_same_bits(tmp_path, backbone_files, work, monkeypatch):
    export_all(backbone_files, work, tmp_path / "whole")
    encode, calls = RecordEncoder.encode, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(RecordEncoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        export_all(backbone_files, work, tmp_path / "parts")
    monkeypatch.setattr(RecordEncoder, "encode", encode)
    assert 0 < export_all(backbone_files, work, tmp_path / "parts").num_written < 12
    for whole, parts in zip(
        content(tmp_path / "whole", *work), content(tmp_path / "parts", *work), strict=True
    ):
        np.testing.assert_array_equal(whole, parts)


def test_a_changed_image_stops_the_export_but_keeps_what_is_encoded(tmp_path, backbone_files, work):
    random_image(99, 84, 56).save(tmp_path / "images/1_0.jpg")
    with pytest.raises(UserError, match=r"1_0\.jpg: this image has changed"):
        export_all(backbone_files, work, tmp_path / "cache")
    store = FeatureStore.open(tmp_path / "cache", work[0].name())
    # Longer records come first, so some were done before the faulty one.
    assert 0 < len(store) < 12


@pytest.fixture
def bars(monkeypatch):
    """The progress bars of the exports, after their end."""
    made = []

    def make(**options):
        made.append(progress_bar(**options))
        return made[-1]

    monkeypatch.setattr(exporter, "progress_bar", make)
    return made


def test_the_first_rank_shows_the_progress_of_all(
    tmp_path, backbone_files, backbone, work, monkeypatch, bars
):
    """The other rank runs to its end while the first is in its first batch."""
    encode, others = RecordEncoder.encode, []

    def with_other_rank(*arguments):
        if not others:
            others.append(None)
            monkeypatch.setenv("RANK", "1")
            others[0] = export_all(backbone_files, work, tmp_path)
        return encode(*arguments)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(RecordEncoder, "encode", with_other_rank)
    monkeypatch.setattr(exporter, "_LOOK_SECONDS", 0.0)
    first = export_all(backbone_files, work, tmp_path)
    assert first.num_written + others[0].num_written == 12
    assert (first.num_elsewhere, others[0].num_elsewhere) == (0, first.num_written)
    shown, hidden = bars
    assert (shown.n, shown.total) == (12, 12)
    assert shown.desc == "export, 2 ranks"
    assert hidden.n == 0


def test_what_is_there_is_not_part_of_the_progress(tmp_path, backbone_files, work, bars):
    provenance, items = work
    export_all(backbone_files, (provenance, items[:5]), tmp_path)
    export_all(backbone_files, work, tmp_path)
    assert [(bar.n, bar.total) for bar in bars] == [(5, 5), (7, 7)]


def test_a_damaged_shard_of_another_rank_counts_as_not_done(tmp_path, backbone_files, work):
    provenance, items = work
    export_all(backbone_files, (provenance, items[:5]), tmp_path)
    directory = tmp_path / provenance.name()
    progress = SharedProgress(directory, [item.key for item in items], [])
    progress.look()
    assert (progress.num_done, progress.total) == (5, 12)
    (path,) = shard_paths(directory)
    path.write_bytes(path.read_bytes()[:100])
    progress = SharedProgress(directory, [item.key for item in items], [])
    progress.look()
    assert progress.num_done == 0


def test_batches_are_put_together_ahead_by_the_decoders(tmp_path, backbone_files, work, monkeypatch):
    collate, makers = Backbone.collate, []

    def noted(backbone, records):
        makers.append(threading.current_thread())
        return collate(backbone, records)

    monkeypatch.setattr(Backbone, "collate", noted)
    export_all(backbone_files, work, tmp_path)
    assert len(makers) > 1
    assert threading.main_thread() not in makers


def test_the_model_leaves_a_processor_to_the_decoders_while_it_runs(
    tmp_path, backbone_files, work, monkeypatch
):
    encode, threads = RecordEncoder.encode, []

    def counted(*arguments):
        threads.append(torch.get_num_threads())
        return encode(*arguments)

    usual = torch.get_num_threads()
    monkeypatch.setattr(RecordEncoder, "encode", counted)
    monkeypatch.setattr(exporter.os, "cpu_count", lambda: 2)
    summary = export_all(backbone_files, work, tmp_path)
    assert set(threads) == {1}
    assert torch.get_num_threads() == usual
    assert 0 < summary.busy_share <= 1


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_shard_is_set_aside_and_exported_again(tmp_path, backbone_files, work, caplog, damage):
    export_all(backbone_files, work, tmp_path)
    before = [features.copy() for features in content(tmp_path, *work)]
    (path,) = shard_paths(tmp_path / work[0].name())
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
    else:
        del data[-100:]
    path.write_bytes(data)
    summary = export_all(backbone_files, work, tmp_path)
    assert (summary.num_written, summary.num_present) == (12, 0)
    assert str(path) in caplog.text
    assert path.with_name(path.name + ".damaged").exists()
    for old, new in zip(before, content(tmp_path, *work), strict=True):
        np.testing.assert_array_equal(old, new)
