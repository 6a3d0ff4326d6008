"""How the hidden states of one record's tokens become its feature slots.

Every pooling but `tokens` is linear in the hidden states, so each is described by one weight matrix
(slots, tokens), a pure function of where the image tokens lie; the backbone multiplies on its own device. Padding
gets no column with weight, so what else is in a batch never counts.
"""

import numpy as np

from vla_jax.contracts.provenance import POOLINGS


def slot_weights(
    pooling: str, is_image: np.ndarray, image_grids: list[tuple[int, int]], grid: int
) -> np.ndarray:
    """Returns float32 (slots, tokens): each row sums to 1 and averages the tokens of its slot.

    is_image: bool (tokens,), whether each token of the record, padding excluded, stands for a piece of image.
    image_grids: (rows, columns) of tokens of each image, in the order of their tokens (row by row).
    grid: cells per side for `grid` pooling: K·K slots per image, row by row, then one slot for the text.

    `mean` averages all tokens, `last` takes the last one, `tokens` keeps each (the identity).
    """
    num_tokens = len(is_image)
    if sum(rows * columns for rows, columns in image_grids) != int(is_image.sum()):
        raise ValueError(f"{int(is_image.sum())} image tokens do not fill the grids {image_grids}")
    if pooling == "tokens":
        return np.eye(num_tokens, dtype=np.float32)
    if pooling == "last":
        return np.eye(num_tokens, dtype=np.float32)[-1:]
    if pooling == "mean":
        return np.full((1, num_tokens), 1 / num_tokens, dtype=np.float32)
    if pooling != "grid":
        raise ValueError(f"pooling {pooling!r} is none of {POOLINGS}")
    weights = np.zeros((len(image_grids) * grid * grid + 1, num_tokens), dtype=np.float32)
    image_tokens = np.flatnonzero(is_image)
    start = 0
    for i, (rows, columns) in enumerate(image_grids):
        cells = np.kron(_cell_weights(rows, grid), _cell_weights(columns, grid))
        own_slots = slice(i * grid * grid, (i + 1) * grid * grid)
        weights[own_slots, image_tokens[start : start + rows * columns]] = cells
        start += rows * columns
    weights[-1, ~is_image] = 1 / max(1, int((~is_image).sum()))
    return weights


def _cell_weights(length: int, cells: int) -> np.ndarray:
    """Returns float32 (cells, length): averages over `cells` stretches that cover [0, length).

    Where `cells` does not divide `length`, neighbouring stretches share a position (as in adaptive average
    pooling), so that none is empty even when there are more cells than positions.
    """
    weights = np.zeros((cells, length), dtype=np.float32)
    for i in range(cells):
        first, stop = i * length // cells, -(-(i + 1) * length // cells)
        weights[i, first:stop] = 1 / (stop - first)
    return weights
