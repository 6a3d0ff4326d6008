"""Eight simulated devices give one device's losses, and split what they hold."""

import json

import pytest

from tests.commands import run_on_eight_devices

SCRIPT = """
import dataclasses, json, sys
import jax
from tests.vla_jax.training import synthetic

steps, meshes = json.loads(sys.argv[1])
config = dataclasses.replace(synthetic.config(), batch_size=16, steps=steps)
head = dataclasses.replace(config.policy.head, hidden_dim=128)
config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, head=head))
batches = [synthetic.batch(16, seed) for seed in range(steps)]
result = {}
for devices, fsdp in meshes:
    trainer = synthetic.Trainer(config, devices=devices, fsdp=fsdp)
    metrics = [trainer.step(batch) for batch in batches]
    leaves = jax.tree.leaves(trainer.state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    result[f"{devices}x{fsdp}"] = {
        "losses": [m["train/loss"] for m in metrics],
        "norms": [m["train/gradient_norm"] for m in metrics],
        "held": held / sum(leaf.nbytes for leaf in leaves),
        "compilations": trainer.update._cache_size(),
    }
print(json.dumps(result))
"""

FULL_SIZE_SCRIPT = """
import json
import jax
from vla_jax.contracts.specs import LAB_ACTIONS, DataSpec, FeatureSpec, SensorSpec
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh
from vla_jax.training.state import abstract_state

result = {}
data = DataSpec(LAB_ACTIONS, views=(), sensor=SensorSpec())
for head in ("regression", "diffusion"):
    config = make_config("frozen", FeatureSpec(num_slots=21, width=2048), data, head=head, fusion="concat")
    state = abstract_state(config, make_optimizer(config.optimizer, config.steps), make_mesh(8, fsdp=8))
    leaves = jax.tree.leaves(state)
    held = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    result[head] = sum(
        int(jax.numpy.prod(jax.numpy.array(shape))) * leaf.dtype.itemsize
        for shape, leaf in zip(held, leaves, strict=True)
    ) / total
print(json.dumps(result))
"""

# One run over three meshes, and the same on one device: its schedule does not depend on the number of steps.
RESUME_SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.training.loop import train
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh

root = Path(sys.argv[1])
workspace = make_workspace(root)
config = make_config(
    "debug", workspace.features.spec, workspace.dataset.spec, head="diffusion", fusion="concat"
)
head = dataclasses.replace(config.policy.head, hidden_dim=128)
config = dataclasses.replace(
    config, policy=dataclasses.replace(config.policy, head=head), checkpoint_every=4, validate_every=100,
    optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
)

def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]

for steps, devices, fsdp in ((4, 8, 2), (8, 1, 1), (12, 8, 4)):
    train(
        dataclasses.replace(config, steps=steps), workspace.dataset, workspace.features, root / "moved",
        mesh=make_mesh(devices, fsdp), resume=True,
    )
train(
    dataclasses.replace(config, steps=12), workspace.dataset, workspace.features, root / "stayed", mesh=make_mesh(1),
)
print(json.dumps({"moved": losses(root / "moved"), "stayed": losses(root / "stayed")}))
"""


def assert_equal_losses(runs, meshes):
    for mesh in meshes:
        assert runs[mesh]["losses"] == pytest.approx(runs["1x1"]["losses"], rel=1e-5)
        assert runs[mesh]["norms"] == pytest.approx(runs["1x1"]["norms"], rel=1e-4)
        assert runs[mesh]["compilations"] == 1


@pytest.fixture(scope="module")
def runs():
    return run_on_eight_devices(SCRIPT, json.dumps([4, [(1, 1), (8, 1), (8, 4)]]))


def test_losses_and_gradients_do_not_depend_on_the_devices(runs):
    assert_equal_losses(runs, ("8x1", "8x4"))


@pytest.mark.slow
def test_twenty_updates_do_not_depend_on_the_devices():
    runs = run_on_eight_devices(SCRIPT, json.dumps([20, [(1, 1), (8, 1), (8, 2), (8, 4)]]))
    assert len(runs["1x1"]["losses"]) == 20
    assert_equal_losses(runs, ("8x1", "8x2", "8x4"))


def test_fsdp_splits_the_state(runs):
    assert runs["8x1"]["held"] == 1.0
    assert runs["8x4"]["held"] < 0.6


def test_eight_way_fsdp_holds_a_sixth_of_the_full_size_state_at_most():
    held = run_on_eight_devices(FULL_SIZE_SCRIPT)
    assert held.keys() == {"regression", "diffusion"}
    assert max(held.values()) <= 1 / 6


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_one_and_back(tmp_path):
    losses = run_on_eight_devices(RESUME_SCRIPT, tmp_path)
    assert len(losses["moved"]) == 12
    assert losses["moved"] == pytest.approx(losses["stayed"], rel=1e-5)
