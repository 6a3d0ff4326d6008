"""The regression expert against the reference's numbers."""

import numpy as np
import pytest

from tests.vla_jax import recorded


@pytest.mark.parametrize("fusion", recorded.FUSIONS)
def test_actions_equal_the_reference(fusion):
    record = recorded.load(f"regression_expert_{fusion}")
    network = recorded.expert_policy("regression", record)
    features = record.inputs["sensor_features"]
    decode = recorded.quick_jit(
        lambda vl, z_chunk: network.expert.decode(network.condition(vl, features), z_chunk)
    )
    for tokens in ("s1", "s5"):
        for chunk in ("zero", "rand"):
            z_chunk = record.inputs[f"z_chunk_{chunk}"]
            actions, delta = decode(record.inputs[f"vl_tokens_{tokens}"], z_chunk)
            np.testing.assert_allclose(actions, record.outputs[f"pred_actions_{tokens}_{chunk}"], atol=1e-5)
            np.testing.assert_allclose(delta, record.outputs[f"delta_{tokens}_{chunk}"], atol=1e-5)
