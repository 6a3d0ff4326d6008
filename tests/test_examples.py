"""The programs in examples/ run as a user runs them, on tiny data and a tiny backbone."""

import os
import subprocess
import sys

import numpy as np
import pytest

from feature_cache.backbone import find_backbone
from feature_cache.exporter import export
from feature_cache.tiny_backbone import write_tiny_backbone
from feature_cache.worklist import make_worklist
from tests.commands import REPOSITORY
from tests.vla_jax.recordings.recorded_episodes import write_data_set
from vla_jax import InsertionPolicy
from vla_jax.data import FeatureTable, PrepareOptions, prepare


def run_example(name, *arguments):
    """Returns the lines that an example printed."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with episodes, their data set, a backbone and its features."""
    root = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "xdg"))
        source = write_data_set(root / "episodes", 4, seconds=1.0)
        dataset = prepare([str(source)], root / "data", PrepareOptions(val_fraction=0.5)).dataset
        files = find_backbone(str(write_tiny_backbone(root / "backbone")))
        provenance = files.provenance()
        records = [(record.prompt, record.images) for record in dataset.records]
        export(files, provenance, make_worklist(provenance.digest(), records), root / "cache", device="cpu")
    return root, dataset


def test_train_and_predict_then_act_on_live_pictures(root):
    root, dataset = root
    printed = run_example(
        "train_and_predict.py", root / "data", root / "cache", root / "run", "--recipe", "debug"
    )
    assert [line.split(":")[0] for line in printed[-7:]] == list(dataset.spec.actions.names)
    assert float(printed[-7].split()[-2]) > 0

    record = dataset.records[int(dataset.required_records()[-1])]
    pictures = [f"{image.view}={image.path}" for image in record.images]
    assert len(pictures) == 2
    printed = run_example("live_pictures.py", root / "run", root / "backbone", record.prompt, *pictures)
    assert printed[0].split() == list(dataset.spec.actions.names)
    shown = np.array([line.split() for line in printed[1:]], float)
    # What it decides is what the exported features of the same pictures lead to.
    vl, vl_mask = FeatureTable.open(dataset, root / "cache").gather(dataset.required_records()[-1:])
    expected = InsertionPolicy.from_checkpoint(root / "run").predict(vl, vl_mask, None, np.array([False]))
    np.testing.assert_allclose(shown, expected[0], atol=2e-3)
