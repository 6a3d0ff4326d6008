"""Recipes: every one describes a network that can be built."""

import dataclasses
import itertools
from typing import get_args

import jax
import pytest

from vla_jax.contracts.specs import LAB_ACTIONS, DataSpec, FeatureSpec, SensorSpec
from vla_jax.errors import UserError
from vla_jax.models.config import FusionStrategy
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.recipes import RecipeName, make_config
from vla_jax.training.state import make_state

DATA = DataSpec(LAB_ACTIONS, views=("View1",), sensor=SensorSpec(window=130))
FEATURES = FeatureSpec(num_slots=5, width=16)


def config(recipe, head="diffusion", fusion="concat", **options):
    return make_config(recipe, FEATURES, DATA, head=head, fusion=fusion, **options)


@pytest.mark.parametrize(
    ("recipe", "head", "fusion"),
    [
        *itertools.product(get_args(RecipeName), ["regression", "diffusion"], ["concat"]),
        *itertools.product(["small"], ["regression", "diffusion"], get_args(FusionStrategy)[1:]),
        *itertools.product(["frozen"], ["flow", "minimal_iterative"], ["concat"]),
    ],
)
def test_every_recipe_can_be_built(recipe, head, fusion):
    made = config(recipe, head, fusion)
    optimizer = make_optimizer(made.optimizer, made.steps)
    state = jax.eval_shape(lambda key: make_state(made, optimizer, key), jax.random.key(0))
    assert jax.tree.leaves(state.params)
    assert made.policy.misfits(FEATURES, DATA) == []
    assert made.policy.sensor.temporal_length == 130


def test_actions_fill_what_the_sampler_clips_to():
    assert config("small", "diffusion").normalisation.actions == "min_max"
    assert config("small", "regression").normalisation.actions == "mean_std"


def test_noise_steps_are_for_heads_that_have_them():
    assert config("debug", noise_steps=50).policy.head.noise_steps == 50
    with pytest.raises(UserError, match="no noise schedule"):
        config("debug", "regression", noise_steps=50)


@pytest.mark.parametrize("head", ["regression", "diffusion"])
def test_the_small_reference_differs_from_the_reference_in_sizes_and_rates_only(head):
    small, full = config("small_reference", head), config("reference", head)
    assert config("small", head).policy.head.hidden_dim == small.policy.head.hidden_dim
    differing = {
        f"{part}.{field.name}"
        for part in ("policy", "policy.sensor", "policy.fusion", "policy.head", "optimizer", "")
        for field in dataclasses.fields(_part(small, part))
        if getattr(_part(small, part), field.name) != getattr(_part(full, part), field.name)
        and not dataclasses.is_dataclass(getattr(_part(small, part), field.name))
    }
    assert differing == {
        "policy.sensor.hidden_dim", "policy.sensor.output_dim", "policy.sensor.num_transformer_layers",
        "policy.sensor.num_heads", "policy.fusion.num_heads", "policy.head.hidden_dim", "policy.head.num_layers",
        "policy.head.num_heads", "optimizer.lr", "optimizer.sensor_lr", "optimizer.min_lr", ".steps", ".batch_size",
        ".validate_every", ".checkpoint_every", ".recipe",
    }  # fmt: skip


def _part(made, path):
    for name in filter(None, path.split(".")):
        made = getattr(made, name)
    return made
