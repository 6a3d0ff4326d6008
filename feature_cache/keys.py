"""Names of feature records: digests of everything their content depends on.

A record is a function of its provenance (`vla_jax.contracts.provenance`: backbone weights, adapter, processor, chat
template, pooling, layer, storage type), its prompt and the bytes of its images. Its key is a digest of exactly these,
so that a change of any of them is a miss and never a stale hit, while paths and episode names play no part.
"""

import hashlib
from collections.abc import Sequence

from vla_jax.contracts.provenance import KEY_VERSION, canonical_json

KEY_BYTES = 16


def record_key(provenance_digest: str, prompt: str, image_digests: Sequence[str]) -> str:
    """Returns the key (32 hex characters) of one record.

    provenance_digest: `Provenance.digest()`, in full.
    image_digests: `image_digest` of each image that is present, in view order.
    """
    # JSON delimits the parts, so that no two different inputs share one text.
    text = canonical_json([KEY_VERSION, provenance_digest, prompt, list(image_digests)])
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * KEY_BYTES]


def image_digest(data: bytes) -> str:
    """Returns the content digest (sha256, hex) of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()
