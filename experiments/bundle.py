"""`python -m experiments.bundle RUN OUT`: writes a policy as a folder that runs with jax and numpy alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import cli

DESCRIPTION = """Exports a policy as a program for CPUs and NVIDIA GPUs, with its weights, for a robot's computer: the
folder needs jax, numpy and flatbuffers there, and neither vla-jax nor flax. It predicts what `InsertionPolicy.predict`
predicts. `python OUT/run.py` checks it and times it."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or one checkpoint in it."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write; it must not exist yet."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which checkpoint of a training output directory; best by its validation error."""
    sampler: str | None = None
    """How a policy that denoises does so: diffusion by ddim or ddpm, flow by euler; the checkpoint's own by default."""
    steps: int | None = None
    """Denoising steps of a policy that denoises; the checkpoint's own by default."""
    guided: bool = False
    """Draw the denoising to the actions that are planned already (real-time chunking)."""


def main(arguments: Arguments) -> None:
    """Writes the bundle and says what is in it."""
    from vla_jax.bundle.writing import PLATFORMS, check_free, write_bundle
    from vla_jax.policy.insertion_policy import InsertionPolicy

    check_free(arguments.out)
    policy = InsertionPolicy.from_checkpoint(
        arguments.run,
        checkpoint=arguments.checkpoint,
        sampler=arguments.sampler,
        steps=arguments.steps,
        guided=arguments.guided,
    )
    write_bundle(policy, arguments.out)
    print(
        f"{arguments.out}: {policy.config.head.kind} policy of {policy.loaded.path}, "
        f"{policy.num_parameters / 1e6:.1f} M parameters, for {' and '.join(PLATFORMS)}"
    )
    print(f"try it with: python {arguments.out / 'run.py'}")


COMMAND = cli.Command("bundle", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
