"""What the networks are fed: statistics of actions and sensor before and after normalisation."""

from dataclasses import dataclass

import numpy as np

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.preprocessing.normaliser import NormalisationConfig, make_normaliser

NUM_WINDOWS = 64


@dataclass(frozen=True)
class Distribution:
    """Values of one quantity: physical ones, and the same after normalisation."""

    name: str
    before: np.ndarray
    after: np.ndarray


def distributions(dataset: PackedDataset, config: NormalisationConfig | None = None) -> list[Distribution]:
    """Returns actions, force and A-scan of the training samples, before and after normalisation.

    All training actions; the sensor in up to 64 windows, spread evenly. config: the default recipe's by default.
    """
    ticks = dataset.sample_ticks("train")
    if not len(ticks):
        return []
    normaliser = make_normaliser(
        config or NormalisationConfig(), dataset.statistics, np.zeros((1, 1)), np.ones((1, 1))
    )
    actions = np.asarray(dataset.ticks.delta[ticks])
    scaled = np.asarray(normaliser.normalise_actions(actions))
    found = [
        Distribution(name, actions[:, i], scaled[:, i]) for i, name in enumerate(dataset.spec.actions.names)
    ]
    with_sensor = ticks[dataset.has_sensor(ticks)]
    if len(with_sensor):
        places = np.linspace(0, len(with_sensor) - 1, min(NUM_WINDOWS, len(with_sensor))).astype(int)
        windows = dataset.sensor_windows(with_sensor[places])
        scaled = np.asarray(normaliser.normalise_sensor(windows))
        windows = windows.astype(np.float32)
        found += [
            Distribution("force", windows[..., 0].ravel(), scaled[..., 0].ravel()),
            Distribution("A-scan", windows[..., 1:].ravel(), scaled[..., 1:].ravel()),
        ]
    return found


def describe(values: np.ndarray) -> tuple[float, float, float, float]:
    """Returns mean, standard deviation, minimum and maximum, computed in float64."""
    return (
        float(values.mean(dtype=np.float64)),
        float(values.std(dtype=np.float64)),
        float(values.min()),
        float(values.max()),
    )
