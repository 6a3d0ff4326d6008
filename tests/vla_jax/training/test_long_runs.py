"""A training that saves often and goes through its data many times holds no more memory, and compiles nothing anew."""

import json
import os
import subprocess
import sys

import pytest

SAVES, EPOCHS = 60, 40
# Resident memory and compilations so far, looked at before each save; the state is large enough for a leak to show.
SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import jax
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.training import loop
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh

root, saves, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
workspace = make_workspace(root)
compiled, seen = 0, []

def count(event, duration, **_):
    global compiled
    compiled += event in ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration")

jax.monitoring.register_event_duration_secs_listener(count)

class Writer(loop.CheckpointWriter):
    def save(self, state, **options):
        self.wait()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        seen.append((resident, compiled, sum(leaf.nbytes for leaf in jax.tree.leaves(state))))
        super().save(state, **options)

loop.CheckpointWriter = Writer
config = make_config(
    "debug", workspace.features.spec, workspace.dataset.spec, head="regression", fusion="concat"
)
policy = dataclasses.replace(config.policy, head=dataclasses.replace(config.policy.head, hidden_dim=512))
epoch = len(workspace.dataset.sample_ticks("train")) // config.batch_size
steps = epochs * epoch
config = dataclasses.replace(
    config, policy=policy, steps=steps, checkpoint_every=steps // saves, validate_every=epoch, log_every=3,
)
loop.train(config, workspace.dataset, workspace.features, root / "run", mesh=make_mesh(1))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_memory_stays_flat_and_nothing_is_compiled_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(SAVES), str(EPOCHS)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) >= SAVES
    resident, compiled, state = zip(*seen, strict=True)
    # By the fifth save there has been a step, a log line, a validation and a save of each kind.
    assert compiled[-1] == compiled[4]
    # The allocator's pools, and tensorstore's of 100 MB, take about twenty saves to fill.
    settled, late = max(resident[25:35]), max(resident[-10:])
    assert late - settled < state[0], f"resident memory in MB: {[value // 10**6 for value in resident]}"
