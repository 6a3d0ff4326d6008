"""The command `serve` as a process: what it serves is what the policy predicts, and it ends when it is told to."""

import signal

import numpy as np
import pytest

from feature_cache.tiny_backbone import write_tiny_backbone
from tests.experiments.served import served
from tests.vla_jax.evaluation.workspace import Workspace, export_features, make_workspace, save_run
from vla_jax.client import PolicyClient, RequestRefused, ServerUnreachable
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.policy.insertion_policy import InsertionPolicy

KEY = "correct-horse-battery"
# A batch's features are rounded to float16, and may round the other way than a single record's.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("serve"))


def example(policy):
    """A request with features."""
    rng, shapes = np.random.default_rng(0), policy.example()
    return {
        name: rng.normal(size=getattr(shapes, name).shape[1:]).astype(np.float32) for name in ("vl", "sensor")
    }


def predicted(policy, vl, vl_mask, sensor):
    return policy.predict(vl[None], vl_mask[None], sensor[None], np.ones(1, bool))[0]


def test_with_a_key_it_is_served_to_other_machines_and_sigterm_ends_it(workspace, tmp_path):
    run = save_run(workspace, tmp_path / "run")
    (tmp_path / "key").write_text(KEY + "\n")
    policy = InsertionPolicy.from_checkpoint(run)
    given = example(policy)
    with served(run, "--host", "0.0.0.0", "--api-key-file", tmp_path / "key", "--max-batch", 2) as server:
        assert "requests: features, up to 2 in a batch and 64 clients" in server.said
        assert "actions: 8 of dx (mm)" in server.said
        with PolicyClient(port=server.port, api_key=KEY) as client:
            assert client.metadata["checkpoint"]["step"] == 0
            reply = client.infer(given)
        with pytest.raises(ServerUnreachable, match="401"):
            PolicyClient(port=server.port)
    expected = predicted(policy, given["vl"], np.ones(len(given["vl"]), bool), given["sensor"])
    np.testing.assert_allclose(reply["actions"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_pictures_are_answered_as_the_policy_answers_to_their_features_and_ctrl_c_ends_it(
    workspace, tmp_path
):
    from feature_cache.backbone import find_backbone
    from feature_cache.encoder import FeatureEncoder

    backbone, dataset = write_tiny_backbone(tmp_path / "backbone"), workspace.dataset
    export_features(dataset, tmp_path / "cache", find_backbone(str(backbone)).provenance(), width=64)
    features = FeatureTable.open(dataset, tmp_path / "cache")
    run = save_run(Workspace(tmp_path, dataset, features), tmp_path / "run")
    policy = InsertionPolicy.from_checkpoint(run)
    rng, views = np.random.default_rng(1), policy.data.views
    images = {view: rng.integers(0, 256, (56, 84, 3), dtype=np.uint8) for view in views}
    sensor = example(policy)["sensor"]
    with served(run, "--backbone", backbone, stop=signal.SIGINT) as server:
        assert "requests: features or pictures" in server.said
        with PolicyClient(port=server.port) as client:
            assert client.metadata["requests"]["pictures"]["images"]["views"] == list(views)
            shown = {"prompt": "insert the needle", "images": images, "sensor": sensor}
            reply = client.infer(shown)
            with pytest.raises(RequestRefused, match="'View9' is none of the policy's"):
                client.infer(shown | {"images": {"View9": images[views[0]]}})
            with pytest.raises(RequestRefused, match="must not contain the image token"):
                client.infer(shown | {"prompt": "<|image_pad|>"})
            assert client.infer(shown | {"images": {}})["actions"].shape == (8, 7)
    encoded = FeatureEncoder.open(backbone, policy.features, views).encode("insert the needle", images)
    np.testing.assert_allclose(reply["actions"], predicted(policy, *encoded, sensor), **TOLERANCE)
    assert reply["policy_timing"]["encode_ms"] > 0
