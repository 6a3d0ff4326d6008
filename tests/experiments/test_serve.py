"""The command `serve` as a process: what it serves is what the policy predicts, and it ends when it is told to."""

import signal

import numpy as np
import pytest

from feature_cache.tiny_backbone import write_tiny_backbone
from tests.commands import error_line, run_command
from tests.experiments.served import served
from tests.vla_jax.evaluation.workspace import Workspace, export_features, make_workspace, save_run
from vla_jax.client import PolicyClient, RequestRefused, ServerUnreachable
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.policy.insertion_policy import InsertionPolicy

KEY = "correct-horse-battery"
# A batch's features are rounded to float16, and may round the other way than a single record's.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def backbone(root):
    return write_tiny_backbone(root / "backbone")


@pytest.fixture(scope="module")
def run(root, backbone):
    """A policy on the features of a tiny backbone."""
    from feature_cache.backbone import find_backbone

    dataset = make_workspace(root).dataset
    export_features(dataset, root / "own", find_backbone(str(backbone)).provenance(), width=64)
    return save_run(Workspace(root, dataset, FeatureTable.open(dataset, root / "own")), root / "run")


def example(policy, seed=0):
    """A request with features."""
    rng, shapes = np.random.default_rng(seed), policy.example()
    return {
        name: rng.normal(size=getattr(shapes, name).shape[1:]).astype(np.float32) for name in ("vl", "sensor")
    }


def predicted(policy, vl, vl_mask, sensor):
    return policy.predict(vl[None], vl_mask[None], sensor[None], np.ones(1, bool))[0]


def test_features_and_pictures_are_answered_as_the_policy_answers(run, backbone):
    from feature_cache.encoder import FeatureEncoder

    policy = InsertionPolicy.from_checkpoint(run)
    views = policy.data.views
    rng = np.random.default_rng(1)
    images = {view: rng.integers(0, 256, (56, 84, 3), dtype=np.uint8) for view in views}
    with served(run, "--backbone", backbone) as server:
        assert "requests: features or pictures, up to 8 in a batch and 64 clients" in server.said
        assert "actions: 8 of dx (mm)" in server.said
        with PolicyClient(port=server.port) as client:
            assert client.metadata["checkpoint"]["step"] == 0
            assert client.metadata["requests"]["pictures"]["images"]["views"] == list(views)
            given = example(policy)
            shown = {"prompt": "insert the needle", "images": images, "sensor": given["sensor"]}
            by_features, by_pictures = client.infer(given), client.infer(shown)
            with pytest.raises(RequestRefused, match="'View9' is none of the policy's"):
                client.infer(shown | {"images": {"View9": images[views[0]]}})
            assert client.infer(shown | {"images": {}})["actions"].shape == (8, 7)
    mask = np.ones(len(given["vl"]), bool)
    expected = predicted(policy, given["vl"], mask, given["sensor"])
    np.testing.assert_allclose(by_features["actions"], expected, rtol=1e-5, atol=1e-6)
    encoded = FeatureEncoder.open(backbone, policy.features, views).encode("insert the needle", images)
    expected = predicted(policy, *encoded, given["sensor"])
    np.testing.assert_allclose(by_pictures["actions"], expected, **TOLERANCE)
    assert by_pictures["policy_timing"]["encode_ms"] > 0


def test_with_a_key_it_is_served_to_other_machines_and_ctrl_c_ends_it(run, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    options = ("--host", "0.0.0.0", "--api-key-file", tmp_path / "key", "--max-batch", 1)
    with served(run, *options, stop=signal.SIGINT) as server:
        with PolicyClient(port=server.port, api_key=KEY) as client:
            assert client.metadata["requests"].keys() == {"features"}
            assert client.infer(example(InsertionPolicy.from_checkpoint(run)))["actions"].shape == (8, 7)
        with pytest.raises(ServerUnreachable, match="401"):
            PolicyClient(port=server.port)
        done = run_command("serve", run, "--port", server.port, status=2)
        assert f"cannot listen at 127.0.0.1:{server.port} (Address already in use)" in error_line(done)
