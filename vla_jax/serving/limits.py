"""How much a server takes of its clients, and how long it waits for them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_jax.serving.request_spec import MAX_PIXELS, MAX_PROMPT, RequestSpec
from vla_jax.serving.service import PolicyService

# Of a message beside arrays and pictures: names, shapes and types.
_REST_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """Seconds are of a client that does not do its part."""

    max_clients: int = 64
    """Connections at a time; others are told to come again (HTTP 503)."""
    idle_s: float = 3600.0
    """Until a connection without a request is closed."""
    open_s: float = 5.0
    """Until a connection that does not say what it wants is closed."""
    ping_s: float = 20.0
    """Between signs of life, and until one that is asked for must be there."""
    send_s: float = 10.0
    """Until who does not read what it is sent is cut off."""
    close_s: float = 2.0
    """For good manners at the end."""

    def tell(self, service: PolicyService) -> dict[str, Any]:
        """Returns them for clients, as plain values."""
        return {
            "max_message_bytes": message_bytes(service.spec),
            "max_batch": service.batch_sizes[-1],
            "max_clients": self.max_clients,
            "max_pixels": MAX_PIXELS,
            "idle_s": self.idle_s,
        }


def message_bytes(spec: RequestSpec) -> int:
    """Returns the largest size of a request: its arrays in float64, and where the server takes pictures, those."""
    arrays = sum(math.prod(entry.shape) for entry in spec.arrays.values()) * np.dtype(np.float64).itemsize
    pictures = 3 * MAX_PIXELS * len(spec.views) if spec.takes_pictures else 0
    return arrays + pictures + 4 * MAX_PROMPT + _REST_BYTES
