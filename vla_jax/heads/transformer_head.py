"""What heads share that are a transformer over the horizon's actions."""

from dataclasses import dataclass
from typing import Any, ClassVar

from vla_jax.contracts.checks import Count, Share, Whole, check_heads
from vla_jax.heads.head_config import HeadConfig, HeadSize


@dataclass(frozen=True)
class TransformerHeadConfig(HeadConfig):
    """Sizes of the transformer; as wide as the condition."""

    SIZES: ClassVar[dict[HeadSize, dict[str, Any]]] = {
        "full": {},
        "small": {"hidden_dim": 128, "num_layers": 2, "num_heads": 4},
        "tiny": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2},
    }

    num_layers: Count = 4
    num_heads: Count = 8
    dropout: Share = 0.1
    prefix_max: Whole = 0
    """Largest number of actions, promised before a chunk is predicted, that the head learns to go on from; 0: it is
    never given any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_dim, self.num_heads, "hidden_dim")

    @property
    def longest_prefix(self) -> int:
        return self.prefix_max
