"""The policy network: sensor encoder, fusion and action expert behind one interface."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.diffusion import schedule as diffusion
from vla_jax.diffusion.ddim import ddim_sample
from vla_jax.diffusion.ddpm import ddpm_sample
from vla_jax.diffusion.timesteps import sampling_timesteps
from vla_jax.heads.diffusion import DiffusionActionExpert
from vla_jax.heads.regression import RegressionActionExpert
from vla_jax.models.config import PolicyConfig, Sampler
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.fusion import Fusion
from vla_jax.models.sensor_encoder import SensorEncoder


class PolicyNetwork(nnx.Module):
    """Predicts chunks of normalised actions from vision-language tokens and sensor windows.

    All tensors are normalised; axes: b batch, s tokens, v token width, t sensor steps, c channels, d sensor
    feature, h horizon, a action dimensions. Parameters under `sensor_encoder/` are the encoder's, all others the
    expert's.
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
        self.fusion = Fusion(config, dtype=dtype, rngs=rngs)
        expert = DiffusionActionExpert if config.model_type == "diffusion" else RegressionActionExpert
        self.expert = expert(config, dtype=dtype, rngs=rngs)

    @property
    def schedule(self) -> diffusion.Schedule:
        """The diffusion's constants."""
        return diffusion.cosine_schedule(self.config.diffusion.steps)

    def encode_sensor(
        self,
        sensor: Float[Array, "b t c"],
        has_sensor: Bool[Array, " b"] | None = None,
        *,
        train: bool = False,
        key: DropoutKey = None,
    ) -> Float[Array, "b d"] | None:
        """The sensor feature of each window, or None for fusion `none`, which has no encoder.

        has_sensor: None means all. The windows of samples without sensor are not read: they give the learned
        "no sensor" vector, or in the reference's way what the encoder makes of zeros.
        train: BatchNorm uses and updates the batch's statistics; `key` drops activations.
        """
        if self.sensor_encoder is None:
            return None
        sensor = sensor.astype(jnp.float32)
        if has_sensor is not None:
            sensor = jnp.where(has_sensor[:, None, None], sensor, 0.0)
        counts = has_sensor if self.config.sensor.masked_statistics else None
        features = self.sensor_encoder(sensor, counts, train=train, key=key)
        if has_sensor is None or self.no_sensor is None:
            return features
        return jnp.where(has_sensor[:, None], features, self.no_sensor[...].astype(features.dtype)[None])

    def condition(
        self,
        vl: Float[Array, "b s v"],
        sensor_features: Float[Array, "b d"] | None,
        vl_mask: Bool[Array, "b s"] | None = None,
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b e"]:
        """The condition of the expert: it depends on the observation alone. vl_mask: None means all tokens."""
        return self.fusion(vl.astype(self.dtype), vl_mask, sensor_features, key=key)

    def predict_noise(
        self,
        x_t: Float[Array, "b h a"],
        t: Int[Array, " b"],
        vl: Float[Array, "b s v"],
        sensor_features: Float[Array, "b d"] | None,
        vl_mask: Bool[Array, "b s"] | None = None,
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b h a"]:
        """The diffusion expert's output for noisy actions x_t at steps t: the noise, or what else it predicts."""
        self._require("diffusion", "predict_noise")
        condition_key, expert_key = split_key(key, 2)
        condition = self.condition(vl, sensor_features, vl_mask, key=condition_key)
        return self.expert(x_t, self.expert.embed_time(t), condition, key=expert_key)

    def decode(
        self,
        vl: Float[Array, "b s v"],
        z_chunk: Float[Array, "b h a"],
        sensor_features: Float[Array, "b d"] | None,
        vl_mask: Bool[Array, "b s"] | None = None,
        *,
        key: DropoutKey = None,
    ) -> tuple[Float[Array, "b h a"], Float[Array, "b h a"]]:
        """(actions, delta) of the regression expert: actions = z_chunk + delta."""
        self._require("regression", "decode")
        condition_key, expert_key = split_key(key, 2)
        condition = self.condition(vl, sensor_features, vl_mask, key=condition_key)
        delta = self.expert(condition, key=expert_key)
        return z_chunk + delta, delta

    def loss(
        self,
        vl: Float[Array, "b s v"],
        vl_mask: Bool[Array, "b s"] | None,
        sensor: Float[Array, "b t c"] | None,
        has_sensor: Bool[Array, " b"] | None,
        actions: Float[Array, "b h a"],
        *,
        key: Key[Array, ""],
        train: bool,
        z_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """The squared error of each sample, mean over horizon and dimensions: of the predicted noise (x_0, v) at a
        random step, or of the actions.

        key: draws the diffusion's step and noise, and dropout when `train`.
        train: dropout, and BatchNorm by the batch's statistics (the running ones are updated).
        z_chunk: the chunk that regression adds to; needed for config.z_chunk "previous", else left None.
        """
        time_key, noise_key, encoder_key, expert_key = jax.random.split(key, 4)
        if not train:
            encoder_key = expert_key = None
        features = (
            self.encode_sensor(sensor, has_sensor, train=train, key=encoder_key)
            if self.sensor_encoder
            else None
        )
        if self.config.model_type == "regression":
            z_chunk = self._training_anchor(actions, z_chunk)
            prediction, _ = self.decode(vl, z_chunk, features, vl_mask, key=expert_key)
            return jnp.square(prediction - actions).mean(axis=(1, 2))
        return self._denoising_loss(vl, vl_mask, features, actions, time_key, noise_key, expert_key)

    def sample(
        self,
        vl: Float[Array, "b s v"],
        vl_mask: Bool[Array, "b s"] | None,
        sensor: Float[Array, "b t c"] | None,
        has_sensor: Bool[Array, " b"] | None,
        *,
        key: Key[Array, ""] | None,
        z_chunk: Float[Array, "b h a"] | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
    ) -> Float[Array, "b h a"]:
        """Predicts actions in evaluation mode.

        key: draws the diffusion's noise; regression ignores it. z_chunk: regression only, None means zeros.
        sampler, steps: diffusion only; None takes the configuration's (DDPM: all steps).
        """
        features = self.encode_sensor(sensor, has_sensor) if self.sensor_encoder else None
        shape = (vl.shape[0], self.config.horizon, self.config.action_dim)
        if self.config.model_type == "regression":
            anchor = jnp.zeros(shape, jnp.float32) if z_chunk is None else z_chunk
            return self.decode(vl, anchor, features, vl_mask)[0]
        start_key, noise_key = jax.random.split(key)
        x_T = jax.random.normal(start_key, shape, jnp.float32)
        return self.denoise(x_T, vl, features, vl_mask, sampler=sampler, steps=steps, key=noise_key)

    def denoise(
        self,
        x_T: Float[Array, "b h a"],
        vl: Float[Array, "b s v"],
        sensor_features: Float[Array, "b d"] | None,
        vl_mask: Bool[Array, "b s"] | None = None,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        noise: Float[Array, "n b h a"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h a"]:
        """Samples actions from the noise x_T by DDIM or DDPM.

        The condition is computed once, and the embeddings of all visited steps in one product.

        sampler, steps: None takes the configuration's (DDPM: all steps).
        noise: what DDPM adds (n = steps - 1), or DDIM with eta > 0 (n = steps), noisiest step first; drawn from
        `key` when None.
        """
        self._require("diffusion", "denoise")
        config = self.config.diffusion
        sampler = sampler or config.sampler
        if steps is None:
            steps = config.ddim_steps if sampler == "ddim" else config.steps
        timesteps = sampling_timesteps(
            config.steps, steps, config.ddim_spacing if sampler == "ddim" else "trailing"
        )
        count = steps if sampler == "ddim" else steps - 1
        needs_noise = sampler == "ddpm" or config.ddim_eta > 0
        if needs_noise and noise is None:
            if key is None:
                raise ValueError(f"{sampler} draws noise at each step; give `key` or `noise`")
            # One key per step, so that a sample's noise does not depend on the size of its batch.
            draw = jax.vmap(lambda step_key: jax.random.normal(step_key, x_T.shape, jnp.float32))
            noise = draw(jax.random.split(key, count)) if count else jnp.zeros((0, *x_T.shape), jnp.float32)
        condition = self.condition(vl, sensor_features, vl_mask)
        per_step = self.expert.embed_time(jnp.asarray(timesteps))

        def network(x: Array, time: Array) -> Array:
            return self.expert(x, time[None], condition)

        if sampler == "ddim":
            return ddim_sample(
                network,
                x_T,
                self.schedule,
                timesteps,
                per_step=per_step,
                eta=config.ddim_eta,
                prediction=config.prediction,
                clip=config.clip_range if config.ddim_clip else None,
                noise=noise,
            )
        return ddpm_sample(
            network,
            x_T,
            self.schedule,
            timesteps,
            per_step=per_step,
            noise=noise,
            prediction=config.prediction,
            clip=config.clip_range if config.ddpm_clip else None,
        )

    def _denoising_loss(
        self,
        vl: Array,
        vl_mask: Array | None,
        features: Array | None,
        actions: Array,
        time_key: Key[Array, ""],
        noise_key: Key[Array, ""],
        dropout_key: DropoutKey,
    ) -> Float[Array, " b"]:
        """The error of what the expert predicts, mean over `noise_draws` steps and noises for each sample."""
        b, draws = actions.shape[0], self.config.diffusion.noise_draws
        condition_key, expert_key = split_key(dropout_key, 2)
        condition = self.condition(vl, features, vl_mask, key=condition_key)
        actions, condition = (jnp.repeat(x, draws, axis=0) for x in (actions, condition))
        t = jax.random.randint(time_key, (b * draws,), 0, self.schedule.steps)
        noise = jax.random.normal(noise_key, actions.shape, actions.dtype)
        x_t = diffusion.add_noise(self.schedule, actions, t, noise)
        prediction = self.expert(x_t, self.expert.embed_time(t), condition, key=expert_key)
        target = diffusion.target(self.schedule, self.config.diffusion.prediction, actions, t, noise)
        return jnp.square(prediction - target).reshape(b, -1).mean(axis=1)

    def _training_anchor(self, actions: Array, z_chunk: Array | None) -> Array:
        if z_chunk is not None:
            return z_chunk
        if self.config.z_chunk == "previous":
            raise ValueError('config.z_chunk is "previous": give the chunk as z_chunk')
        return actions if self.config.z_chunk == "target" else jnp.zeros_like(actions)

    def _require(self, model_type: str, method: str) -> None:
        if self.config.model_type != model_type:
            raise ValueError(
                f"{method} belongs to {model_type} policies; this one is {self.config.model_type}"
            )
