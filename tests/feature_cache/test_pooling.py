import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cache.pooling import slot_weights

TEXT, IMAGE = False, True


def layout(grids):
    """Two text tokens before each image and one at the end."""
    return np.array([flag for h, w in grids for flag in [TEXT, TEXT, *[IMAGE] * (h * w)]] + [TEXT])


@given(
    st.sampled_from(["grid", "mean", "last", "tokens"]),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=3),
    st.integers(1, 4),
)
def test_every_slot_is_an_average(pooling, grids, grid):
    is_image = layout(grids)
    weights = slot_weights(pooling, is_image, grids, grid)
    num_slots = {"tokens": len(is_image), "last": 1, "mean": 1, "grid": len(grids) * grid * grid + 1}[pooling]
    assert weights.shape == (num_slots, len(is_image))
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_grid_cells_average_quarters_of_each_image_and_the_text_comes_last():
    grids = [(2, 4), (4, 2)]
    is_image = layout(grids)
    hidden = np.zeros((len(is_image), 1), np.float32)
    hidden[is_image, 0] = [0, 0, 1, 1, 2, 2, 3, 3, 10, 11, 10, 11, 12, 13, 12, 13]
    hidden[~is_image, 0] = [100, 200, 300, 400, 500]
    slots = slot_weights("grid", is_image, grids, 2) @ hidden
    np.testing.assert_allclose(slots[:, 0], [0, 1, 2, 3, 10, 11, 12, 13, 300], rtol=1e-6)


def test_uneven_grids_agree_with_adaptive_average_pooling():
    import torch

    hidden = np.random.default_rng(0).normal(size=(5 * 7, 3)).astype(np.float32)
    weights = slot_weights("grid", np.ones(35, bool), [(5, 7)], 3)
    image = torch.from_numpy(hidden).T.reshape(3, 5, 7)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, 3).reshape(3, 9).T.numpy()
    np.testing.assert_allclose((weights @ hidden)[:-1], expected, rtol=1e-5, atol=1e-6)


def test_mean_last_and_tokens():
    hidden = np.arange(5, dtype=np.float32)[:, None]
    is_image = layout([(1, 2)])
    for pooling, expected in [("mean", [2]), ("last", [4]), ("tokens", [0, 1, 2, 3, 4])]:
        slots = slot_weights(pooling, is_image, [(1, 2)], 1) @ hidden
        np.testing.assert_allclose(slots[:, 0], expected)


def test_grids_that_do_not_match_the_tokens_are_an_error():
    with pytest.raises(ValueError, match="2 image tokens do not fill"):
        slot_weights("grid", layout([(1, 2)]), [(2, 2)], 2)
