"""Runs a policy over every sample of a split."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.dataset.batches import sequential_batches
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.progress import progress_bar


@dataclass(frozen=True)
class Predictions:
    """What a policy predicted at each of n samples, in mm and degrees, with what happened.

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
    split: str,
    *,
    batch_size: int,
    seed: int = 0,
) -> Predictions:
    """Predicts the chunk of every sample of "train", "val" or "all" that has features, with a progress bar.

    A diffusion policy draws each sample's noise from (seed, tick), so neither batch size nor split changes it. The
    recorded future enters only `target`; a policy anchored on the previous chunk is given the delta before the
    tick, repeated.
    """
    horizon = policy.config.horizon
    draw_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
    root = jax.random.key(seed)
    kept: dict[str, list[np.ndarray]] = {}
    with progress_bar(total=len(features.sample_ticks(split)), desc=f"predict {split}", unit="sample") as bar:
        for batch in sequential_batches(dataset, features, split, batch_size):
            previous = batch["previous_action"]
            anchor = np.repeat(previous[:, None], horizon, axis=1)
            predicted = policy.predict(
                batch["vl"],
                batch["vl_mask"],
                batch["sensor"],
                batch["has_sensor"],
                key=draw_keys(root, batch["tick"].astype(np.uint32)),
                z_chunk=anchor if policy.config.z_chunk == "previous" else None,
            )
            valid = batch["valid"]
            rows = {
                "tick": batch["tick"],
                "predicted": predicted,
                "target": batch["actions"],
                "previous_action": previous,
                "has_sensor": batch["has_sensor"],
            }
            for name, value in rows.items():
                kept.setdefault(name, []).append(np.asarray(value)[valid])
            bar.update(int(valid.sum()))
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Predictions(**joined, episode=np.asarray(dataset.ticks.episode[joined["tick"]]))
