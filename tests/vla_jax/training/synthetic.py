"""A tiny training problem without files: random inputs, actions that depend on them."""

import functools

import jax
import numpy as np

from vla_jax.contracts.observation import Batch, Observation
from vla_jax.contracts.specs import LAB_ACTIONS, DataSpec, FeatureSpec, SensorSpec
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh, put_batch, replicated
from vla_jax.training.state import abstract_state, initialise_state, network_structure
from vla_jax.training.step import train_step

SLOTS, WIDTH, WINDOW = 5, 12, 16
FEATURES = FeatureSpec(SLOTS, WIDTH)
DATA = DataSpec(LAB_ACTIONS, views=("View1",), sensor=SensorSpec(window=WINDOW))


def config(head="regression", fusion="concat", data=DATA):
    return make_config("debug", FEATURES, data, head=head, fusion=fusion)


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    vl = rng.normal(size=(size, SLOTS, WIDTH)).astype(np.float32)
    return Batch(
        observation=Observation(
            vl=vl,
            vl_mask=rng.random((size, SLOTS)) < 0.8,
            sensor=rng.normal(size=(size, WINDOW, 1026)).astype(np.float16),
            has_sensor=np.arange(size) % 4 != 0,
            previous_chunk=np.zeros((size, 8, 7), np.float32),
        ),
        actions=np.tanh(vl[:, :1, :7]).repeat(8, axis=1).astype(np.float32),
        confidence=np.ones(size, np.float32),
        tick=np.arange(size),
        valid=np.ones(size, bool),
    )


def identity_normaliser():
    zero, one = np.float32(0), np.float32(1)
    return Normaliser(
        np.zeros(7, np.float32), np.ones(7, np.float32), zero, one, one,
        np.zeros((1, WIDTH), np.float32), np.ones((1, WIDTH), np.float32),
    )  # fmt: skip


class Trainer:
    """Runs `train_step` as the loop does, on batches of this module."""

    def __init__(self, config, *, devices=1, fsdp=1):
        self.config = config
        self.mesh = make_mesh(devices, fsdp)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        abstract = abstract_state(config, self.optimizer, self.mesh)
        self.state = self.begin(abstract)
        self.structure = network_structure(config)
        everywhere = replicated(self.mesh)
        self.normaliser = jax.device_put(identity_normaliser(), everywhere)
        self.preprocessor = Preprocessor(self.normaliser, config.policy.sensor.num_averages)
        self.key = jax.device_put(jax.random.key(config.seed), everywhere)
        self.update = jax.jit(
            functools.partial(train_step, config, self.structure, self.optimizer),
            donate_argnums=1,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), everywhere),
        )

    def begin(self, abstract):
        return initialise_state(self.config, self.optimizer, abstract)

    def step(self, numpy_batch):
        self.state, metrics = self.update(
            self.preprocessor, self.state, put_batch(self.mesh, numpy_batch), self.key
        )
        return {name: float(value) for name, value in metrics.items()}
