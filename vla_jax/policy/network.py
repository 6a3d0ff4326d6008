"""The policy network: encoders of sensor and state, fusion and action head behind one interface."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vla_jax.contracts.observation import ArrayLike, Observation
from vla_jax.heads.head_config import Sampling
from vla_jax.heads.prefix import Prefix
from vla_jax.models.age_encoder import AgeEncoder
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.fusion import Fusion
from vla_jax.models.sensor_encoder import SensorEncoder
from vla_jax.models.state_encoder import StateEncoder
from vla_jax.models.state_window_encoder import StateWindowEncoder
from vla_jax.policy.config import PolicyConfig


class PolicyNetwork(nnx.Module):
    """Predicts chunks of normalised actions from normalised observations.

    Axes: b batch, s tokens, v token width, t sensor steps, c channels, d sensor feature, p state, e condition,
    h horizon, a action dimensions. Parameters under `sensor_encoder/` are the encoder's; the head's are under
    `expert/`, the name that checkpoints have always had.
    """

    def __init__(self, config: PolicyConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.dtype = dtype
        encoder = None
        if config.uses_sensor:
            encoder = SensorEncoder(config.sensor, dtype=dtype, remat=config.remat, rngs=rngs)
        self.sensor_encoder = nnx.data(encoder)
        no_sensor = None
        if config.uses_sensor and config.no_sensor_embedding:
            no_sensor = nnx.Param(0.02 * rngs.params.normal((config.sensor.output_dim,), jnp.float32))
        self.no_sensor = nnx.data(no_sensor)
        self.fusion = Fusion(
            config.fusion,
            vl_dim=config.vl_dim,
            vl_slots=config.vl_slots,
            sensor_dim=config.sensor.output_dim,
            width=config.head.hidden_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.expert = config.head.make(
            config.horizon, config.action_dim, dtype=dtype, remat=config.remat, rngs=rngs
        )
        # Last, so that the others draw their weights as they do without it.
        state_encoder = None
        if config.state is not None:
            state_encoder = StateEncoder(config.state, width=config.head.hidden_dim, dtype=dtype, rngs=rngs)
        self.state_encoder = nnx.data(state_encoder)
        window_encoder = None
        if config.state_window is not None:
            window_encoder = StateWindowEncoder(
                config.state_window, width=config.head.hidden_dim, dtype=dtype, rngs=rngs
            )
        self.state_window_encoder = nnx.data(window_encoder)
        age_encoder = None
        if config.age is not None:
            age_encoder = AgeEncoder(config.age, width=config.head.hidden_dim, dtype=dtype, rngs=rngs)
        self.age_encoder = nnx.data(age_encoder)

    def loss(
        self,
        observation: Observation,
        actions: Float[Array, "b h a"],
        *,
        key: Key[Array, ""],
        train: bool,
    ) -> Float[Array, " b"]:
        """The head's error for each sample.

        key: for what the head draws, and for dropout when `train`.
        train: dropout, and BatchNorm by the batch's statistics (the running ones are updated).
        """
        keys = jax.random.split(key, 4)
        encoder_key, rest_key = (keys[2], keys[3]) if train else (None, None)
        features = self.sensor_features(observation, train=train, key=encoder_key)
        condition_key, head_key = split_key(rest_key, 2)
        condition = self._whole_condition(observation, features, condition_key)
        return self.expert.loss(
            condition,
            actions,
            keys=keys[:2],
            dropout_key=head_key,
            previous_chunk=_as_jax(observation.previous_chunk),
        )

    def sample(
        self,
        observation: Observation,
        *,
        keys: Key[Array, " b"] | None = None,
        sampling: Sampling | None = None,
    ) -> Float[Array, "b h a"]:
        """Predicts actions in evaluation mode.

        keys: one for each row, for heads that draw. sampling: see `HeadConfig.sampling`.
        """
        features = self.sensor_features(observation)
        condition = self._whole_condition(observation, features)
        # Heads that are never given a prefix need not know of it.
        prefix = _prefix(observation)
        return self.expert.sample(
            condition,
            keys=keys,
            previous_chunk=_as_jax(observation.previous_chunk),
            sampling=sampling,
            **({} if prefix is None else {"prefix": prefix}),
        )

    def sensor_features(
        self, observation: Observation, *, train: bool = False, key: DropoutKey = None
    ) -> Float[Array, "b d"] | None:
        """The sensor feature of each row, or None for fusion `none`, which has no encoder.

        Where the data have no sensor, every row is one without.
        """
        if self.sensor_encoder is None:
            return None
        sensor, has_sensor = observation.sensor, observation.has_sensor
        if sensor is None:
            b, config = observation.batch_size, self.config.sensor
            if self.no_sensor is not None:
                return jnp.broadcast_to(self.no_sensor[...].astype(self.dtype), (b, config.output_dim))
            sensor = jnp.zeros((b, config.temporal_length, config.channels), jnp.float32)
            has_sensor = jnp.zeros(b, bool)
        return self.encode_sensor(sensor, has_sensor, train=train, key=key)

    def encode_sensor(
        self,
        sensor: Float[ArrayLike, "b t c"],
        has_sensor: Bool[ArrayLike, " b"] | None = None,
        *,
        train: bool = False,
        key: DropoutKey = None,
    ) -> Float[Array, "b d"]:
        """The sensor feature of each window.

        has_sensor: None means all. The windows of samples without sensor are not read: they give the learned
        "no sensor" vector, or in the reference's way what the encoder makes of zeros.
        train: BatchNorm uses and updates the batch's statistics; `key` drops activations.
        """
        assert self.sensor_encoder is not None, "fusion none has no encoder"
        sensor, has_sensor = jnp.asarray(sensor, jnp.float32), _as_jax(has_sensor)
        if has_sensor is not None:
            sensor = jnp.where(has_sensor[:, None, None], sensor, 0.0)
        counts = has_sensor if self.config.sensor.masked_statistics else None
        features = self.sensor_encoder(sensor, counts, train=train, key=key)
        if has_sensor is None or self.no_sensor is None:
            return features
        return jnp.where(has_sensor[:, None], features, self.no_sensor[...].astype(features.dtype)[None])

    def condition(
        self,
        vl: Float[ArrayLike, "b s v"] | None,
        sensor_features: Float[Array, "b d"] | None,
        vl_mask: Bool[ArrayLike, "b s"] | None = None,
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b e"]:
        """The condition of the head by what features and sensor say. vl_mask: None means all tokens."""
        assert vl is not None, "every policy reads features"
        return self.fusion(jnp.asarray(vl, self.dtype), _as_jax(vl_mask), sensor_features, key=key)

    def _whole_condition(
        self, observation: Observation, sensor_features: Float[Array, "b d"] | None, key: DropoutKey = None
    ) -> Float[Array, "b e"]:
        """The condition of the head: it depends on the observation alone."""
        condition = self.condition(observation.vl, sensor_features, observation.vl_mask, key=key)
        state, age = observation.state, observation.feature_age
        if self.state_encoder is not None:
            assert state is not None, "this policy reads the arm's state"
            condition = condition + self.state_encoder(jnp.asarray(state, jnp.float32))
        if self.state_window_encoder is not None:
            window, mask = observation.state_window, observation.state_window_mask
            assert window is not None, "this policy reads the arm's last states"
            assert mask is not None
            added = self.state_window_encoder(jnp.asarray(window, jnp.float32), jnp.asarray(mask))
            condition = condition + added
        if self.age_encoder is not None:
            assert age is not None, "this policy is told how old its features are"
            condition = condition + self.age_encoder(jnp.asarray(age, jnp.float32))
        return condition


def _prefix(observation: Observation) -> Prefix | None:
    if observation.prefix is None:
        return None
    assert observation.prefix_length is not None
    assert observation.plan_length is not None
    parts = (observation.prefix, observation.prefix_length, observation.plan_length)
    return Prefix(*(jnp.asarray(part) for part in parts))


def _as_jax(array: ArrayLike | None) -> Array | None:
    return None if array is None else jnp.asarray(array)


def abstract_network(config: PolicyConfig) -> PolicyNetwork:
    """Returns the network with shapes in place of arrays: nothing is allocated, no initial value drawn."""

    def make() -> PolicyNetwork:
        rngs = nnx.Rngs(0)
        rngs.default = _SameKey(0, tag="default")  # pyrefly: ignore[missing-attribute]: Rngs names its streams so
        return PolicyNetwork(config, rngs=rngs)

    return nnx.eval_shape(make)


class _SameKey(nnx.RngStream):
    """Gives one key again and again: of an abstract network only shapes are seen, and to count keys while tracing is
    what would take most of its time."""

    def __call__(self) -> Array:
        return self.key[...]
