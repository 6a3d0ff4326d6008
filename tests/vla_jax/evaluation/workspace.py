"""A packed data set, a feature cache and checkpoints, tiny and without a backbone."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from feature_cache.store import ShardWriter
from tests.vla_jax.recordings.recorded_episodes import START, write_windows_episode
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.feature_table import FeatureTable, record_keys
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.regression import RegressionConfig
from vla_jax.models.config import FusionConfig, SensorEncoderConfig
from vla_jax.policy.artifact import save_policy
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.metadata import PolicyMetadata, RunIdentity
from vla_jax.policy.network import abstract_network
from vla_jax.training.checkpoint import CheckpointWriter
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.starting_point import fit_normaliser
from vla_jax.training.state import make_state

WIDTH = 6
PROVENANCE = Provenance(
    backbone="b" * 64,
    backbone_name="somewhere/backbone",
    adapter=None,
    processor={"size": {"height": 28, "width": 28}},
    chat_template="c" * 64,
)
HEADS = {
    "regression": RegressionConfig(hidden_dim=8, num_layers=1, num_heads=2),
    "diffusion": DiffusionConfig(
        hidden_dim=8, num_layers=1, num_heads=2, time_embedding_dim=8, steps=8, ddim_steps=2
    ),
}
SEGMENTS = [
    {"name": "align", "start": START, "end": START + 0.8},
    {"name": "near_target", "start": START + 1.2, "end": START + 1.6},
]


@dataclass(frozen=True)
class Workspace:
    root: Path
    dataset: PackedDataset
    features: FeatureTable

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def cache(self) -> Path:
        return self.root / "cache"


def make_workspace(root, *, sources="episodes", **episode) -> Workspace:
    """Five episodes of two seconds, the fourth without sensor; random features of every record."""
    for i in range(5):
        options = {"has_sensor": i != 3, "metadata": {"segments": SEGMENTS}, **episode}
        write_windows_episode(root / sources / f"Blue <point>/episode_{i}", seed=i, **options)
    dataset = prepare([str(root / sources)], root / "data", PrepareOptions(val_fraction=0.4, seed=2)).dataset
    export_features(dataset, root / "cache", PROVENANCE)
    return Workspace(root, dataset, FeatureTable.open(dataset, root / "cache"))


def export_features(dataset, cache, provenance, *, width=WIDTH):
    rng = np.random.default_rng(0)
    writer = ShardWriter(cache, provenance)
    required = dataset.required_records()
    for index, key in zip(required, record_keys(dataset, required, provenance), strict=True):
        views = len(dataset.records[int(index)].images)
        writer.add(key, rng.normal(size=(4 * views + 1, width)))
    writer.flush()


def policy_config(workspace, head="regression", fusion="concat", **overrides):
    values = {
        "head": HEADS[head] if isinstance(head, str) else head,
        "vl_dim": workspace.features.width,
        "vl_slots": workspace.features.num_slots,
        "sensor": SensorEncoderConfig(hidden_dim=4, output_dim=8, num_conv_layers=1, use_transformer=False),
        "fusion": FusionConfig(strategy=fusion, vl_pool_heads=2, num_heads=2),
    }
    return PolicyConfig(**(values | overrides)).fitted(workspace.dataset.spec)


def save_run(workspace, run, policy=None, *, seed=0):
    """Writes a checkpoint of a network with random weights."""
    config = TrainConfig(policy=policy or policy_config(workspace))
    structure, params, statistics = nnx.split(abstract_network(config.policy), nnx.Param, ...)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), params)
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), statistics)
    metadata = PolicyMetadata(
        network=config.policy,
        data=workspace.dataset.spec,
        features=workspace.features.spec,
        normalisation=config.normalisation,
        identity=RunIdentity(features=workspace.features.provenance, data=workspace.dataset.describe()),
    )
    save_policy(
        run,
        nnx.merge(structure, params, statistics),
        fit_normaliser(config, workspace.dataset, workspace.features),
        metadata,
    )
    return run


def save_training(workspace, run, config):
    """Writes a checkpoint of a training run before its first update."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    writer = CheckpointWriter(run)
    writer.save(
        make_state(config, optimizer, jax.random.key(0)),
        step=0,
        config=config,
        normaliser=fit_normaliser(config, workspace.dataset, workspace.features),
        data=workspace.dataset.spec,
        features=workspace.features.spec,
        identity=RunIdentity(features=workspace.features.provenance, data=workspace.dataset.describe()),
        data_position={"next_sample": 0},
        metrics={},
    )
    writer.close()
    return run


def other_provenance(**changes):
    return replace(PROVENANCE, **changes)
