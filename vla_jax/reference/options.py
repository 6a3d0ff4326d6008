"""What a reader of the reference's checkpoints must be told. Imports no JAX: commands show it in their help."""

from dataclasses import dataclass

from vla_jax.models.config import Interpolation


@dataclass(frozen=True)
class ReferenceOptions:
    """What the tensors cannot tell, with the reference's defaults."""

    nhead: int = 8
    """Attention heads of the action expert."""
    sensor_nhead: int = 8
    """Attention heads of the sensor encoder."""
    sensor_temporal_length: int = 65
    """Sensor samples that the encoder was built for; other windows are resampled to it."""
    diffusion_timesteps: int = 100
    """Steps of the diffusion's noise schedule."""
    horizon: int = 8
    """Actions in a chunk; a regression checkpoint tells it itself."""
    vl_dim: int | None = None
    """Width of the vision-language features; needed only where a checkpoint holds a fusion of vision-language and
    sensor features without the sensor encoder."""
    interpolation_mode: Interpolation = "linear"
    """How sensor windows of another length are resampled."""
