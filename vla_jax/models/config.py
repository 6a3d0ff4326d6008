"""Configuration of the policy networks: what is built, how wide, and how it differs from the reference.

`reference` is the PyTorch implementation whose checkpoints `vla_jax.interop` reads. Every deviation from it is
one field here, and `PolicyConfig.reference` restores them all.
"""

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_type_hints

from vla_jax.errors import UserError

ModelType = Literal["regression", "diffusion"]
FusionStrategy = Literal["concat", "cross_attention", "gated", "none"]
Interpolation = Literal["linear", "nearest", "nearest-exact", "area"]
Prediction = Literal["epsilon", "sample", "v"]
Sampler = Literal["ddim", "ddpm"]
Spacing = Literal["trailing", "leading", "linspace"]


def check_choices(config: object) -> None:
    """Refuses a value outside a `Literal` field's choices, and offers the closest one.

    Raises:
        UserError: names the class, the field, the value and the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
        value = getattr(config, name)
        if choices and value not in choices:
            close = get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{type(config).__name__}.{name} is {value!r}; choose one of {', '.join(choices)}{hint}"
            )


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(
                f"{type(config).__name__}.{name} is {getattr(config, name)}; it must be at least 1"
            )


def _check_heads(config: object, width: int, heads: int, what: str) -> None:
    if width % heads:
        raise UserError(
            f"{type(config).__name__}: {what} {width} is not divisible by {heads} attention heads"
        )


def _check_rate(config: object, name: str) -> None:
    if not 0.0 <= getattr(config, name) < 1.0:
        raise UserError(f"{type(config).__name__}.{name} is {getattr(config, name)}; it must be in [0, 1)")


@dataclass(frozen=True)
class SensorEncoderConfig:
    """Strided convolutions over time, then transformer layers, a mean over time and a projection."""

    channels: int = 1026
    """Channels of one sensor sample: the force, then the A-scan's depth bins."""
    temporal_length: int = 65
    """Sensor samples the convolutions see; windows of another length are resampled to it."""
    interpolation: Interpolation = "linear"
    """How windows of another length are resampled (the modes of `torch.nn.functional.interpolate`)."""
    hidden_dim: int = 512
    """Channels of the first convolution; the others, and the transformer, have twice as many."""
    output_dim: int = 3072
    """Width of the sensor feature that the fusion reads."""
    num_conv_layers: int = 4
    use_transformer: bool = True
    num_transformer_layers: int = 2
    num_heads: int = 8
    dropout: float = 0.1
    masked_statistics: bool = True
    """BatchNorm statistics leave samples without sensor out (reference: False)."""
    statistics_groups: int = 1
    """BatchNorm statistics per group of the batch. 1: the global batch. The reference computes them per GPU, so
    its run on n GPUs has n groups (the running statistics follow the first group, as its rank 0 saves them)."""

    def __post_init__(self) -> None:
        check_choices(self)
        _check_positive(self, "channels", "temporal_length", "hidden_dim", "output_dim", "num_conv_layers")
        _check_positive(self, "num_heads", "statistics_groups")
        _check_rate(self, "dropout")
        if self.use_transformer:
            _check_positive(self, "num_transformer_layers")
            _check_heads(self, self.width, self.num_heads, "transformer width")

    @property
    def width(self) -> int:
        """Channels after the last convolution."""
        return self.hidden_dim * (2 if self.num_conv_layers > 1 else 1)


@dataclass(frozen=True)
class FusionConfig:
    """How vision-language tokens and the sensor feature become one condition vector."""

    strategy: FusionStrategy = "concat"
    """How sensor and vision-language features become the condition; none leaves the sensor out."""
    vl_pool: Literal["auto", "mean", "attention"] = "auto"
    """How S tokens become one vector; auto: attention where S > 1, else mean (reference: mean). With attention,
    cross_attention fusion reads tokens that know their slot, too."""
    vl_pool_heads: int = 8
    vl_pool_width: int | None = None
    """Width of the attention-pooled vector; None: the tokens' own width. It has to hold what all slots say
    together, so give narrow tokens a wider one."""
    masked_pool: bool = True
    """Absent tokens are left out of the mean (reference: False, padding counts)."""
    num_heads: int = 8
    """Heads of cross_attention."""
    dropout: float = 0.1
    """Dropout of cross_attention's weights."""

    def __post_init__(self) -> None:
        check_choices(self)
        _check_positive(self, "vl_pool_heads", "num_heads")
        _check_rate(self, "dropout")


