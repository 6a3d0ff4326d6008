"""Eight simulated devices give one device's losses, and split what they hold."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, json
import jax
from tests.vla_jax.training import synthetic

config = dataclasses.replace(synthetic.config(), batch_size=16)
expert = dataclasses.replace(config.policy.expert, hidden_dim=128)
config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, expert=expert))
batches = [synthetic.batch(16, seed) for seed in range(4)]
result = {}
for devices, fsdp in ((1, 1), (8, 1), (8, 4)):
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


@pytest.fixture(scope="module")
def runs():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["8x1", "8x4"])
def test_losses_and_gradients_do_not_depend_on_the_devices(runs, mesh):
    assert runs[mesh]["losses"] == pytest.approx(runs["1x1"]["losses"], rel=1e-5)
    assert runs[mesh]["norms"] == pytest.approx(runs["1x1"]["norms"], rel=1e-4)
    assert runs[mesh]["compilations"] == 1


def test_fsdp_splits_the_state(runs):
    assert runs["8x1"]["held"] == 1.0
    assert runs["8x4"]["held"] < 0.6
