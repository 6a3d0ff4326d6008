"""The export command on a small data set of windows episodes, with the tiny backbone."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import cache, export, tiny_backbone
from experiments.export import FEATURES, Arguments, Encoding, FeatureOptions, Running
from experiments.usage_errors import option_names
from feature_cache.store import FeatureStore
from tests.commands import REPOSITORY, start_command
from tests.vla_jax.recordings.recorded_episodes import write_data_set, write_windows_episode
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError


@pytest.fixture(autouse=True)
def _own_memory_of_digests(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    out = tmp_path_factory.mktemp("backbone") / "tiny"
    tiny_backbone.main(tiny_backbone.Arguments(out, seed=3))
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    episodes = write_data_set(folder / "episodes", num_episodes=3, seconds=1.5)
    prepare([str(episodes)], folder / "data", PrepareOptions())
    return folder / "data"


def arguments(data, backbone, cache, **options):
    features = FeatureOptions(**{name: options.pop(name) for name in FEATURES if name in options})
    return Arguments(
        data,
        backbone=str(backbone),
        cache=cache,
        features=features,
        encoding=Encoding(**options),
        running=Running(device="cpu", threads=1),
    )


def test_a_data_set_is_exported_and_opens_with_its_features(data, backbone, tmp_path, capsys):
    assert export.main(arguments(data, backbone, tmp_path)) is None
    dataset = PackedDataset.open(data)
    required = dataset.required_records()
    ((name, _),) = FeatureStore.provenances(tmp_path)
    said = capsys.readouterr().out
    assert f"{len(required)} records written at " in said
    assert f"features {name} (grid pooling)" in said
    table = FeatureTable.open(dataset, tmp_path)
    features, mask = table.gather(required)
    assert features.shape == (len(required), 2 * 4 + 1, 64)
    # A camera that starts late is absent from the first record.
    assert mask.sum() == sum(4 * len(dataset.records[i].images) + 1 for i in required)
    export.main(arguments(data, backbone, tmp_path))
    assert f"0 records written, {len(required)} already there" in capsys.readouterr().out


def test_recorded_episodes_are_exported_without_a_data_set(data, backbone, tmp_path, capsys):
    episodes = shutil.copytree(data.parent / "episodes", tmp_path / "episodes")
    (next(episodes.rglob("robot_states.csv"))).write_text("")
    export.main(arguments(episodes, backbone, tmp_path / "cache"))
    assert "2 used, 1 faulty and left out, the first: " in capsys.readouterr().err
    num_written = len(FeatureStore.open(tmp_path / "cache", ""))
    export.main(arguments(data, backbone, tmp_path / "cache"))
    assert f", {num_written} already there" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        export.main(arguments(tmp_path / "empty", backbone, tmp_path / "cache"))


def test_moving_the_data_set_changes_no_key(data, backbone, tmp_path, capsys):
    export.main(arguments(data, backbone, tmp_path / "cache"))
    episodes = data.parent / "episodes"
    moved = shutil.copytree(episodes, tmp_path / "moved")
    prepare([str(moved)], tmp_path / "data", PrepareOptions())
    capsys.readouterr()
    export.main(arguments(tmp_path / "data", backbone, tmp_path / "cache"))
    assert ": 0 records written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [{"pooling": "mean"}, {"grid": 1}, {"image_size": "28x28"}, {"layer": 1}, {"dtype": "bfloat16"}],
    ids=lambda options: next(iter(options)),
)
def test_other_settings_are_other_features(data, backbone, tmp_path, options):
    export.main(arguments(data, backbone, tmp_path))
    export.main(arguments(data, backbone, tmp_path, **options))
    assert len(FeatureStore.provenances(tmp_path)) == 2


def test_a_set_without_images_has_nothing_to_export(backbone, tmp_path):
    write_windows_episode(tmp_path / "episodes/one", views=())
    write_windows_episode(tmp_path / "episodes/two", views=(), seed=1)
    prepare([str(tmp_path / "episodes")], tmp_path / "data", PrepareOptions())
    with pytest.raises(UserError, match="nothing to export, no episode has samples with images"):
        export.main(arguments(tmp_path / "data", "no/backbone/needed", tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_is_named_by_verify_and_on_reading_and_exported_again(
    data, backbone, tmp_path, capsys, damage
):
    export.main(arguments(data, backbone, tmp_path))
    dataset = PackedDataset.open(data)
    before = FeatureTable.open(dataset, tmp_path).gather(dataset.required_records())[0]
    (path,) = tmp_path.glob("*/shard-*")
    sound = path.read_bytes()
    path.write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:] if damage == "flip" else sound[:-1])
    capsys.readouterr()
    assert cache.main(cache.Verify(tmp_path)) == 1
    assert str(path) in capsys.readouterr().out
    # A shard that cannot be opened is missing to a training run; one that can is found when its record is read.
    with pytest.raises(UserError, match="1 damaged shard" if damage == "truncate" else path.name):
        FeatureTable.open(dataset, tmp_path)
    export.main(arguments(data, backbone, tmp_path))
    assert cache.main(cache.Verify(tmp_path)) is None
    after = FeatureTable.open(dataset, tmp_path).gather(dataset.required_records())[0]
    np.testing.assert_array_equal(after, before)


def test_gc_keeps_what_a_named_data_set_needs(data, backbone, tmp_path, capsys):
    export.main(arguments(data, backbone, tmp_path))
    export.main(arguments(data, backbone, tmp_path, pooling="mean"))
    cache.main(cache.Gc(tmp_path, limit_gb=0.0, keep=(data,)))
    assert "0 files removed" in capsys.readouterr().out
    for _, made_by in FeatureStore.provenances(tmp_path):
        assert FeatureTable.open(PackedDataset.open(data), tmp_path, features=made_by.name()).num_missing == 0
    cache.main(cache.Gc(tmp_path, limit_gb=0.0, yes=True))
    assert not list(tmp_path.glob("*/shard-*"))


def start_export(data, backbone, cache, *launcher):
    """Starts the command, every batch of one record, in a process group of its own."""
    options = ("--backbone", backbone, "--cache", cache, "--batch-tokens", "1", "--threads", "1")
    return subprocess.Popen(
        [sys.executable, *(launcher or ("-m",)), "experiments.export", *map(str, (data, *options))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_shard(process, cache):
    deadline = time.monotonic() + 300
    while not list(cache.glob("*/shard-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_data(tmp_path_factory):
    """More records, of a long prompt, than are exported within the first shard's seconds."""
    folder = tmp_path_factory.mktemp("long")
    prompt = "insert the needle " * 500
    write_data_set(folder / "episodes", num_episodes=10, seconds=24.0, has_sensor=False, instruction=prompt)
    prepare([str(folder / "episodes")], folder / "data", PrepareOptions())
    return folder / "data"


