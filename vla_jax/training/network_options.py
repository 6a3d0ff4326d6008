"""Fields of the configuration of a network's parts as options of a command: NAME=VALUE, by the dataclass's names."""

import dataclasses
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from flax import nnx

from vla_jax.contracts.checks import problem
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import abstract_network
from vla_jax.training.config import TrainConfig


def network_settings(
    head: Sequence[str], sensor_encoder: Sequence[str], network: PolicyConfig
) -> dict[str, Any]:
    """Returns the values under the dotted names of `TrainConfig`'s fields.

    Raises:
        UserError: an option is not NAME=VALUE, the part has no field of that name, or the value does not fit it.
    """
    kind = f"a {network.head.kind} head"
    return _settings("--head", head, "policy.head", network.head, kind) | _settings(
        "--sensor-encoder", sensor_encoder, "policy.sensor", network.sensor, "the sensor encoder"
    )


def _settings(option_name: str, options: Sequence[str], path: str, part: Any, called: str) -> dict[str, Any]:
    """path: of the part in `TrainConfig`. called: what a message calls the part."""
    names = [field.name for field in dataclasses.fields(part)]
    hints = get_type_hints(type(part), include_extras=True)
    settings = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"{option_name} {option} is not NAME=VALUE")
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names)}"
            raise UserError(f"{option_name} {option}: {called} has no {name}{hint}")
        value = _value(text)
        if wrong := problem(hints[name], value):
            raise UserError(f"{option_name} {name} {wrong}")
        is_float = float in (hints[name], *get_args(hints[name]))
        settings[f"{path}.{name}"] = float(value) if is_float else value
    return settings


def refuse_other_parameters(initial: PolicyArtifact, config: TrainConfig) -> None:
    """Refuses a configured network that the weights of `initial` do not fit.

    Raises:
        UserError: an option has changed which parameters the network has.
    """
    theirs, ours = (
        {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract_network(policy)))}
        for policy in (initial.config, config.policy)
    )
    if theirs != ours:
        paths = sorted(theirs.keys() | ours.keys(), key=str)
        differing = next(path for path in paths if theirs.get(path) != ours.get(path))
        raise UserError(
            f"--head or --sensor-encoder gives the network other parameters ({'.'.join(map(str, differing))}) than "
            f"{initial.path} has; leave it or --init-from out"
        )


def _value(text: str) -> Any:
    """Returns a number, true or false; everything else is a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
