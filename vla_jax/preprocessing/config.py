"""How the inputs of a policy and its actions are scaled."""

from dataclasses import dataclass
from typing import Literal

from vla_jax.contracts.checks import check

ActionScaling = Literal["mean_std", "min_max", "none"]
SensorScaling = Literal["centred", "none"]
FeatureScaling = Literal["mean_std", "none"]


@dataclass(frozen=True)
class NormalisationConfig:
    """How each input is scaled; "none" feeds raw values, as the reference does."""

    actions: ActionScaling = "mean_std"
    """mean_std: zero mean and unit deviation. min_max: the range −1…1, what the diffusion sampler clips to."""
    sensor: SensorScaling = "centred"
    """centred: the window's own mean is taken out of the A-scan (the offset of the interferometer's detector wanders
    between sessions) and the data set's mean out of the force, then both are scaled to unit deviation."""
    features: FeatureScaling = "mean_std"
    """mean_std: per slot and feature dimension."""

    def __post_init__(self) -> None:
        check(self)
