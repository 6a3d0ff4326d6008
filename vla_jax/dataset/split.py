"""Splits episodes into training and held-out ones."""

import hashlib
from collections.abc import Sequence


def hash_fraction(identity: str, seed: int) -> float:
    """Returns a number in [0, 1) that depends on an episode's identity and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def assign_splits(
    identities: Sequence[str], strata: Sequence[str], val_fraction: float, seed: int
) -> list[str]:
    """Returns "train" or "val" for each episode.

    An episode is held out when its hash falls below `val_fraction`, so that episodes added later move none of the
    old ones. Chance is corrected only where it leaves a stratum of at least 1 / val_fraction episodes without
    a held-out one, a stratum of several without a training one, or the whole set without either.

    identities: what is hashed; strata: groups (source and instruction) to be represented on both sides.
    val_fraction: 0 holds nothing out.
    """
    fractions = [hash_fraction(identity, seed) for identity in identities]
    splits = ["val" if fraction < val_fraction else "train" for fraction in fractions]
    if val_fraction <= 0:
        return splits
    for stratum in sorted(set(strata)):
        members = [i for i, name in enumerate(strata) if name == stratum]
        _correct(splits, fractions, members, need_val=len(members) * val_fraction >= 1)
    _correct(splits, fractions, list(range(len(splits))), need_val=True)
    return splits


def _correct(splits: list[str], fractions: Sequence[float], members: list[int], *, need_val: bool) -> None:
    if len(members) < 2:
        return
    held_out = {splits[i] for i in members}
    if need_val and "val" not in held_out:
        splits[min(members, key=lambda i: (fractions[i], i))] = "val"
    elif "train" not in held_out:
        splits[max(members, key=lambda i: (fractions[i], i))] = "train"
