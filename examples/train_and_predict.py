"""Trains a policy and asks it for actions: `python examples/train_and_predict.py DATA CACHE RUN`.

DATA: packed data set (`vla-jax prepare`). CACHE: its features (`vla-jax export`). RUN: folder for the trained policy.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from vla_jax import InsertionPolicy
from vla_jax.data import FeatureTable, PackedDataset, make_batch
from vla_jax.training import make_config, make_mesh, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("cache", type=Path)
parser.add_argument("run", type=Path)
parser.add_argument("--steps", type=int, default=500)
arguments = parser.parse_args()

dataset = PackedDataset.open(arguments.data)
features = FeatureTable.open(dataset, arguments.cache)
fusion = "none" if dataset.spec.sensor is None else "concat"
config = make_config("small", features.spec, dataset.spec, head="regression", fusion=fusion)
config = dataclasses.replace(config, steps=arguments.steps)
train(config, dataset, features, arguments.run, mesh=make_mesh(), announce=print)

policy = InsertionPolicy.from_checkpoint(arguments.run)
batch = make_batch(dataset, features, features.sample_ticks("val")[:16])
predicted = policy.infer(batch.observation)  # (samples, horizon, actions), in the units of the recordings
actions = policy.data.actions
for name, unit, error in zip(
    actions.names, actions.units, np.abs(predicted - batch.actions).mean((0, 1)), strict=True
):
    print(f"{name}: mean error {error:.4f} {unit}")
