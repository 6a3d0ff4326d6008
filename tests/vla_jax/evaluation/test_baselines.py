import numpy as np

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.evaluation.baselines import baseline_predictions
from vla_jax.evaluation.metrics import action_metrics


def test_predictions():
    mean = np.array([0.1, 0.2, 0.3, 0, 0, 0, 1])
    previous = np.arange(21, dtype=np.float32).reshape(3, 7)
    predictions = baseline_predictions(mean, previous, horizon=8)
    assert list(predictions) == ["zero", "mean", "previous"]
    assert all(value.shape == (3, 8, 7) and value.dtype == np.float32 for value in predictions.values())
    assert not predictions["zero"].any()
    np.testing.assert_array_equal(predictions["mean"][2, 5], mean.astype(np.float32))
    for step in range(8):
        np.testing.assert_array_equal(predictions["previous"][:, step], previous)


def test_zero_baseline_misses_the_gripper_and_motion_mse_says_so():
    target = np.zeros((4, 8, 7), np.float32)
    target[..., 6] = 1.0
    zero = baseline_predictions(np.zeros(7), target[:, 0], 8)["zero"]
    metrics = action_metrics(zero, target, LAB_ACTIONS)
    assert metrics["overall_mse"] == 1 / 7
    assert metrics["motion_mse"] == 0.0
