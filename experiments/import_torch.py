"""`python -m experiments.import_torch CKPT.pt OUT`: turns a checkpoint of the PyTorch reference into one of ours."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from vla_jax.reference.options import ReferenceOptions

DESCRIPTION = """Reads a checkpoint that the PyTorch reference wrote, in any of its layouts, and writes it as a
checkpoint that `evaluate` and `export_torch` read. Widths, layers, fusion and model type are inferred from the
tensors; the options say what tensors cannot tell, and are kept in the checkpoint."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CKPT.pt")]
    """The reference's `.pt` file."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Run directory to write; it must not hold a checkpoint yet."""
    options: Annotated[ReferenceOptions, tyro.conf.arg(name="")] = field(default_factory=ReferenceOptions)


def main(arguments: Arguments) -> None:
    """Imports and says what was found."""
    import jax
    from flax import nnx

    from vla_jax.heads.transformer_head import TransformerHeadConfig
    from vla_jax.reference.conversion import import_checkpoint

    policy, directory = import_checkpoint(arguments.checkpoint, arguments.out, arguments.options)
    config, head, found = policy.config, policy.config.head, policy.checkpoint
    assert found is not None, "it was read from a file"
    assert isinstance(head, TransformerHeadConfig), "as all of the reference's are"
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(policy.network, nnx.Param)))
    print(f"{arguments.checkpoint}: {found.layout} layout, {found.ignored} tensors of other parts ignored")
    print(
        f"{head.kind} policy, fusion {config.fusion.strategy}, vision-language width {config.vl_dim}, "
        f"expert {head.num_layers} layers of {head.hidden_dim}, {count / 1e6:.1f} M parameters"
    )
    print(f"written to {directory}")


COMMAND = cli.Command("import_torch", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
