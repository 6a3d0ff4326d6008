from hypothesis import given
from hypothesis import strategies as st

from vla_jax.dataset.split import assign_splits

NAMES = st.lists(st.text(max_size=5), min_size=2, max_size=30, unique=True)


@given(NAMES, st.integers(0, 100), st.floats(0.01, 0.9))
def test_both_sides_are_never_empty(names, seed, fraction):
    assert set(assign_splits(names, ["s"] * len(names), fraction, seed)) == {"train", "val"}


@given(NAMES, st.integers(0, 100))
def test_order_does_not_matter(names, seed):
    forwards = dict(zip(names, assign_splits(names, [n[:1] for n in names], 0.3, seed), strict=True))
    names = names[::-1]
    assert forwards == dict(zip(names, assign_splits(names, [n[:1] for n in names], 0.3, seed), strict=True))


def test_added_episodes_move_no_old_one():
    names = [f"task/episode_{i}" for i in range(300)]
    before = assign_splits(names[:200], ["s"] * 200, 0.2, 0)
    assert assign_splits(names, ["s"] * 300, 0.2, 0)[:200] == before
    assert 25 <= before.count("val") <= 55


def test_every_large_enough_stratum_is_held_out_from():
    names = [f"episode_{i}" for i in range(60)]
    strata = [f"task {i % 12}" for i in range(60)]
    for seed in range(5):
        splits = assign_splits(names, strata, 0.2, seed)
        for stratum in set(strata):
            assert {s for s, t in zip(splits, strata, strict=True) if t == stratum} == {"train", "val"}


def test_nothing_is_held_out_on_request():
    assert assign_splits(["a", "b"], ["s", "s"], 0.0, 0) == ["train", "train"]
