import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cache.keys import image_digest, record_key
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError

PROVENANCE = Provenance(
    backbone="a" * 64,
    backbone_name="tiny",
    adapter=None,
    processor={"size": {"height": 112, "width": 112}, "mean": [0.5]},
    chat_template="c" * 64,
)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "b" * 64},
        {"adapter": "d" * 64},
        {"processor": {"size": {"height": 112, "width": 140}, "mean": [0.5]}},
        {"chat_template": "e" * 64},
        {"pooling": "mean"},
        {"grid": 3},
        {"layer": -2},
        {"dtype": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_that_shapes_the_features_changes_the_digest(change):
    assert dataclasses.replace(PROVENANCE, **change).digest() != PROVENANCE.digest()


def test_the_backbones_place_does_not_change_the_digest():
    assert dataclasses.replace(PROVENANCE, backbone_name="/moved/tiny").digest() == PROVENANCE.digest()


def test_the_grid_counts_for_grid_pooling_only():
    mean = dataclasses.replace(PROVENANCE, pooling="mean")
    assert dataclasses.replace(mean, grid=5).digest() == mean.digest()


def test_digests_are_stable_across_versions():
    """Recorded once: a change here makes every existing cache unreadable and needs another KEY_VERSION."""
    assert PROVENANCE.name() == "a55306fa74c98e52"
    assert record_key(PROVENANCE.digest(), "go", ["1", "2"]) == "5ac21e3c35939dcf38d5463405bafd83"
    assert image_digest(b"abc").startswith("ba7816bf8f01cfea")


@given(
    prompts=st.tuples(st.text(max_size=8), st.text(max_size=8)),
    images=st.tuples(*[st.lists(st.sampled_from(["ab", "a", "b", "", '","']), max_size=3)] * 2),
)
def test_different_records_have_different_keys(prompts, images):
    first, second = (record_key("p", prompt, image) for prompt, image in zip(prompts, images, strict=True))
    assert (first == second) == ((prompts[0], images[0]) == (prompts[1], images[1]))


def test_the_order_of_the_views_changes_the_key():
    assert record_key("p", "go", ["1", "2"]) != record_key("p", "go", ["2", "1"])


def test_the_export_options_name_what_is_not_the_default():
    assert PROVENANCE.export_options() == "--backbone tiny"
    other = Provenance("a", "Qwen/X", "b", {"size": {"longest_edge": 1000}}, "c", "grid", 3, -2, "bfloat16")
    assert other.export_options() == (
        "--backbone Qwen/X --grid 3 --image-size 1000 --adapter DIR --layer -2 --dtype bfloat16"
    )
    assert (
        dataclasses.replace(PROVENANCE, pooling="mean").export_options() == "--backbone tiny --pooling mean"
    )


def test_json_round_trip():
    assert Provenance.from_json(PROVENANCE.to_json(), source="x") == PROVENANCE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        PROVENANCE.to_json().replace("aaaa", "aaab", 1),
        json.dumps({**json.loads(PROVENANCE.to_json()), "key_version": 99}),
        json.dumps({**json.loads(PROVENANCE.to_json()), "surplus": 1}),
    ],
)
def test_damaged_json_is_refused_by_name(text):
    with pytest.raises(UserError, match=r"^here\.json: "):
        Provenance.from_json(text, source="here.json")


@pytest.mark.parametrize("change", [{"pooling": "max"}, {"dtype": "float32"}, {"grid": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError):
        dataclasses.replace(PROVENANCE, **change)
