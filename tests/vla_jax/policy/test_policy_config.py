"""Policy configurations: JSON of today and of earlier versions, refusals, and the reference's switches."""

import json
from dataclasses import replace

import pytest

from vla_jax.contracts.specs import LAB_ACTIONS, DataSpec, FeatureSpec, SensorSpec
from vla_jax.errors import UserError
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.regression import RegressionConfig
from vla_jax.policy.config import PolicyConfig
from vla_jax.storage import config_json

# What `config.json` said before heads had configurations of their own.
OLD = {
    "model_type": "regression",
    "vl_dim": 64,
    "vl_slots": 13,
    "horizon": 8,
    "action_dim": 7,
    "expert": {
        "hidden_dim": 128, "num_layers": 2, "num_heads": 4, "dropout": 0.2, "horizon_embedding": True,
        "time_embedding_dim": 64,
    },
    "diffusion": {"steps": 50, "prediction": "sample", "noise_draws": 4, "ddim_spacing": "leading"},
    "z_chunk": "previous",
    "no_sensor_embedding": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        PolicyConfig(head=RegressionConfig(), vl_dim=8),
        PolicyConfig.reference("diffusion", "gated"),
        PolicyConfig.small("diffusion", vl_dim=64, vl_slots=13, temporal_length=650),
    ],
)
def test_json_round_trip(config):
    assert config_json.from_json(PolicyConfig, config_json.to_json(config)) == config


def test_json_of_earlier_versions_is_read():
    sizes = {"hidden_dim": 128, "num_layers": 2, "num_heads": 4, "dropout": 0.2}
    rest = {"vl_dim": 64, "vl_slots": 13, "no_sensor_embedding": False}
    read = config_json.from_json(PolicyConfig, json.dumps(OLD))
    assert read == PolicyConfig(head=RegressionConfig(**sizes, z_chunk="previous"), **rest)
    read = config_json.from_json(PolicyConfig, json.dumps(OLD | {"model_type": "diffusion"}))
    head = DiffusionConfig(
        **sizes, time_embedding_dim=64, steps=50, prediction="sample", noise_draws=4, ddim_spacing="leading"
    )
    assert read == PolicyConfig(head=head, **rest)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"kind": "difusion"}, r"'difusion'; choose one of .*did you mean 'diffusion'"),
        ({"hidden_dim": 8}, "the key 'kind' is missing"),
        ({"kind": "diffusion", "z_chunk": "zero"}, r"head\.z_chunk is unknown"),
        ({"kind": "diffusion", "steps": 0}, r"head\.steps is 0; it must be at least 1"),
    ],
)
def test_heads_that_do_not_exist_are_refused_in_one_line(head, message):
    with pytest.raises(UserError, match=message) as caught:
        config_json.from_json(PolicyConfig, json.dumps({"head": head, "vl_dim": 8}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolicyConfig(head=RegressionConfig(), vl_dim=0), "vl_dim is 0"),
        (lambda: PolicyConfig(head=RegressionConfig(), vl_dim=9, vl_slots=2), "9 is not divisible by 8"),
    ],
)
def test_impossible_values_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_reference_switches_every_improvement_back():
    reference = PolicyConfig.reference("regression", vl_slots=13)
    ours = PolicyConfig(head=RegressionConfig(), vl_dim=2048, vl_slots=13)
    assert (reference.vl_pool, ours.vl_pool) == ("mean", "attention")
    assert (reference.fusion.masked_pool, ours.fusion.masked_pool) == (False, True)
    small = PolicyConfig.small("regression", vl_dim=64, fusion="cross_attention")
    assert (reference.fusion.query_residual, small.fusion.query_residual) == (False, True)
    assert (reference.sensor.masked_statistics, ours.sensor.masked_statistics) == (False, True)
    assert (reference.no_sensor_embedding, ours.no_sensor_embedding) == (False, True)
    assert (reference.head.z_chunk, ours.head.z_chunk) == ("target", "zero")
    assert replace(ours, vl_slots=1).vl_pool == "mean"
    theirs, ours = PolicyConfig.reference("diffusion").head, DiffusionConfig()
    assert (theirs.horizon_embedding, ours.horizon_embedding) == (False, True)
    assert (theirs.ddim_spacing, ours.ddim_spacing) == ("leading", "trailing")
    assert (theirs.ddpm_clip, ours.ddpm_clip) == (False, True)


def test_sizes_are_fitted_to_the_data_and_compared_with_them():
    actions = replace(LAB_ACTIONS, names=("x", "y"), units=("mm", "mm"), horizon=5)
    data = DataSpec(actions, views=(), sensor=SensorSpec(channels=12, window=30))
    features = FeatureSpec(num_slots=3, width=8)
    config = PolicyConfig(head=RegressionConfig(), vl_dim=8, vl_slots=2)
    faults = config.misfits(features, data)
    assert [fault.split()[1] for fault in faults] == ["is", "predicts", "reads"]
    fitted = replace(config, vl_slots=3).fitted(data)
    assert (fitted.horizon, fitted.action_dim, fitted.sensor.channels) == (5, 2, 12)
    assert fitted.sensor.temporal_length == 30
    assert fitted.misfits(features, data) == []
