"""The policy heads in plain `torch.nn`, with the reference's parameter names: the benchmark's other side.

Written from the architecture's description and checked equal to ours through the checkpoint importer.
"""

import math

import torch
from torch import Tensor, nn

from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.regression import RegressionConfig
from vla_jax.models.config import SensorEncoderConfig
from vla_jax.policy.config import PolicyConfig


class SensorEncoder(nn.Module):
    """Strided convolutions, transformer layers, mean over time, projection."""

    def __init__(self, config: SensorEncoderConfig):
        super().__init__()
        self.temporal_length = config.temporal_length
        blocks: list[nn.Module] = []
        inputs = config.channels
        for index in range(config.num_conv_layers):
            outputs = config.hidden_dim if index == 0 else config.width
            blocks += [
                nn.Conv1d(inputs, outputs, 3, stride=2, padding=1),
                nn.BatchNorm1d(outputs),
                nn.GELU(),
                nn.Dropout(config.dropout),
            ]
            inputs = outputs
        self.conv_backbone = nn.Sequential(*blocks)
        self.transformer = None
        if config.use_transformer:
            layer = _encoder_layer(config.width, config.num_heads, config.dropout)
            self.transformer = nn.TransformerEncoder(
                layer, config.num_transformer_layers, enable_nested_tensor=False
            )
        self.projection = nn.Sequential(
            nn.Linear(config.width, config.output_dim),
            nn.LayerNorm(config.output_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.output_dim, config.output_dim),
        )

    def forward(self, sensor: Tensor) -> Tensor:
        """(B, T, C) → (B, D)."""
        x = sensor.transpose(1, 2)
        if x.shape[-1] != self.temporal_length:
            x = nn.functional.interpolate(x, size=self.temporal_length, mode="linear", align_corners=False)
        x = self.conv_backbone(x).transpose(1, 2)
        if self.transformer is not None:
            x = self.transformer(x)
        return self.projection(x.mean(dim=1))


