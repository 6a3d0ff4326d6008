"""openpi's own client, from the package index and in an environment of its own, talks to the server as it is."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.experiments.served import served
from tests.vla_jax.evaluation.workspace import make_workspace, save_run
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.serving.messages import pack, unpack

pytestmark = pytest.mark.slow

# The second it imports and does not ask for.
STOCK = ("openpi-client==0.1.2", "typing_extensions")
KEY = "correct-horse-battery"

SCRIPT = """
import json, sys
import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, key, observation_file, packed_file = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
observation = dict(np.load(observation_file))
policy = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
metadata = policy.get_server_metadata()
result = policy.infer(observation)
try:
    policy.infer({"vl": observation["vl"][:, :-1]})
    refused = None
except RuntimeError as error:
    refused = str(error)
broker = ActionChunkBroker(policy, action_horizon=metadata["actions"]["horizon"])
steps = [broker.infer(observation)["actions"].tolist() for _ in range(2 * metadata["actions"]["horizon"])]
with open(packed_file, "wb") as file:
    file.write(msgpack_numpy.packb(observation))
print(json.dumps({
    "numpy": np.__version__, "step": metadata["checkpoint"]["step"], "actions": result["actions"].tolist(),
    "timing": result["policy_timing"]["infer_ms"], "refused": refused, "steps": steps,
}))
"""


@pytest.fixture(scope="module")
def stock_python(tmp_path_factory):
    """A Python with the stock client, which wants NumPy 1."""
    folder = tmp_path_factory.mktemp("stock") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *STOCK],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"{STOCK[0]} cannot be installed here: {installed.stderr.strip().splitlines()[-1:]}")
    return python


def test_the_stock_client_and_its_broker_work_unchanged(stock_python, tmp_path):
    run = save_run(make_workspace(tmp_path / "workspace"), tmp_path / "run")
    policy = InsertionPolicy.from_checkpoint(run)
    rng, shapes = np.random.default_rng(0), policy.example()
    observation = {
        name: rng.normal(size=getattr(shapes, name).shape[1:]).astype(np.float32) for name in ("vl", "sensor")
    }
    np.savez(tmp_path / "observation.npz", **observation)
    (tmp_path / "key").write_text(KEY)
    with served(run, "--api-key-file", tmp_path / "key") as server:
        arguments = [server.port, KEY, tmp_path / "observation.npz", tmp_path / "packed"]
        done = subprocess.run(
            [stock_python, "-c", SCRIPT, *map(str, arguments)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["numpy"].startswith("1.")
    assert told["step"] == 0
    assert told["timing"] > 0
    assert "request refused: vl has shape" in told["refused"]
    expected = policy.predict(
        observation["vl"][None],
        np.ones((1, len(observation["vl"])), bool),
        observation["sensor"][None],
        np.ones(1, bool),
    )[0]
    np.testing.assert_allclose(told["actions"], expected, rtol=1e-5, atol=1e-6)
    # The broker gives the chunk's actions one by one, then asks again.
    np.testing.assert_allclose(told["steps"], np.concatenate([expected, expected]), rtol=1e-5, atol=1e-6)
    packed = (tmp_path / "packed").read_bytes()
    assert pack(observation) == packed
    np.testing.assert_array_equal(unpack(packed)["sensor"], observation["sensor"])
