"""Configuration of what heads build on: the sensor encoder and the fusion, and how they differ from the reference.

`reference` is the PyTorch implementation whose checkpoints `vla_jax.interop` reads. Every deviation from it is
one field here, in the heads' configurations or in the policy's; `PolicyConfig.reference` restores them all.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vla_jax.contracts.checks import Count, Range, Share, Whole, check, check_heads
from vla_jax.contracts.specs import SensorSpec, StateWindow
from vla_jax.errors import UserError

FusionStrategy = Literal["concat", "cross_attention", "gated", "none"]
Interpolation = Literal["linear", "nearest", "nearest-exact", "area"]
SensorReadout = Literal["mean", "flatten"]


@dataclass(frozen=True)
class SensorEncoderConfig:
    """Strided convolutions over time, then transformer layers, a readout over time and a projection."""

    channels: Count = SensorSpec.channels
    """Channels of one sensor sample: the force, then the A-scan's depth bins."""
    temporal_length: Annotated[int, Range(low=1, high=100_000)] = 65
    """Sensor samples of a window; windows of another length are resampled to it."""
    interpolation: Interpolation = "linear"
    """How windows of another length are resampled (the modes of `torch.nn.functional.interpolate`)."""
    averaged_rows: Count = 1
    """How many samples in a row are averaged into one before the convolutions (1: none, as the reference). What is slow
    beside the sensor's rate costs as much less, and is seen with less noise. More than 1: windows of another length
    have means over more or fewer samples."""
    hidden_dim: Count = 512
    """Channels of the first convolution; the others, and the transformer, have twice as many."""
    output_dim: Count = 3072
    """Width of the sensor feature that the fusion reads."""
    num_conv_layers: Count = 4
    use_transformer: bool = True
    num_transformer_layers: Whole = 2
    num_heads: Count = 8
    readout: SensorReadout = "mean"
    """What is projected to the sensor feature: the mean over time of what the layers made of the window, or all of it,
    from the oldest to the newest (flatten), which can tell what moves from what stands still."""
    dropout: Share = 0.1
    masked_statistics: bool = True
    """BatchNorm statistics leave samples without sensor out (reference: False)."""
    statistics_groups: Count = 1
    """BatchNorm statistics per group of the batch. 1: the global batch. The reference computes them per GPU, so
    its run on n GPUs has n groups (the running statistics follow the first group, as its rank 0 saves them)."""

    def __post_init__(self) -> None:
        check(self)
        if self.use_transformer:
            if not self.num_transformer_layers:
                raise UserError(
                    "SensorEncoderConfig.num_transformer_layers is 0; give at least 1, or use_transformer false"
                )
            check_heads(self, self.width, self.num_heads, "transformer width")

    @property
    def num_rows(self) -> int:
        """Samples, or averages of some, that the convolutions see."""
        return -(-self.temporal_length // self.averaged_rows)

    @property
    def num_averages(self) -> int:
        """Averages that a window becomes; 0 where its samples are seen as they are."""
        return self.num_rows if self.averaged_rows > 1 else 0

    @property
    def num_steps(self) -> int:
        """Steps in time that the convolutions leave."""
        return -(-self.num_rows // 2**self.num_conv_layers)

    @property
    def width(self) -> int:
        """Channels after the last convolution."""
        return self.hidden_dim * (2 if self.num_conv_layers > 1 else 1)


@dataclass(frozen=True)
class StateEncoderConfig:
    """A small network that adds what the arm knows of itself to the condition."""

    columns: tuple[int, ...]
    """Which values of the recorded state it reads, at the newest tick. The lab's: the three angles. Positions in the
    arm's base frame are left out: where a phantom stands is for the pictures to tell."""
    hidden_dim: Count = 64

    def __post_init__(self) -> None:
        check(self)
        _check_columns(self)


@dataclass(frozen=True)
class StateWindowConfig:
    """A small network that adds how the arm has moved lately to the condition."""

    columns: tuple[int, ...]
    """Which values of the recorded state it reads. Since they are relative to the newest, positions do not tell where
    the arm is."""
    window: StateWindow = field(default_factory=StateWindow)
    """Which states."""
    hidden_dim: Count = 64

    def __post_init__(self) -> None:
        check(self)
        _check_columns(self)


@dataclass(frozen=True)
class AgeEncoderConfig:
    """A small network that adds how old the features are to the condition."""

    hidden_dim: Count = 64

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FusionConfig:
    """How vision-language tokens and the sensor feature become one condition vector."""

    strategy: FusionStrategy = "concat"
    """How sensor and vision-language features become the condition; none leaves the sensor out."""
    vl_pool: Literal["auto", "mean", "attention"] = "auto"
    """How S tokens become one vector; auto: attention where S > 1, else mean (reference: mean). With attention,
    cross_attention fusion reads tokens that know their slot, too."""
    vl_pool_heads: Count = 8
    vl_pool_width: Count | None = None
    """Width of the attention-pooled vector; None: the tokens' own width. It has to hold what all slots say
    together, so give narrow tokens a wider one."""
    masked_pool: bool = True
    """Absent tokens are left out of the mean (reference: False, padding counts)."""
    num_heads: Count = 8
    """Heads of cross_attention."""
    dropout: Share = 0.1
    """Dropout of cross_attention's weights."""
    query_residual: bool = False
    """cross_attention adds the sensor's query to the tokens that it found, as transformers do. Without (reference), the
    sensor only chooses among the tokens, and how deep the needle is reaches the condition as weights alone."""

    def __post_init__(self) -> None:
        check(self)

    def pool(self, vl_slots: int) -> Literal["mean", "attention"]:
        """Returns `vl_pool` with auto resolved."""
        if self.vl_pool == "auto":
            return "attention" if vl_slots > 1 else "mean"
        return self.vl_pool

    def pooled_dim(self, vl_dim: int, vl_slots: int) -> int:
        """Returns the width of the pooled vision-language vector."""
        if self.pool(vl_slots) == "attention" and self.vl_pool_width is not None:
            return self.vl_pool_width
        return vl_dim


def _check_columns(config: StateEncoderConfig | StateWindowConfig) -> None:
    columns = config.columns
    if not columns or min(columns) < 0 or len(set(columns)) < len(columns):
        raise UserError(
            f"{type(config).__name__}.columns is {columns}; it must be different numbers of values, from 0"
        )
