"""Which of the reference's PyTorch tensors is which of our arrays: one table, read in both directions."""

from dataclasses import dataclass

from vla_jax.models.config import PolicyConfig

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
    """
    names = _expert_names(config)
    return (_encoder_names(config) if config.uses_sensor else []) + names


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


def _expert_names(config: PolicyConfig) -> list[TensorName]:
    names = []
    if config.fusion.strategy in ("cross_attention", "gated"):
        names += _linear(f"{EXPERT}.vl_proj", "fusion.vl_proj")
        names += _linear(f"{EXPERT}.sensor_proj", "fusion.sensor_proj")
    if config.fusion.strategy == "cross_attention":
        names += _attention(f"{EXPERT}.cross_attn", "fusion.cross_attn")
    if config.fusion.strategy == "gated":
        names += _linear(f"{EXPERT}.gate.0", "fusion.gate")
    layers = range(config.expert.num_layers)
    if config.model_type == "regression":
        names += [TensorName(f"{EXPERT}.pos_embed", "expert.pos_embed")]
        names += _linear(f"{EXPERT}.fusion_proj", "fusion.project")
        for layer in layers:
            names += _decoder_layer(f"{EXPERT}.temporal_decoder.layers.{layer}", f"expert.layers.{layer}")
        names += _norm(f"{EXPERT}.output_head.0", "expert.head_norm")
        return names + _linear(f"{EXPERT}.output_head.1", "expert.head_out")
    names += _linear(f"{EXPERT}.time_embed.0", "expert.time_in")
    names += _linear(f"{EXPERT}.time_embed.2", "expert.time_out")
    names += _linear(f"{EXPERT}.cond_proj", "fusion.project")
    names += _linear(f"{EXPERT}.action_embed", "expert.action_embed")
    for layer in layers:
        names += _encoder_layer(f"{EXPERT}.temporal_encoder.layers.{layer}", f"expert.layers.{layer}")
    names += _norm(f"{EXPERT}.output_head.0", "expert.head_norm")
    names += _linear(f"{EXPERT}.output_head.1", "expert.head_in")
    return names + _linear(f"{EXPERT}.output_head.3", "expert.head_out")