@dataclass(frozen=True)
class ExpertConfig:
    """The transformer over the horizon's actions."""

    hidden_dim: int = 1024
    num_layers: int = 4
    num_heads: int = 8
    dropout: float = 0.1
    horizon_embedding: bool = True
    """The diffusion expert knows a token's place in the horizon (reference: False, so it is permutation-
    equivariant along the horizon). The regression expert always does."""
    time_embedding_dim: int = 128
    """Width of the sinusoidal embedding of the diffusion step."""

    def __post_init__(self) -> None:
        _check_positive(self, "hidden_dim", "num_layers", "num_heads", "time_embedding_dim")
        _check_heads(self, self.hidden_dim, self.num_heads, "hidden_dim")
        _check_rate(self, "dropout")
        if self.time_embedding_dim % 2 or self.time_embedding_dim < 4:
            raise UserError(
                f"ExpertConfig.time_embedding_dim is {self.time_embedding_dim}; make it even, at least 4"
            )


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule, what the network predicts, and how `sample` walks back by default."""

    steps: int = 100
    """Steps of the diffusion schedule."""
    prediction: Prediction = "epsilon"
    """What the network predicts: the noise, the clean actions, or v (Salimans & Ho 2022)."""
    noise_draws: int = 1
    """Steps and noises drawn for each training sample. More of them use one pass of the sensor encoder, most of the
    cost, for more denoising examples (reference: 1)."""
    sampler: Sampler = "ddim"
    ddim_steps: int = 10
    ddim_spacing: Spacing = "trailing"
    """trailing (Lin et al. 2024) starts at the last step; the reference's leading starts ddim's pure noise at
    step 90 of 100."""
    ddim_eta: float = 0.0
    clip_range: float = 1.0
    """Bound of the clean (normalised) actions that samplers clip to."""
    ddim_clip: bool = True
    ddpm_clip: bool = True
    """Clip x0 inside DDPM's posterior mean (reference: False, the noise form of the mean, unclipped)."""

    def __post_init__(self) -> None:
        check_choices(self)
        _check_positive(self, "steps", "ddim_steps", "noise_draws")
        if self.ddim_steps > self.steps:
            raise UserError(f"DiffusionConfig: ddim_steps {self.ddim_steps} exceeds steps {self.steps}")
        if not 0.0 <= self.ddim_eta <= 1.0:
            raise UserError(f"DiffusionConfig.ddim_eta is {self.ddim_eta}; it must be in [0, 1]")
        if self.clip_range <= 0.0:
            raise UserError(f"DiffusionConfig.clip_range is {self.clip_range}; it must be positive")


@dataclass(frozen=True)
class PolicyConfig:
    """One policy network. Defaults are the full size of the trained reference, with our improvements."""

    model_type: ModelType
    vl_dim: int
    """Width V of a vision-language token."""
    vl_slots: int = 1
    """Number S of token slots, at most; slot embeddings are learned for each."""
    horizon: int = 8
    action_dim: int = 7
    sensor: SensorEncoderConfig = field(default_factory=SensorEncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    z_chunk: Literal["zero", "previous", "target"] = "zero"
    """What the regression expert's delta is added to in training: nothing, a chunk from the past that the caller
    gives, or (reference, for comparison only: it leaks the answer) the true actions."""
    no_sensor_embedding: bool = True
    """A learned vector stands for a missing sensor (reference: False, zeros go through the encoder)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type. Parameters, softmax and normalisation statistics stay float32."""
    remat: bool = False
    """Recompute layers' activations in the backward pass: less memory, about a third more arithmetic."""

    def __post_init__(self) -> None:
        check_choices(self)
        _check_positive(self, "vl_dim", "vl_slots", "horizon", "action_dim")
        if self.fusion.strategy == "cross_attention":
            _check_heads(self, self.expert.hidden_dim, self.fusion.num_heads, "expert.hidden_dim")
        if self.vl_pool == "attention":
            _check_heads(self, self.pooled_dim, self.fusion.vl_pool_heads, "the pooled vision-language width")

    @property
    def vl_pool(self) -> Literal["mean", "attention"]:
        """`fusion.vl_pool` with auto resolved."""
        if self.fusion.vl_pool == "auto":
            return "attention" if self.vl_slots > 1 else "mean"
        return self.fusion.vl_pool

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled vision-language vector."""
        if self.vl_pool == "attention" and self.fusion.vl_pool_width is not None:
            return self.fusion.vl_pool_width
        return self.vl_dim

    @property
    def uses_sensor(self) -> bool:
        """Whether a sensor encoder is built at all."""
        return self.fusion.strategy != "none"

    @classmethod
    def reference(
        cls,
        model_type: ModelType = "diffusion",
        fusion: FusionStrategy = "concat",
        vl_dim: int = 2048,
        **overrides: Any,
    ) -> "PolicyConfig":
        """The reference's network, full size: every deviation of ours is switched back.

        overrides: any other field of `PolicyConfig`; nested ones replace the reference's whole.
        """
        values: dict[str, Any] = {
            "sensor": SensorEncoderConfig(masked_statistics=False),
            "fusion": FusionConfig(strategy=fusion, vl_pool="mean", masked_pool=False),
            "expert": ExpertConfig(horizon_embedding=False),
            "diffusion": DiffusionConfig(ddim_spacing="leading", ddpm_clip=False),
            "z_chunk": "target" if model_type == "regression" else "zero",
            "no_sensor_embedding": False,
        }
        return cls(model_type=model_type, vl_dim=vl_dim, **(values | overrides))

    @classmethod
    def small(
        cls,
        model_type: ModelType,
        *,
        vl_dim: int,
        vl_slots: int = 1,
        fusion: FusionStrategy = "concat",
        temporal_length: int = 65,
        **overrides: Any,
    ) -> "PolicyConfig":
        """A network that learns small tasks on a CPU in minutes; same structure, narrow layers.

        overrides: any other field of `PolicyConfig`; nested ones replace the small ones whole.
        """
        values: dict[str, Any] = {
            "sensor": SensorEncoderConfig(
                temporal_length=temporal_length,
                hidden_dim=64,
                output_dim=128,
                num_transformer_layers=1,
                num_heads=4,
            ),
            "fusion": FusionConfig(strategy=fusion, vl_pool_width=512, num_heads=4),
            "expert": ExpertConfig(hidden_dim=128, num_layers=2, num_heads=4),
        }
        return cls(model_type=model_type, vl_dim=vl_dim, vl_slots=vl_slots, **(values | overrides))

    def with_sensor_length(self, temporal_length: int) -> "PolicyConfig":
        """The same network for sensor windows of another length."""
        return replace(self, sensor=replace(self.sensor, temporal_length=temporal_length))
