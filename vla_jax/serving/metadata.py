"""What a server tells each client first: the policy's identity and everything a request and a reply mean."""

from typing import Any

from vla_jax.serving.limits import Limits
from vla_jax.serving.service import PolicyService
from vla_jax.storage import config_json


def describe(service: PolicyService, limits: Limits) -> dict[str, Any]:
    """Returns the metadata as plain values. Equal metadata: the same policy, asked in the same way."""
    policy = service.policy
    data, loaded = policy.data, policy.loaded
    return {
        "server": "vla-jax",
        "checkpoint": {
            "path": str(loaded.path),
            "step": loaded.metadata.step,
            "data": loaded.metadata.identity.data_key,
            "versions": dict(loaded.metadata.versions),
        },
        "head": policy.config.head.kind,
        "sampler": policy.sampler,
        "sampling_steps": policy.sampling_steps,
        "actions": config_json.to_plain(data.actions),
        "data": {name: value for name, value in config_json.to_plain(data).items() if name != "actions"},
        "features": config_json.to_plain(policy.features),
        "requests": service.spec.tell(),
        "limits": limits.tell(service),
    }
