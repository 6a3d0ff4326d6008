"""What all heads have in common: refusals of their configurations, and the registry."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from vla_jax.errors import UserError
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.flow import FlowConfig
from vla_jax.heads.head_config import HeadConfig, Sampling, head_config, head_kinds, register_head
from vla_jax.heads.minimal_iterative import MinimalIterativeConfig
from vla_jax.heads.regression import RegressionConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegressionConfig(hidden_dim=100, num_heads=8), "100 is not divisible by 8"),
        (lambda: RegressionConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: DiffusionConfig(steps=5), "ddim_steps 10 exceeds steps 5"),
        (lambda: DiffusionConfig(ddim_eta=2.0), "ddim_eta is 2.0"),
        (lambda: DiffusionConfig(clip_range=0.0), "clip_range is 0.0"),
        (lambda: DiffusionConfig(time_embedding_dim=7), "time_embedding_dim is 7"),
        (lambda: HeadConfig(hidden_dim=0), "hidden_dim is 0"),
        (lambda: RegressionConfig(prefix_max=-1), "prefix_max is -1"),
        (lambda: FlowConfig(sampling_steps=0), "sampling_steps is 0"),
        (lambda: FlowConfig(time_alpha=0.0), "time_alpha is 0.0"),
        (lambda: FlowConfig(time_shift=0.5), "time_shift is 0.5"),
        (lambda: FlowConfig(time_embedding_dim=7), "FlowConfig.time_embedding_dim is 7"),
        (lambda: MinimalIterativeConfig(second_time=1.0), "second_time is 1.0"),
    ],
)
def test_impossible_values_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_heads_are_found_by_their_kind():
    assert {"regression", "diffusion", "flow", "minimal_iterative"} <= set(head_kinds())
    assert head_config("minimal_iterative") is MinimalIterativeConfig
    assert head_config("diffusion") is DiffusionConfig
    with pytest.raises(UserError, match=r"head 'regresion'; choose one of .*did you mean 'regression'"):
        head_config("regresion")


def test_a_kind_belongs_to_one_head():
    @dataclass(frozen=True)
    class Impostor(HeadConfig):
        kind: ClassVar[str] = "diffusion"

    with pytest.raises(ValueError, match="'diffusion' is taken by DiffusionConfig"):
        register_head(Impostor)
    assert head_config("diffusion") is DiffusionConfig


def test_only_heads_that_denoise_have_a_sampler_and_noise_steps():
    assert DiffusionConfig().sampling() == Sampling("ddim", 10)
    assert DiffusionConfig().sampling("ddpm") == Sampling("ddpm", 100)
    assert DiffusionConfig().with_noise_steps(50).noise_steps == 50
    assert RegressionConfig().sampling() is None
    with pytest.raises(UserError, match="no sampler"):
        RegressionConfig().sampling(steps=3)
    with pytest.raises(UserError, match="no noise schedule"):
        RegressionConfig().with_noise_steps(50)
