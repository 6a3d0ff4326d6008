"""Splits episodes into training and held-out ones."""

import hashlib
from collections.abc import Sequence


def hash_fraction(identity: str, seed: int) -> float:
    """Returns a number in [0, 1) that depends on an episode's identity and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def assign_splits(
    identities: Sequence[str],
    strata: Sequence[str],
    val_fraction: float,
    seed: int,
    earlier: Sequence[str | None] | None = None,
    recordings: Sequence[str] | None = None,
) -> list[str]:
    """Returns "train" or "val" for each episode.

    1. An episode that has a side keeps it.
    2. A new one is held out when its hash falls below `val_fraction`.
    3. Chance is corrected only where it leaves a stratum of at least 1 / val_fraction episodes without a held-out one,
       a stratum of several without a training one, or the whole set without either. A new episode is moved for it; a
       training episode that has its side is held out only where there is no new one. What was once held out is never
       trained on, even where that leaves nothing to train on.

    identities: what is hashed; strata: groups (source and instruction) to be represented on both sides.
    val_fraction: 0 holds nothing out.
    earlier: the side that each episode was on before (`vla_jax.dataset.split_memory`), None for new ones; all are new
        by default. With the same fraction and seed, that is: with others the split starts anew.
    recordings: the recording that each episode is a part of; its parts move together. Each has its own by default.
    """
    recordings = [str(i) for i in range(len(identities))] if recordings is None else recordings
    earlier = [None] * len(identities) if earlier is None else earlier
    fractions = [hash_fraction(identity, seed) for identity in identities]
    splits = [
        side or ("val" if fraction < val_fraction else "train")
        for side, fraction in zip(earlier, fractions, strict=True)
    ]
    if val_fraction <= 0:
        return splits
    for stratum in sorted(set(strata)):
        members = [i for i, name in enumerate(strata) if name == stratum]
        _correct(splits, fractions, earlier, recordings, members, need_val=len(members) * val_fraction >= 1)
    _correct(splits, fractions, earlier, recordings, list(range(len(splits))), need_val=True)
    return splits


def _correct(
    splits: list[str],
    fractions: Sequence[float],
    earlier: Sequence[str | None],
    recordings: Sequence[str],
    members: list[int],
    *,
    need_val: bool,
) -> None:
    if len(members) < 2:
        return
    new = [i for i in members if earlier[i] is None]
    held_out = {splits[i] for i in members}
    if need_val and "val" not in held_out:
        chosen, side = min(new or members, key=lambda i: (fractions[i], i)), "val"
    elif "train" not in held_out and new:
        chosen, side = max(new, key=lambda i: (fractions[i], i)), "train"
    else:
        return
    for i, recording in enumerate(recordings):
        if recording == recordings[chosen]:
            splits[i] = side
