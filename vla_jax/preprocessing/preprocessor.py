"""Between recorded units and the network's, for whole observations: training, validation and the robot pass here."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vla_jax.contracts.observation import ArrayLike, Observation
from vla_jax.preprocessing.normaliser import Normaliser


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Preprocessor:
    """Traceable, and an argument of compiled functions, so that no constant is folded into them.

    num_averages: `SensorEncoderConfig.num_averages`. Sensor windows that split into as many equal parts are averaged
        here, before anything else is done with every row: the same as if the encoder did it, and several times
        faster.
    """

    normaliser: Normaliser
    num_averages: int = field(metadata={"static": True}, default=0)

    def observe(self, observation: Observation) -> Observation:
        """Maps what was recorded to what the network reads: features (absent slots become zero), sensor windows,
        the state, the last states (relative to the newest; without it, none is there), the previous chunk and the
        prefix, all float32; other masks and lengths stay, and what is None stays None."""
        normaliser, sensor, previous = self.normaliser, observation.sensor, observation.previous_chunk
        state, prefix = observation.state, observation.prefix
        window, window_mask = observation.state_window, observation.state_window_mask
        if window_mask is not None:
            window_mask = window_mask & window_mask[:, -1:]
        vl, vl_mask = observation.vl, observation.vl_mask
        assert vl is not None, "every policy reads features"
        assert vl_mask is not None
        return observation.replace(
            vl=normaliser.normalise_features(vl, vl_mask),
            sensor=None
            if sensor is None
            else normaliser.normalise_sensor(_averaged(sensor, self.num_averages)),
            # Nobody reads the state of an arm whose normaliser does not know it.
            state=None
            if state is None or normaliser.state_scale is None
            else normaliser.normalise_state(state),
            state_window=None
            if window is None or window_mask is None or normaliser.motion_scale is None
            else normaliser.normalise_motion(window, window_mask),
            state_window_mask=window_mask,
            previous_chunk=None if previous is None else normaliser.normalise_actions(previous),
            prefix=None if prefix is None else normaliser.normalise_actions(prefix),
        )

    def encode_actions(self, actions: Float[ArrayLike, "b h a"]) -> Float[Array, "b h a"]:
        """Maps recorded actions to what the network predicts."""
        return self.normaliser.normalise_actions(actions)

    def decode_actions(self, actions: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
        """Maps what the network predicts to actions in recorded units."""
        return self.normaliser.denormalise_actions(actions)


def _averaged(window: Float[ArrayLike, "b t c"], num: int) -> Float[ArrayLike, "b u c"]:
    """Returns the means of `num` equal parts of windows; the windows, where there are none."""
    window = jnp.asarray(window)
    b, t, c = window.shape
    if not num or t % num:
        return window
    parts, nothing = window.reshape(b, num, t // num, c), jnp.zeros((b, num, c))
    # A sum of slices, because XLA's reductions over rows of float16 are ten times slower on a CPU.
    rows = (parts[:, :, row].astype(jnp.float32) for row in range(parts.shape[2]))
    return sum(rows, start=nothing) / parts.shape[2]
