from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vla_jax.dataset.split import assign_splits
from vla_jax.dataset.split_memory import SplitMemory

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


# One prepare after the other: which of 24 episodes, in three strata, the sources hold.
PREPARES = st.lists(st.sets(st.integers(0, 23), min_size=1), min_size=2, max_size=6)


def prepared(memory, members, seed):
    """The sides of the given episodes, and the memory after them."""
    paths = [Path(f"/source/task {i % 3}/{i}") for i in sorted(members)]
    strata = [path.parent.name for path in paths]
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    sides = assign_splits(names, strata, 0.2, seed, memory.sides(paths))
    entries = [{"absolute_path": str(path), "split": side} for path, side in zip(paths, sides, strict=True)]
    return dict(zip(paths, sides, strict=True)), SplitMemory.of({"left": memory.without(paths)}, entries)


@given(PREPARES, st.integers(0, 100))
def test_an_episode_once_held_out_is_never_trained_on_whatever_comes_and_goes(prepares, seed):
    memory, held_out = SplitMemory({}), set()
    for members in prepares:
        sides, memory = prepared(memory, members, seed)
        assert all(sides[path] == "val" for path in sides.keys() & held_out)
        held_out |= {path for path, side in sides.items() if side == "val"}


@given(PREPARES, st.integers(0, 100))
def test_a_set_that_only_grows_moves_no_episode_and_never_lacks_a_side(prepares, seed):
    memory, members, before = SplitMemory({}), set(), {}
    for added in prepares:
        members |= added
        sides, memory = prepared(memory, members, seed)
        assert {path: sides[path] for path in before} == before
        assert len(members) < 2 or set(sides.values()) == {"train", "val"}
        assert prepared(memory, members, seed)[0] == sides
        before = sides


def test_a_small_stratum_s_held_out_episode_stays_so_when_others_arrive():
    """By hash and correction alone it would train: the case that the memory is for."""
    names = [f"task/episode_{i}" for i in range(48)]
    moved = 0
    for seed in range(40):
        first = assign_splits(names[:24], ["s"] * 24, 0.05, seed)
        anew = assign_splits(names, ["s"] * 48, 0.05, seed)
        moved += any(a == "val" != b for a, b in zip(first, anew, strict=False))
        kept = assign_splits(names, ["s"] * 48, 0.05, seed, [*first, *[None] * 24])
        assert kept[:24] == first
    assert moved


def test_a_moved_episode_is_known_by_its_name_and_of_namesakes_the_held_out_side_counts():
    memory = SplitMemory({"/a/task/1": "train", "/b/task/1": "val", "/a/task/2": "train"})
    paths = [Path(text) for text in ("/a/task/1", "/c/task/1", "/c/task/2", "/c/other/2")]
    assert memory.sides(paths) == ["train", "val", "train", None]
    assert memory.without(paths) == {"/a/task/2": "train", "/b/task/1": "val"}


def test_nothing_to_train_on_is_no_reason_to_train_on_what_was_held_out():
    assert assign_splits(["a", "b"], ["s", "s"], 0.2, 0, ["val", "val"]) == ["val", "val"]
    assert sorted(assign_splits(["a", "b"], ["s", "s"], 0.2, 0, ["train", "train"])) == ["train", "val"]
