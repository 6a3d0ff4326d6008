"""The export command on a small data set of windows episodes, with the tiny backbone."""

import dataclasses
import shutil

import pytest

from experiments import cli, export, tiny_backbone
from experiments.export import Arguments
from feature_cache.store import FeatureStore
from tests.vla_jax.data.recordings import write_data_set, write_windows_episode
from vla_jax.data import FeatureTable, PackedDataset
from vla_jax.data.packing import PrepareOptions, prepare
from vla_jax.errors import UserError


@pytest.fixture(autouse=True)
def _own_fingerprint_memory(tmp_path_factory, monkeypatch):
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
    return Arguments(data, backbone=str(backbone), cache=cache, device="cpu", threads=1, **options)


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


def test_a_set_without_images_has_nothing_to_export(backbone, tmp_path, capsys):
    write_windows_episode(tmp_path / "episodes/one", views=())
    write_windows_episode(tmp_path / "episodes/two", views=(), seed=1)
    prepare([str(tmp_path / "episodes")], tmp_path / "data", PrepareOptions())
    assert export.main(arguments(tmp_path / "data", "no/backbone/needed", tmp_path / "cache")) is None
    assert capsys.readouterr().out == "nothing to export: no episode has images\n"
    assert not (tmp_path / "cache").exists()


def test_users_mistakes_are_one_line(data, backbone, tmp_path):
    good = arguments(data, backbone, tmp_path)
    for change, message in [
        ({"data": tmp_path / "missing"}, "missing"),
        ({"backbone": str(tmp_path / "no")}, "no such directory"),
        ({"image_size": "big"}, "write HEIGHTxWIDTH"),
        ({"layer": 7}, "--layer 7"),
        ({"grid": 0}, "at least 1 cell"),
        ({"adapter": str(tmp_path)}, "no LoRA adapter here"),
    ]:
        with pytest.raises(UserError, match=message):
            export.main(dataclasses.replace(good, **change))


def test_every_option_is_explained(capsys):
    for module, name in ((export, "export"), (tiny_backbone, "tiny_backbone")):
        with pytest.raises(SystemExit, match="0"):
            cli.run(module.main, module.Arguments, name=name, description="", argv=["--help"])
        text = capsys.readouterr().out
        assert text.count("--") >= len(dataclasses.fields(module.Arguments)) - 1
