"""Policy configurations: JSON, refusals, and the reference's switches."""

from dataclasses import replace

import pytest

from vla_jax.errors import UserError
from vla_jax.models.config import (
    DiffusionConfig,
    ExpertConfig,
    FusionConfig,
    PolicyConfig,
    SensorEncoderConfig,
    check_choices,
)
from vla_jax.storage import config_json


@pytest.mark.parametrize(
    "config",
    [
        PolicyConfig(model_type="regression", vl_dim=8),
        PolicyConfig.reference("diffusion", "gated"),
        PolicyConfig.small("diffusion", vl_dim=64, vl_slots=13, temporal_length=650),
    ],
)
def test_json_round_trip(config):
    assert config_json.from_json(PolicyConfig, config_json.to_json(config)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertConfig(hidden_dim=100, num_heads=8), "100 is not divisible by 8"),
        (lambda: SensorEncoderConfig(hidden_dim=3), "transformer width 6 is not divisible by 8"),
        (lambda: SensorEncoderConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: DiffusionConfig(steps=5), "ddim_steps 10 exceeds steps 5"),
        (lambda: DiffusionConfig(ddim_eta=2.0), "ddim_eta is 2.0"),
        (lambda: DiffusionConfig(clip_range=0.0), "clip_range is 0.0"),
        (lambda: ExpertConfig(time_embedding_dim=7), "time_embedding_dim is 7"),
        (lambda: PolicyConfig(model_type="regression", vl_dim=0), "vl_dim is 0"),
        (lambda: PolicyConfig(model_type="regression", vl_dim=9, vl_slots=2), "9 is not divisible by 8"),
    ],
)
def test_impossible_values_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_misspelt_choice_gets_the_closest_one():
    config = FusionConfig()
    # Around the type checker of the tests, which would refuse the value first.
    object.__setattr__(config, "strategy", "crossattention")
    with pytest.raises(
        UserError, match=r"FusionConfig.strategy is 'crossattention'.*did you mean 'cross_attention'"
    ):
        check_choices(config)


def test_the_reference_switches_every_improvement_back():
    reference, ours = (
        PolicyConfig.reference("regression", vl_slots=13),
        PolicyConfig("regression", 2048, vl_slots=13),
    )
    assert (reference.vl_pool, ours.vl_pool) == ("mean", "attention")
    assert (reference.fusion.masked_pool, ours.fusion.masked_pool) == (False, True)
    assert (reference.sensor.masked_statistics, ours.sensor.masked_statistics) == (False, True)
    assert (reference.no_sensor_embedding, ours.no_sensor_embedding) == (False, True)
    assert (reference.expert.horizon_embedding, ours.expert.horizon_embedding) == (False, True)
    assert (reference.diffusion.ddim_spacing, ours.diffusion.ddim_spacing) == ("leading", "trailing")
    assert (reference.diffusion.ddpm_clip, ours.diffusion.ddpm_clip) == (False, True)
    assert (reference.z_chunk, ours.z_chunk) == ("target", "zero")
    assert replace(ours, vl_slots=1).vl_pool == "mean"
