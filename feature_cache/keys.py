"""Names of feature records: digests of everything their content depends on.

A record is a function of its provenance (`vla_jax.contracts.provenance`: backbone weights, adapter, processor, chat
template, pooling, layer, storage type), its prompt and the bytes of its images. Its key is a digest of exactly these,
so that a change of any of them is a miss and never a stale hit, while paths and episode names play no part.
"""

import hashlib
from collections.abc import Sequence

from vla_jax.contracts.provenance import KEY_VERSION, Provenance, canonical_json

KEY_BYTES = 16


def imported_provenance(backbone_name: str) -> Provenance:
    """Returns the provenance of features from a PyTorch reference cache, which does not say what made them.

    backbone_name: what the user says of it; here it is part of the digest, for it is all there is to tell two such
        caches apart.
    """
    return Provenance(
        backbone=f"unknown weights named {backbone_name}",
        backbone_name=backbone_name,
        adapter=None,
        processor={"imported_from": "PyTorch reference cache"},
        chat_template="unknown",
        pooling="mean",
    )


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