class _Expert(nn.Module):
    """Fusion, shared by both experts; the last Linear's name differs between them."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        width, sensor_dim = config.head.hidden_dim, config.sensor.output_dim
        self.strategy = config.fusion.strategy
        if self.strategy in ("cross_attention", "gated"):
            self.vl_proj = nn.Linear(config.vl_dim, width)
            self.sensor_proj = nn.Linear(sensor_dim, width)
        if self.strategy == "cross_attention":
            self.cross_attn = nn.MultiheadAttention(
                width, config.fusion.num_heads, config.fusion.dropout, batch_first=True
            )
        if self.strategy == "gated":
            self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.Sigmoid())
        self.condition_dim = {"concat": config.vl_dim + sensor_dim, "none": config.vl_dim}.get(
            self.strategy, width
        )

    def fuse(self, vl: Tensor, sensor: Tensor | None) -> Tensor:
        """(B, S, V), (B, D) → what the last Linear reads."""
        if sensor is None:
            return vl.mean(dim=1)
        if self.strategy == "cross_attention":
            tokens, query = self.vl_proj(vl), self.sensor_proj(sensor).unsqueeze(1)
            return self.cross_attn(query, tokens, tokens, need_weights=False)[0].squeeze(1)
        pooled = vl.mean(dim=1)
        if self.strategy == "concat":
            return torch.cat([pooled, sensor], dim=-1)
        pooled, sensor = self.vl_proj(pooled), self.sensor_proj(sensor)
        gate = self.gate(torch.cat([pooled, sensor], dim=-1))
        return gate * pooled + (1 - gate) * sensor


class DiffusionExpert(_Expert):
    """Estimates the noise in a chunk of actions."""

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        expert = config.head
        assert isinstance(expert, DiffusionConfig)
        width = expert.hidden_dim
        self.embedding_dim = expert.time_embedding_dim
        self.time_embed = nn.Sequential(
            nn.Linear(self.embedding_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.cond_proj = nn.Linear(self.condition_dim, width)
        self.action_embed = nn.Linear(config.action_dim, width)
        self.temporal_encoder = nn.TransformerEncoder(
            _encoder_layer(width, expert.num_heads, expert.dropout),
            expert.num_layers,
            enable_nested_tensor=False,
        )
        self.output_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, config.action_dim)
        )

    def forward(self, x_t: Tensor, t: Tensor, vl: Tensor, sensor: Tensor | None) -> Tensor:
        """The noise (B, H, A) in x_t at steps t (B,)."""
        half = self.embedding_dim // 2
        index = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(index * (-math.log(10_000.0) / (half - 1)))[None]
        time = self.time_embed(torch.cat([angles.sin(), angles.cos()], dim=-1).to(x_t.dtype))
        x = self.action_embed(x_t) + time[:, None] + self.cond_proj(self.fuse(vl, sensor))[:, None]
        return self.output_head(self.temporal_encoder(x))


class RegressionExpert(_Expert):
    """Decodes a chunk of actions."""

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        expert = config.head
        assert isinstance(expert, RegressionConfig)
        width = expert.hidden_dim
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.horizon, width))
        self.fusion_proj = nn.Linear(self.condition_dim, width)
        layer = nn.TransformerDecoderLayer(
            width, expert.num_heads, 4 * width, expert.dropout, batch_first=True
        )
        self.temporal_decoder = nn.TransformerDecoder(layer, expert.num_layers)
        self.output_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.action_dim))

    def forward(self, vl: Tensor, z_chunk: Tensor, sensor: Tensor | None) -> tuple[Tensor, Tensor]:
        """(actions, delta), each (B, H, A)."""
        memory = self.fusion_proj(self.fuse(vl, sensor)).unsqueeze(1)
        queries = self.pos_embed.expand(vl.shape[0], -1, -1)
        delta = self.output_head(self.temporal_decoder(queries, memory))
        return z_chunk + delta, delta


class Policy(nn.Module):
    """Encoder and expert under the reference's names."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.sensor_encoder = SensorEncoder(config.sensor) if config.uses_sensor else None
        expert = {"diffusion": DiffusionExpert, "regression": RegressionExpert}[config.head.kind]
        self.action_expert = expert(config)

    def encode(self, sensor: Tensor | None) -> Tensor | None:
        """The sensor feature, or None without an encoder."""
        return None if self.sensor_encoder is None else self.sensor_encoder(sensor)


def ddim_sample(
    policy: Policy, alphas_cumprod: Tensor, timesteps: list[int], x: Tensor, vl: Tensor, sensor: Tensor | None
) -> Tensor:
    """DDIM with eta 0 and x0 clipped to ±1, as the reference loops: the expert is called whole at each step."""
    features = policy.encode(sensor)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        noise = policy.action_expert(x, torch.full((len(x),), t, device=x.device), vl, features)
        alpha = alphas_cumprod[t]
        alpha_prev = alphas_cumprod[t_prev] if t_prev >= 0 else torch.ones_like(alpha)
        clean = ((x - (1 - alpha).sqrt() * noise) / alpha.sqrt()).clamp(-1, 1)
        x = alpha_prev.sqrt() * clean + (1 - alpha_prev).sqrt() * noise
    return x


def ddpm_sample(policy: Policy, betas: Tensor, x: Tensor, vl: Tensor, sensor: Tensor | None) -> Tensor:
    """Ancestral sampling through all steps, x0 unclipped."""
    features = policy.encode(sensor)
    alphas = 1 - betas
    cumulative = alphas.cumprod(0)
    for t in reversed(range(len(betas))):
        noise = policy.action_expert(x, torch.full((len(x),), t, device=x.device), vl, features)
        x = (x - betas[t] / (1 - cumulative[t]).sqrt() * noise) / alphas[t].sqrt()
        if t > 0:
            variance = betas[t] * (1 - cumulative[t - 1]) / (1 - cumulative[t])
            x = x + variance.sqrt() * torch.randn_like(x)
    return x


def _encoder_layer(width: int, num_heads: int, dropout: float) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(width, num_heads, 4 * width, dropout, batch_first=True, norm_first=True)