@pytest.mark.slow
def test_sigterm_ends_the_command_cleanly_and_the_next_one_goes_on(long_data, backbone, tmp_path):
    process = start_export(long_data, backbone, tmp_path)
    wait_for_a_shard(process, tmp_path)
    process.terminate()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    found = re.search(
        r"(\d+) records written.*\ninterrupted with (\d+) records left; the same command", output
    )
    num_written, num_left = map(int, found.groups())
    required = len(PackedDataset.open(long_data).required_records())
    assert num_written + num_left == required
    ((name, _),) = FeatureStore.provenances(tmp_path)
    assert len(FeatureStore.open(tmp_path, name)) == num_written
    export.main(arguments(long_data, backbone, tmp_path))
    assert len(FeatureStore.open(tmp_path, name)) == required


@pytest.mark.slow
def test_torchrun_splits_the_work_and_a_lost_ranks_share_is_picked_up(long_data, backbone, tmp_path):
    """Ctrl-C in the middle, one rank lost for good, then to the end."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
    required = len(PackedDataset.open(long_data).required_records())
    process = start_export(long_data, backbone, tmp_path, *launcher)
    wait_for_a_shard(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    written = {rank: int(n) for rank, n in re.findall(r"rank (\d) of 2: .*: (\d+) records written", output)}
    left = [int(n) for n in re.findall(r"interrupted with (\d+) records left", output)]
    assert written.keys() == {"0", "1"}, output + errors
    assert sum(written.values()) + sum(left) == required
    ((name, _),) = FeatureStore.provenances(tmp_path)
    assert len(FeatureStore.open(tmp_path, name)) == sum(written.values())
    alone = start_command(
        "export", long_data, "--backbone", backbone, "--cache", tmp_path, RANK="0", WORLD_SIZE="2"
    )
    output = alone.communicate(timeout=300)[0]
    present = len(FeatureStore.open(tmp_path, name))
    assert "rank 0 of 2: " in output
    assert f"{required - present} records of the other ranks are not there yet" in output
    assert sum(written.values()) < present < required
    process = start_export(long_data, backbone, tmp_path, *launcher)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    written = [int(n) for n in re.findall(r"(\d+) records written", output)]
    assert len(written) == 2
    assert sum(written) == required - present
    assert len(FeatureStore.open(tmp_path, name)) == required


def test_users_mistakes_are_one_line(data, backbone, tmp_path):
    good = arguments(data, backbone, tmp_path)
    for change, message in [
        ({"data": tmp_path / "missing"}, "missing"),
        ({"backbone": str(tmp_path / "no")}, "no such directory"),
        ({"encoding": Encoding(image_size="big")}, "write HEIGHTxWIDTH"),
        ({"features": FeatureOptions(layer=7)}, "--layer 7"),
        ({"features": FeatureOptions(grid=0)}, "at least 1 cell"),
        ({"encoding": Encoding(adapter=str(tmp_path))}, "no LoRA adapter here"),
    ]:
        with pytest.raises(UserError, match=message):
            export.main(dataclasses.replace(good, **change))


def test_every_option_is_explained_in_a_group(capsys):
    texts = {}
    for module in (export, tiny_backbone):
        with pytest.raises(SystemExit, match="0"):
            module.COMMAND.run(["--help"])
        texts[module] = capsys.readouterr().out
        assert all(name in texts[module] for name in option_names(module.Arguments))
    for title in ("feature", "picture", "machine"):
        assert f" {title} options " in texts[export]
