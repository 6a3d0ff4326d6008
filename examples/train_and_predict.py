"""Trains a policy and asks it for actions: `python examples/train_and_predict.py DATA CACHE RUN`.

DATA: packed data set (`vla-jax prepare`). CACHE: its features (`vla-jax export`). RUN: folder for the trained policy.
"""

import argparse
from pathlib import Path

import numpy as np

from vla_jax import InsertionPolicy
from vla_jax.data import FeatureTable, PackedDataset, make_batch
from vla_jax.training import make_config, make_mesh, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("cache", type=Path)
parser.add_argument("run", type=Path)
parser.add_argument(
    "--recipe", default="small", help="small: minutes on a CPU; frozen: full size; debug: tiny"
)
arguments = parser.parse_args()

dataset = PackedDataset.open(arguments.data)
features = FeatureTable.open(dataset, arguments.cache)
fusion = "none" if dataset.spec.sensor is None else "concat"
config = make_config(arguments.recipe, features.spec, dataset.spec, head="regression", fusion=fusion)
train(config, dataset, features, arguments.run, mesh=make_mesh(), announce=print)

policy = InsertionPolicy.from_checkpoint(arguments.run)
batch = make_batch(dataset, features, features.sample_ticks("val")[:16])
predicted = policy.infer(batch.observation)  # (samples, horizon, action dimensions), in recorded units
errors = np.abs(predicted - batch.actions).mean(axis=(0, 1))
for name, unit, error in zip(policy.data.actions.names, policy.data.actions.units, errors, strict=True):
    print(f"{name}: mean error {error:.4f} {unit}")
