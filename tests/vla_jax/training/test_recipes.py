"""Recipes: every one describes a network that can be built."""

import dataclasses
from typing import get_args

import jax
import pytest

from vla_jax.models.config import FusionStrategy, ModelType
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.recipes import RecipeName, make_config
from vla_jax.training.state import make_state


def config(recipe, model_type="diffusion", fusion="concat"):
    return make_config(recipe, model_type=model_type, fusion_strategy=fusion, vl_dim=16, vl_slots=5)


@pytest.mark.parametrize("recipe", get_args(RecipeName))
@pytest.mark.parametrize("model_type", get_args(ModelType))
@pytest.mark.parametrize("fusion", get_args(FusionStrategy))
def test_every_recipe_can_be_built(recipe, model_type, fusion):
    made = config(recipe, model_type, fusion)
    optimizer = make_optimizer(made.optimizer, made.steps)
    state = jax.eval_shape(lambda key: make_state(made, optimizer, key), jax.random.key(0))
    assert jax.tree.leaves(state.params)


@pytest.mark.parametrize("model_type", get_args(ModelType))
def test_the_small_reference_differs_from_the_reference_in_sizes_and_rates_only(model_type):
    small, full = config("small_reference", model_type), config("reference", model_type)
    assert config("small", model_type).policy.expert.hidden_dim == small.policy.expert.hidden_dim
    differing = {
        f"{part}.{field.name}"
        for part in ("policy", "policy.sensor", "policy.fusion", "policy.expert", "optimizer", "")
        for field in dataclasses.fields(_part(small, part))
        if getattr(_part(small, part), field.name) != getattr(_part(full, part), field.name)
        and not dataclasses.is_dataclass(getattr(_part(small, part), field.name))
    }
    assert differing == {
        "policy.sensor.hidden_dim", "policy.sensor.output_dim", "policy.sensor.num_transformer_layers",
        "policy.sensor.num_heads", "policy.fusion.num_heads", "policy.expert.hidden_dim", "policy.expert.num_layers",
        "policy.expert.num_heads", "optimizer.lr", "optimizer.sensor_lr", "optimizer.min_lr", ".steps", ".batch_size",
        ".validate_every", ".checkpoint_every", ".recipe",
    }  # fmt: skip


def _part(made, path):
    for name in filter(None, path.split(".")):
        made = getattr(made, name)
    return made
