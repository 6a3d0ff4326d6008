"""Runs a policy over every sample of a split."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.dataset.batches import sequential_batches
from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.prediction import row_keys
from vla_jax.progress import progress_bar


@dataclass(frozen=True)
class Predictions:
    """What a policy predicted at each of n samples, in recorded units, with what happened.

    Attributes:
        tick: [n] rows of the data set's tick table, ascending.
        episode: [n] index of each sample's episode.
        predicted, target: [n, h, a] float32 chunks.
        previous_action: [n, a] the delta before the tick.
        has_sensor: [n] whether the sample has a sensor window.
    """

    tick: Int[np.ndarray, " n"]
    episode: Int[np.ndarray, " n"]
    predicted: Float[np.ndarray, "n h a"]
    target: Float[np.ndarray, "n h a"]
    previous_action: Float[np.ndarray, "n a"]
    has_sensor: Bool[np.ndarray, " n"]


def predict_split(
    policy: InsertionPolicy,
    dataset: PackedDataset,
    features: FeatureTable,
    split: Split,
    *,
    batch_size: int,
    seed: int = 0,
) -> Predictions:
    """Predicts the chunk of every sample of "train", "val" or "all" that has features (`predict_ticks`)."""
    ticks = features.sample_ticks(split)
    return predict_ticks(policy, dataset, features, ticks, batch_size=batch_size, seed=seed, what=split)


def predict_ticks(
    policy: InsertionPolicy,
    dataset: PackedDataset,
    features: FeatureTable,
    ticks: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    seed: int = 0,
    aged: AgedFeatures | None = None,
    what: str = "",
) -> Predictions:
    """Predicts the chunk of each of the samples `ticks`, with a progress bar.

    aged: says how old the features are; without, they are the newest. what: for the bar.

    A diffusion policy draws each sample's noise from (seed, tick), so neither batch size nor split changes it. The
    recorded future enters only `target`.
    """
    draw_keys, root = jax.jit(row_keys), jax.random.key(seed)
    kept: dict[str, list[np.ndarray]] = {}
    with progress_bar(total=len(ticks), desc=f"predict {what}", unit="sample") as bar:
        for batch in sequential_batches(
            dataset, features, ticks, batch_size, aged=aged, state_window=policy.state_window
        ):
            observation, valid = batch.observation, batch.valid
            has_sensor, previous = observation.has_sensor, observation.previous_chunk
            assert previous is not None, "every data set has one"
            rows = {
                "tick": batch.tick,
                "predicted": policy.infer(observation, draw_keys(root, batch.tick)),
                "target": batch.actions,
                "previous_action": previous[:, -1],
                "has_sensor": np.zeros(len(valid), bool) if has_sensor is None else has_sensor,
            }
            for name, value in rows.items():
                kept.setdefault(name, []).append(np.asarray(value)[valid])
            bar.update(int(valid.sum()))
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Predictions(**joined, episode=np.asarray(dataset.ticks.episode[joined["tick"]]))
