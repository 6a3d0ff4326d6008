"""Moves weights between a policy network and numpy arrays under the reference's names."""

from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.errors import UserError
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.reference.tensor_names import ENCODER, EXPERT, TensorName, tensor_names


def network_from_weights(
    config: PolicyConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    parts: Collection[str] = (ENCODER, EXPERT),
    source: str = "the state dict",
) -> PolicyNetwork:
    """Builds the network that holds arrays with torch names and layouts, in float32 (counters: int32).

    parts: those of `sensor_encoder` and `action_expert` that are given; the other one is left at zero.

    Raises:
        UserError: tensors are missing, left over or misshapen, or the network has parts that the reference lacks;
            all of them are listed.
    """
    # No initial values are drawn: at full size that takes longer than reading the weights.
    network = abstract_network(config)
    names = [name for name in tensor_names(config) if name.torch.split(".")[0] in parts]
    variables = _variables(network)
    faults = [
        f"missing {name.torch} {_torch_shape(name, variables)}" for name in names if name.torch not in arrays
    ]
    known = {name.torch for name in names}
    faults += [f"unexpected {torch} {arrays[torch].shape}" for torch in arrays if torch not in known]
    faults += [
        f"{name.torch} has shape {arrays[name.torch].shape}, expected {_torch_shape(name, variables)}"
        for name in names
        if name.torch in arrays and arrays[name.torch].shape != _torch_shape(name, variables)
    ]
    if set(parts) == {ENCODER, EXPERT}:
        faults += _lacking(network)
    if faults:
        raise UserError(f"{source} does not fit the policy ({len(faults)} tensors): " + "; ".join(faults))
    values = {name.ours: arrays[name.torch].T if name.reversed_axes else arrays[name.torch] for name in names}
    for path, variable in variables.items():
        value = values[path] if path in values else np.zeros(variable.shape)
        variable.set_value(jnp.asarray(np.array(value, dtype=variable.dtype, order="C")))
    return network


def reference_weights(network: PolicyNetwork) -> dict[str, np.ndarray]:
    """The network's weights and BatchNorm statistics under the reference's names and in torch's layouts.

    float32; the counters `num_batches_tracked` int64.

    Raises:
        UserError: the network has parts that the reference lacks.
    """
    lacking = _lacking(network)
    if lacking:
        raise UserError(
            f"the reference cannot hold this policy: it has no {', '.join(lacking)}; only imported policies, and those "
            "trained with the `reference` recipe, can be exported"
        )
    variables = _variables(network)
    result: dict[str, np.ndarray] = {}
    for name in tensor_names(network.config):
        array = np.asarray(variables[name.ours][...])
        if array.dtype.kind == "i":
            result[name.torch] = array.astype(np.int64)
        else:
            result[name.torch] = np.array(
                (array.T if name.reversed_axes else array).astype(np.float32), order="C"
            )
    return result


def _variables(network: PolicyNetwork) -> dict[str, nnx.Variable]:
    leaves = nnx.to_flat_state(nnx.state(network))
    return {".".join(map(str, path)): variable for path, variable in leaves}


def _torch_shape(name: TensorName, variables: Mapping[str, nnx.Variable]) -> tuple[int, ...]:
    shape = variables[name.ours].shape
    return shape[::-1] if name.reversed_axes else shape


def _lacking(network: PolicyNetwork) -> list[str]:
    """Returns what the reference lacks: weights by their names, and by its field what changes what weights do."""
    config = network.config
    known = {name.ours for name in tensor_names(config)}
    fields = {
        "averaged_rows": config.uses_sensor and config.sensor.averaged_rows > 1,
        "query_residual": config.fusion.strategy == "cross_attention" and config.fusion.query_residual,
        "clean actions predicted": isinstance(config.head, DiffusionConfig)
        and config.head.prediction != "epsilon",
    }
    return sorted(path for path in _variables(network) if path not in known) + [
        name for name, differs in fields.items() if differs
    ]
