"""What a run needs is compared with what there is, before anything is allocated or written."""

import dataclasses

import pytest

from tests.vla_jax.evaluation.workspace import make_workspace, policy_config
from vla_jax.errors import UserError
from vla_jax.training import memory
from vla_jax.training.config import TrainConfig
from vla_jax.training.loop import train
from vla_jax.training.memory import host_memory, refuse_beyond_memory, refuse_update_beyond_memory
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.sharding import make_mesh
from vla_jax.training.state import abstract_state


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("memory"))


def check(workspace, config):
    mesh = make_mesh(1)
    abstract = abstract_state(config, make_optimizer(config.optimizer, config.steps), mesh)
    refuse_beyond_memory(config, workspace.dataset, workspace.features, abstract, mesh)


def test_a_batch_is_counted_by_its_samples(workspace, monkeypatch):
    config = TrainConfig(policy=policy_config(workspace), batch_size=1000)
    check(workspace, config)
    # A sample of 65 rows of 1026 float16 is 133 kB.
    monkeypatch.setattr(memory, "host_memory", lambda: 150_000_000)
    check(workspace, config)
    monkeypatch.setattr(memory, "host_memory", lambda: 130_000_000)
    with pytest.raises(
        UserError, match=r"a batch of 1000 samples needs 0.13\d GB of memory, and there are 0.13 GB"
    ):
        check(workspace, config)


def test_a_network_is_counted_with_its_average_and_moments(workspace, monkeypatch):
    policy = policy_config(workspace)
    sensor = dataclasses.replace(policy.sensor, output_dim=4000)
    config = TrainConfig(policy=dataclasses.replace(policy, sensor=sensor))
    monkeypatch.setattr(memory, "host_memory", lambda: 100_000_000)
    with pytest.raises(
        UserError, match=r"the network with its average and optimizer needs 0.\d+ GB of memory"
    ):
        check(workspace, config)


def test_an_update_is_compared_as_the_compiler_says(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    refuse_update_beyond_memory(None, make_mesh(1))
    refuse_update_beyond_memory(1000, make_mesh(1))
    with pytest.raises(UserError, match="--grad-accum-steps"):
        refuse_update_beyond_memory(1001, make_mesh(1))


def test_this_machine_has_memory():
    assert host_memory() > 1 << 28


def test_nothing_is_written_before(workspace, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    config = TrainConfig(policy=policy_config(workspace))
    with pytest.raises(UserError, match="of memory"):
        train(config, workspace.dataset, workspace.features, tmp_path / "run", mesh=make_mesh(1))
    assert not (tmp_path / "run").exists()
