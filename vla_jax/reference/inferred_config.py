"""Works out a reference policy's configuration from the names and shapes of its tensors."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.errors import UserError
from vla_jax.heads.head_config import head_config
from vla_jax.heads.transformer_head import TransformerHeadConfig
from vla_jax.models.config import FusionConfig, FusionStrategy, SensorEncoderConfig
from vla_jax.policy.config import PolicyConfig
from vla_jax.reference.options import ReferenceOptions
from vla_jax.reference.tensor_names import ENCODER, EXPERT, HEADS

Shapes = Mapping[str, tuple[int, ...]]


def infer_config(shapes: Shapes, options: ReferenceOptions, *, source: str) -> PolicyConfig:
    """The configuration of the policy whose state dict has these shapes.

    Every size is what most of the tensors that show it agree on, so that one bad tensor does not hide what the
    rest says; `network_from_weights` then lists all that do not fit.

    Raises:
        UserError: there is no action expert among the tensors, or it is none of the two kinds.
    """
    expert = {
        name.removeprefix(f"{EXPERT}."): shape
        for name, shape in shapes.items()
        if name.startswith(f"{EXPERT}.")
    }
    encoder = {
        name.removeprefix(f"{ENCODER}."): shape
        for name, shape in shapes.items()
        if name.startswith(f"{ENCODER}.")
    }
    kinds = [kind for kind, head in HEADS.items() if any(name.startswith(head.marks) for name in expert)]
    if len(kinds) != 1:
        raise UserError(
            f"{source} holds no action expert of the reference: expected tensors {EXPERT}.time_embed… (diffusion) or "
            f"{EXPERT}.pos_embed… (regression), found {_first(shapes)}"
        )
    stored = HEADS[kinds[0]]
    # An imported policy adds to zeros, and goes on training so: true actions as the anchor teach nothing.
    reference = head_config(kinds[0]).preset("full", reference=True).without_leaks()
    assert isinstance(reference, TransformerHeadConfig), "as all of the reference's are"
    layers, output = stored.layers, stored.output
    width = _agreed(
        [
            _axis(expert, name, axis)
            for name, axis in [
                ("output_head.0.weight", 0),
                (f"{output}.weight", 1),
                ("action_embed.weight", 0),
                ("pos_embed", 2),
                ("cond_proj.bias", 0),
                ("fusion_proj.bias", 0),
                (f"{layers}.layers.0.linear2.weight", 0),
                (f"{layers}.layers.0.norm1.weight", 0),
            ]
        ],
        default=reference.hidden_dim,
    )
    strategy, vl_dim, sensor_dim = _fusion(
        expert, encoder, _axis(expert, f"{stored.condition}.weight", 1), options
    )
    head = replace(
        reference,
        hidden_dim=width,
        num_layers=_count(expert, rf"{layers}\.layers\.(\d+)\.") or reference.num_layers,
        num_heads=options.nhead,
        **_READ[kinds[0]](expert, options),
    )
    return PolicyConfig(
        head=head,
        vl_dim=vl_dim,
        horizon=_agreed([_axis(expert, "pos_embed", 1)], default=options.horizon),
        action_dim=_agreed(
            [_axis(expert, f"{output}.weight", 0), _axis(expert, f"{output}.bias", 0)],
            default=LAB_ACTIONS.size,
        ),
        sensor=_sensor(encoder, sensor_dim, options),
        # Masks are honoured when given; without them every token counts, as in the reference.
        fusion=FusionConfig(strategy=strategy, vl_pool="mean", num_heads=options.nhead),
        no_sensor_embedding=False,
    )


def _diffusion_fields(expert: Shapes, options: ReferenceOptions) -> dict[str, int]:
    # It imports JAX, and a command's --help comes through this file.
    from vla_jax.heads.diffusion import DiffusionConfig

    steps = options.diffusion_timesteps
    return {
        "time_embedding_dim": _agreed(
            [_axis(expert, "time_embed.0.weight", 1)], default=DiffusionConfig.time_embedding_dim
        ),
        "steps": steps,
        "ddim_steps": min(DiffusionConfig.ddim_steps, steps),
    }


def _fusion(
    expert: Shapes, encoder: Shapes, condition_in: int | None, options: ReferenceOptions
) -> tuple[FusionStrategy, int, int]:
    """(strategy, vl_dim, sensor_dim); the two that read both inputs by one matrix need one width to tell the other."""
    sensor_dim = _agreed(
        [_axis(encoder, "projection.4.weight", 0), _axis(encoder, "projection.1.weight", 0)],
        default=SensorEncoderConfig.output_dim,
    )
    if any(name.startswith(("vl_proj.", "sensor_proj.", "cross_attn.", "gate.")) for name in expert):
        strategy = "gated" if any(name.startswith("gate.") for name in expert) else "cross_attention"
        vl_dim = _agreed([_axis(expert, "vl_proj.weight", 1)], default=options.vl_dim or 2048)
        return strategy, vl_dim, _agreed([_axis(expert, "sensor_proj.weight", 1)], default=sensor_dim)
    if condition_in is None:
        return ("concat" if encoder else "none"), options.vl_dim or 2048, sensor_dim
    if options.vl_dim is not None:
        if condition_in <= options.vl_dim:
            return "none", options.vl_dim, sensor_dim
        return "concat", options.vl_dim, condition_in - options.vl_dim
    if encoder and condition_in > sensor_dim:
        return "concat", condition_in - sensor_dim, sensor_dim
    return "none", condition_in, sensor_dim


def _sensor(encoder: Shapes, sensor_dim: int, options: ReferenceOptions) -> SensorEncoderConfig:
    layers = _count(encoder, r"transformer\.layers\.(\d+)\.")
    convolutions = _count(encoder, r"conv_backbone\.(\d+)\.")
    shared = {
        "temporal_length": options.sensor_temporal_length,
        "interpolation": options.interpolation_mode,
        "output_dim": sensor_dim,
        "num_heads": options.sensor_nhead,
        "masked_statistics": False,
    }
    if not encoder:
        return SensorEncoderConfig(**shared)
    return SensorEncoderConfig(
        channels=_agreed([_axis(encoder, "conv_backbone.0.weight", 1)], default=SensorEncoderConfig.channels),
        hidden_dim=_agreed(
            [
                _axis(encoder, name, 0)
                for name in ("conv_backbone.0.weight", "conv_backbone.0.bias", "conv_backbone.1.weight")
            ],
            default=SensorEncoderConfig.hidden_dim,
        ),
        # torch counts four modules to a block, of which the first two have tensors.
        num_conv_layers=(convolutions + 2) // 4 or SensorEncoderConfig.num_conv_layers,
        use_transformer=layers > 0,
        num_transformer_layers=max(layers, 1),
        **shared,
    )


_READ = {"regression": lambda expert, options: {}, "diffusion": _diffusion_fields}
"""The fields that one kind of head has alone, from its tensors and the options."""


def _axis(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _agreed(values: Iterable[int | None], *, default: int) -> int:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else default


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index that the pattern's group shows among the names, or 0."""
    indices = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(indices, default=-1) + 1


def _first(shapes: Shapes) -> str:
    return (", ".join(list(shapes)[:3]) + ", …") if shapes else "no tensors"
