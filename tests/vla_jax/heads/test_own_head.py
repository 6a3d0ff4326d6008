"""A head of one's own: written here, and known to recipes, training, checkpoints, policies and evaluation."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.errors import UserError
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.heads.action_head import ActionHead
from vla_jax.heads.head_config import HeadConfig, register_head
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.reference.tensor_names import tensor_names
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.loop import train
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh


@register_head
@dataclass(frozen=True)
class LinearConfig(HeadConfig):
    """One matrix from the condition to the chunk."""

    kind: ClassVar[str] = "linear"

    hidden_dim: int = 12
    gain: float = 0.1

    def make(self, horizon, action_dim, *, dtype, remat, rngs):
        return LinearHead(self, horizon, action_dim, rngs)


class LinearHead(ActionHead):
    def __init__(self, config, horizon, action_dim, rngs):
        shape = (config.hidden_dim, horizon, action_dim)
        self.kernel = nnx.Param(config.gain * rngs.params.normal(shape, jnp.float32))

    def sample(self, condition, *, keys=None, previous_chunk=None, sampling=None):
        return jnp.einsum("be,eha->bha", condition, self.kernel[...])

    def loss(self, condition, actions, *, keys, dropout_key=None, previous_chunk=None):
        return jnp.abs(self.sample(condition) - actions).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("own_head"))


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    config = make_config(
        "debug", workspace.features.spec, workspace.dataset.spec, head="linear", fusion="concat"
    )
    config = dataclasses.replace(config, steps=30, validate_every=30, checkpoint_every=30)
    out = tmp_path_factory.mktemp("run")
    train(config, workspace.dataset, workspace.features, out, mesh=make_mesh(1))
    return out


def test_it_learns(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert any("validation/action_mse" in line for line in lines)


def test_it_is_restored_and_judged(workspace, run):
    policy = InsertionPolicy.from_checkpoint(run)
    assert policy.config.head == saved_config(policy.loaded.path).policy.head == LinearConfig()
    assert policy.sampler is None
    metrics = evaluate(policy, workspace.dataset, workspace.features, "val", batch_size=16).metrics
    assert metrics["policy"]["model_type"] == "linear"
    # What a checkpoint says of its held-out error is what evaluation finds.
    assert metrics["overall_mse"] == pytest.approx(policy.loaded.metadata.metrics["validation/action_mse"])
    observation = policy.example(2)
    assert policy.infer(observation).shape == (2, 8, 7)
    np.testing.assert_array_equal(
        policy.infer(observation), policy.infer(observation, jax.random.key(3))
    )  # it draws nothing


def test_what_it_does_not_have_is_said(run):
    with pytest.raises(UserError, match="a linear policy has no sampler"):
        InsertionPolicy.from_checkpoint(run, steps=4)
    with pytest.raises(UserError, match="the reference has no linear head"):
        tensor_names(InsertionPolicy.from_checkpoint(run).config)
