"""Which of the reference's PyTorch tensors is which of our arrays: one table, read in both directions."""

from collections.abc import Callable
from dataclasses import dataclass

from vla_jax.errors import UserError
from vla_jax.heads.transformer_head import TransformerHeadConfig
from vla_jax.policy.config import PolicyConfig

ENCODER = "sensor_encoder"
EXPERT = "action_expert"


@dataclass(frozen=True)
class TensorName:
    """One tensor under both names.

    torch: its key in the reference's whole state dict. ours: its dotted path in `PolicyNetwork`.
    reversed_axes: whether our axes are torch's in reverse, as Linear (out, in) → (in, out) and Conv1d (out, in, k)
    → (k, in, out) are.
    """

    torch: str
    ours: str
    reversed_axes: bool = False


def tensor_names(config: PolicyConfig) -> list[TensorName]:
    """All tensors of a policy that the reference has too.

    What it lacks (horizon embedding, attention pooling, the "no sensor" vector) is not in the table: a policy with
    such parts cannot be written as the reference's.

    Raises:
        UserError: the reference has no head of this kind.
    """
    if config.head.kind not in HEADS:
        raise UserError(f"the reference has no {config.head.kind} head, only {' and '.join(HEADS)}")
    assert isinstance(config.head, TransformerHeadConfig), "as all of the reference's are"
    head = HEADS[config.head.kind]
    names = _encoder_names(config) if config.uses_sensor else []
    names += _fusion_names(config)
    names += _linear(f"{EXPERT}.{head.condition}", "fusion.project")
    for layer in range(config.head.num_layers):
        names += head.layer(f"{EXPERT}.{head.layers}.layers.{layer}", f"expert.layers.{layer}")
    return names + head.others


def _linear(torch: str, ours: str) -> list[TensorName]:
    return [
        TensorName(f"{torch}.weight", f"{ours}.kernel", reversed_axes=True),
        TensorName(f"{torch}.bias", f"{ours}.bias"),
    ]


def _norm(torch: str, ours: str) -> list[TensorName]:
    return [TensorName(f"{torch}.weight", f"{ours}.scale"), TensorName(f"{torch}.bias", f"{ours}.bias")]


def _batch_norm(torch: str, ours: str) -> list[TensorName]:
    return [
        *_norm(torch, ours),
        TensorName(f"{torch}.running_mean", f"{ours}.mean"),
        TensorName(f"{torch}.running_var", f"{ours}.var"),
        TensorName(f"{torch}.num_batches_tracked", f"{ours}.num_batches"),
    ]


def _attention(torch: str, ours: str) -> list[TensorName]:
    return [
        TensorName(f"{torch}.in_proj_weight", f"{ours}.in_proj.kernel", reversed_axes=True),
        TensorName(f"{torch}.in_proj_bias", f"{ours}.in_proj.bias"),
        *_linear(f"{torch}.out_proj", f"{ours}.out_proj"),
    ]


def _feed_forward(torch: str, ours: str) -> list[TensorName]:
    return [
        *_linear(f"{torch}.linear1", f"{ours}.feed_forward.linear1"),
        *_linear(f"{torch}.linear2", f"{ours}.feed_forward.linear2"),
    ]


def _encoder_layer(torch: str, ours: str) -> list[TensorName]:
    return [
        *_attention(f"{torch}.self_attn", f"{ours}.self_attn"),
        *_feed_forward(torch, ours),
        *_norm(f"{torch}.norm1", f"{ours}.norm1"),
        *_norm(f"{torch}.norm2", f"{ours}.norm2"),
    ]


def _decoder_layer(torch: str, ours: str) -> list[TensorName]:
    return [
        *_attention(f"{torch}.self_attn", f"{ours}.self_attn"),
        *_attention(f"{torch}.multihead_attn", f"{ours}.cross_attn"),
        *_feed_forward(torch, ours),
        *_norm(f"{torch}.norm1", f"{ours}.norm1"),
        *_norm(f"{torch}.norm2", f"{ours}.norm2"),
        *_norm(f"{torch}.norm3", f"{ours}.norm3"),
    ]


def _encoder_names(config: PolicyConfig) -> list[TensorName]:
    names = []
    for block in range(config.sensor.num_conv_layers):
        ours = f"sensor_encoder.conv_blocks.{block}"
        # torch's Sequential counts convolution, norm, activation and dropout.
        names += _linear(f"{ENCODER}.conv_backbone.{4 * block}", f"{ours}.conv")
        names += _batch_norm(f"{ENCODER}.conv_backbone.{4 * block + 1}", f"{ours}.norm")
    if config.sensor.use_transformer:
        for layer in range(config.sensor.num_transformer_layers):
            names += _encoder_layer(f"{ENCODER}.transformer.layers.{layer}", f"sensor_encoder.layers.{layer}")
    names += _linear(f"{ENCODER}.projection.0", "sensor_encoder.project_in")
    names += _norm(f"{ENCODER}.projection.1", "sensor_encoder.project_norm")
    return names + _linear(f"{ENCODER}.projection.4", "sensor_encoder.project_out")


def _fusion_names(config: PolicyConfig) -> list[TensorName]:
    names = []
    if config.fusion.strategy in ("cross_attention", "gated"):
        names += _linear(f"{EXPERT}.vl_proj", "fusion.vl_proj")
        names += _linear(f"{EXPERT}.sensor_proj", "fusion.sensor_proj")
    if config.fusion.strategy == "cross_attention":
        names += _attention(f"{EXPERT}.cross_attn", "fusion.cross_attn")
    if config.fusion.strategy == "gated":
        names += _linear(f"{EXPERT}.gate.0", "fusion.gate")
    return names


@dataclass(frozen=True)
class ReferenceHead:
    """How the reference stores one of its heads, in names below `action_expert`.

    marks: beginnings of names that no other head has. condition: the last Linear of the fusion. layers: the
    transformer; layer: names of one of its layers. output: the last Linear. others: every tensor but the layers'.
    """

    marks: tuple[str, ...]
    condition: str
    layers: str
    layer: Callable[[str, str], list[TensorName]]
    output: str
    others: list[TensorName]


HEADS = {
    "regression": ReferenceHead(
        marks=("pos_embed", "temporal_decoder."),
        condition="fusion_proj",
        layers="temporal_decoder",
        layer=_decoder_layer,
        output="output_head.1",
        others=[
            TensorName(f"{EXPERT}.pos_embed", "expert.pos_embed"),
            *_norm(f"{EXPERT}.output_head.0", "expert.head_norm"),
            *_linear(f"{EXPERT}.output_head.1", "expert.head_out"),
        ],
    ),
    "diffusion": ReferenceHead(
        marks=("time_embed.", "temporal_encoder.", "action_embed."),
        condition="cond_proj",
        layers="temporal_encoder",
        layer=_encoder_layer,
        output="output_head.3",
        others=[
            *_linear(f"{EXPERT}.time_embed.0", "expert.time_in"),
            *_linear(f"{EXPERT}.time_embed.2", "expert.time_out"),
            *_linear(f"{EXPERT}.action_embed", "expert.action_embed"),
            *_norm(f"{EXPERT}.output_head.0", "expert.head_norm"),
            *_linear(f"{EXPERT}.output_head.1", "expert.head_in"),
            *_linear(f"{EXPERT}.output_head.3", "expert.head_out"),
        ],
    ),
}
"""The reference's heads, by the kind of ours that is the same."""
