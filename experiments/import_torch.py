"""`python -m experiments.import_torch CKPT.pt OUT`: turns a checkpoint of the PyTorch reference into one of ours."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from flax import nnx

from experiments import cli
from vla_jax.interop import ReferenceOptions
from vla_jax.interop.convert import import_checkpoint
from vla_jax.models.config import Interpolation

DESCRIPTION = """Reads a checkpoint that the PyTorch reference wrote, in any of its layouts, and writes it as a
checkpoint that `evaluate` and `export_torch` read. Widths, layers, fusion and model type are inferred from the
tensors; the options say what tensors cannot tell, and are kept in the checkpoint."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    checkpoint: tyro.conf.Positional[Path]
    """The reference's `.pt` file."""
    out: tyro.conf.Positional[Path]
    """Run directory to write; it must not hold a checkpoint yet."""
    nhead: int = 8
    """Attention heads of the action expert."""
    sensor_nhead: int = 8
    """Attention heads of the sensor encoder."""
    sensor_temporal_length: int = 65
    """Sensor samples that the encoder was built for."""
    diffusion_timesteps: int = 100
    """Steps of the diffusion's noise schedule."""
    horizon: int = 8
    """Actions in a chunk; a regression checkpoint tells it itself."""
    vl_dim: int | None = None
    """Width of the vision-language features, where the tensors leave it open."""
    interpolation_mode: Interpolation = "linear"
    """How sensor windows of another length are resampled."""


def main(arguments: Arguments) -> None:
    """Imports and says what was found."""
    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(ReferenceOptions)}
    policy, directory = import_checkpoint(arguments.checkpoint, arguments.out, ReferenceOptions(**options))
    config, found = policy.config, policy.checkpoint
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(policy.network, nnx.Param)))
    print(f"{arguments.checkpoint}: {found.layout} layout, {found.ignored} tensors of other parts ignored")
    print(
        f"{config.model_type} policy, fusion {config.fusion.strategy}, vision-language width {config.vl_dim}, "
        f"expert {config.expert.num_layers} layers of {config.expert.hidden_dim}, {count / 1e6:.1f} M parameters"
    )
    print(f"written to {directory}")


if __name__ == "__main__":
    cli.run(main, Arguments, name="import_torch", description=DESCRIPTION)
