"""Encoding as much at once as memory allows, which is found out by running out of it."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from feature_cache.backbone import Backbone
from feature_cache.processor import PreparedRecord
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class MemoryLimit:
    """Tokens, padding included, that fit into memory at once, as far as an export has found out."""

    num_tokens: float = math.inf


def encode_within_memory(
    backbone: Backbone,
    records: list[PreparedRecord],
    provenance: Provenance,
    limit: MemoryLimit,
    inputs: dict[str, Any] | None = None,
) -> list[np.ndarray]:
    """Encodes a batch, in halves of halves where memory does not suffice for all of it at once.

    limit: is lowered when memory runs out, so that later batches are divided without trying again.
    inputs: the whole batch, where `Backbone.collate` has made it already.

    Raises:
        UserError: memory does not suffice for one record.
    """
    import torch

    num_tokens = len(records) * max(len(record.tokens) for record in records)
    half = len(records) // 2
    if num_tokens <= limit.num_tokens or not half:
        try:
            return backbone.encode(records, provenance, inputs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if not half:
                raise UserError(
                    f"out of memory on {backbone.device} with a single record of {num_tokens} tokens; "
                    "use a smaller --image-size"
                ) from error
        # Outside the handler, whose traceback would hold on to the tensors that filled the memory.
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        limit.num_tokens = num_tokens // 2
        logger.warning(
            "out of memory with %d records (%d tokens) at once; going on with %d tokens "
            "(give --batch-tokens %d to avoid this)",
            len(records),
            num_tokens,
            limit.num_tokens,
            limit.num_tokens,
        )
    return [
        *encode_within_memory(backbone, records[:half], provenance, limit),
        *encode_within_memory(backbone, records[half:], provenance, limit),
    ]


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
