"""Whole checkpoints from and to the PyTorch reference's files."""

import dataclasses
from pathlib import Path

import numpy as np

from vla_jax.contracts.specs import FeatureSpec
from vla_jax.errors import UserError
from vla_jax.policy.artifact import load_policy, save_policy
from vla_jax.policy.checkpoints import checkpoint_steps
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.metadata import PolicyMetadata, RunIdentity, unknown_data
from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.reference.options import ReferenceOptions
from vla_jax.reference.reference_policy import ReferencePolicy, load_reference
from vla_jax.reference.torch_files import write_checkpoint
from vla_jax.reference.weights import reference_weights


def import_checkpoint(
    source: Path, run: Path, options: ReferenceOptions | None = None
) -> tuple[ReferencePolicy, Path]:
    """Reads a reference checkpoint and writes it as RUN's only checkpoint; returns both.

    The reference normalises nothing, so the normaliser written beside it is the identity.

    Raises:
        UserError: as `load_reference`; the file holds no sensor encoder though its fusion reads the sensor; or RUN
            already holds a checkpoint.
    """
    options = options or ReferenceOptions()
    if checkpoint_steps(run):
        raise UserError(f"{run} already holds a checkpoint; choose another directory")
    policy = load_reference(source, **dataclasses.asdict(options))
    if policy.config.uses_sensor and not policy.has_encoder:
        raise UserError(
            f"{source} holds no sensor encoder, which fusion {policy.config.fusion.strategy} needs; import a "
            "checkpoint with both parts"
        )
    metadata = PolicyMetadata(
        network=policy.config,
        data=unknown_data(policy.config),
        features=FeatureSpec(policy.config.vl_slots, policy.config.vl_dim),
        normalisation=NormalisationConfig(actions="none", sensor="none", features="none"),
        identity=RunIdentity(data={"imported_from": str(source), "options": dataclasses.asdict(options)}),
    )
    directory = save_policy(run, policy.network, identity_normaliser(policy.config), metadata)
    return policy, directory


def export_checkpoint(run: Path, out: Path) -> int:
    """Writes a checkpoint's (averaged) weights as a `.pt` file in the reference's full layout; returns their number.

    Raises:
        UserError: RUN holds no checkpoint, a network that the reference does not know, or a policy that scales what
            it reads or predicts: the file has no place for the scales, and the reference would act by other numbers.
    """
    policy = load_policy(run)
    arrays = reference_weights(policy.network)
    scaled = scaled_parts(policy.normaliser, policy.config)
    if scaled:
        raise UserError(
            f"the reference cannot hold this policy: {run} scales its {', '.join(scaled)}, and the reference works on "
            "raw values; train with --recipe reference, or with a --config whose normalisation is none throughout"
        )
    write_checkpoint(out, arrays)
    return len(arrays)


def identity_normaliser(config: PolicyConfig) -> Normaliser:
    """A normaliser that changes nothing: the reference works on raw values."""
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    return Normaliser(
        action_offset=np.zeros(config.action_dim, np.float32),
        action_scale=np.ones(config.action_dim, np.float32),
        force_offset=zero,
        force_scale=one,
        ascan_scale=one,
        feature_offset=np.zeros((1, config.vl_dim), np.float32),
        feature_scale=np.ones((1, config.vl_dim), np.float32),
        centre_ascan=False,
    )


def scaled_parts(normaliser: Normaliser, config: PolicyConfig) -> list[str]:
    """Returns what a policy does not take as it was recorded: of "actions", "features", "sensor"."""
    changed = {
        "actions": (normaliser.action_offset != 0, normaliser.action_scale != 1),
        "features": (normaliser.feature_offset != 0, normaliser.feature_scale != 1),
        "sensor": (
            normaliser.centre_ascan,
            normaliser.force_offset != 0,
            normaliser.force_scale != 1,
            normaliser.ascan_scale != 1,
        ),
    }
    if not config.uses_sensor:
        del changed["sensor"]
    return [part for part, signs in changed.items() if any(np.any(sign) for sign in signs)]
