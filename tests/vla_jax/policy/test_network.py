"""Properties of whole policies: what they read, what they ignore, and that batches do not change predictions."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.recorded import FUSIONS, quick_jit
from vla_jax.contracts.observation import Observation
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.head_config import Sampling, head_config
from vla_jax.heads.regression import RegressionConfig
from vla_jax.models.config import FusionConfig, SensorEncoderConfig
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.policy.precision import with_dtype

SIZES = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2}
HEADS = {
    "regression": RegressionConfig(**SIZES),
    "diffusion": DiffusionConfig(**SIZES, time_embedding_dim=8),
}


def tiny(head="regression", fusion="concat", *, z_chunk=None, **overrides) -> PolicyConfig:
    values = {
        "head": HEADS[head] if z_chunk is None else replace(HEADS[head], z_chunk=z_chunk),
        "vl_dim": 6,
        "vl_slots": 5,
        "sensor": SensorEncoderConfig(
            channels=4, temporal_length=9, hidden_dim=8, output_dim=8, num_conv_layers=2, num_transformer_layers=1,
            num_heads=2,
        ),
        "fusion": FusionConfig(strategy=fusion, vl_pool_heads=2, vl_pool_width=8, num_heads=2),
    }  # fmt: skip
    return PolicyConfig(**(values | overrides))


def make(config: PolicyConfig) -> PolicyNetwork:
    """A network whose BatchNorm statistics and slot query are not at their initial values."""
    network = PolicyNetwork(config, rngs=nnx.Rngs(0))
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        if path[-1] in ("mean", "query"):
            variable.set_value(
                0.3 * jnp.cos(jnp.arange(variable.size, dtype=jnp.float32)).reshape(variable.shape)
            )
    return network


def observe(batch: int = 5) -> Observation:
    rng = np.random.default_rng(0)
    return Observation(
        vl=jnp.asarray(rng.normal(size=(batch, 5, 6)), jnp.float32),
        vl_mask=jnp.asarray(rng.random((batch, 5)) < 0.7).at[:, 0].set(True),
        sensor=jnp.asarray(rng.normal(size=(batch, 9, 4)), jnp.float32),
        has_sensor=jnp.arange(batch) != 1,
    )


def sampler(config: PolicyConfig):
    """A compiled `sample` that takes the weights as an argument, and a network's weights."""
    graphdef, state = nnx.split(make(config))
    sample = quick_jit(lambda state, given: draw(nnx.merge(graphdef, state), given))
    return lambda given: sample(state, given)


def draw(network, given, steps=4):
    """Samples with a key for each row, and so many steps where the head takes steps."""
    sampling = None if network.config.head.noise_steps is None else Sampling("ddim", steps)
    keys = jax.random.split(jax.random.key(0), 16)[: given.batch_size]
    return network.sample(given, keys=keys, sampling=sampling)


CASES = [("regression", fusion) for fusion in FUSIONS] + [("diffusion", "concat")]


@pytest.mark.parametrize(("head", "fusion"), CASES)
def test_predictions_do_not_depend_on_the_batch_or_on_padding(head, fusion):
    sample, given = sampler(tiny(head, fusion)), observe()
    expected = sample(given)
    assert expected.shape == (5, 8, 7)
    first = sample(jax.tree.map(lambda array: array[:3], given))
    np.testing.assert_allclose(first, expected[:3], atol=1e-5)
    # What is absent may hold anything: other tokens, windows that were never recorded.
    absent = given.replace(
        vl=jnp.where(given.vl_mask[..., None], given.vl, 1e3),
        sensor=jnp.where(given.has_sensor[:, None, None], given.sensor, jnp.nan),
    )
    np.testing.assert_allclose(sample(absent), expected, atol=1e-5)
    if fusion != "none":
        # In cross_attention the sensor only steers the weights of the tokens, faintly so before training.
        assert np.abs(sample(given.replace(sensor=-given.sensor)) - expected)[0].max() > 1e-6
    assert np.abs(sample(given.replace(vl=given.vl.at[:, 0].add(1.0))) - expected).max() > 1e-5


def test_a_learned_vector_stands_for_the_sensor_of_the_rows_without_one():
    """Those rows alone change with it; in the reference's way they are encoded zeros, whatever the window holds."""
    given = observe()
    without = ~np.asarray(given.has_sensor)
    network = make(tiny())
    before = np.asarray(network.sensor_features(given))
    network.no_sensor[...] = network.no_sensor[...] + 1.0
    after = np.asarray(network.sensor_features(given))
    np.testing.assert_array_equal(after[without], np.asarray(network.no_sensor[...])[None])
    np.testing.assert_array_equal(after[~without], before[~without])
    everywhere = np.asarray(network.sensor_features(given.replace(sensor=None, has_sensor=None)))
    np.testing.assert_array_equal(everywhere, np.asarray(network.no_sensor[...])[None].repeat(5, axis=0))
    zeros = make(tiny(no_sensor_embedding=False))
    features = np.asarray(zeros.sensor_features(given))
    silent = given.replace(sensor=jnp.zeros_like(given.sensor), has_sensor=jnp.ones(5, bool))
    np.testing.assert_allclose(
        features[without], np.asarray(zeros.sensor_features(silent))[without], atol=1e-6
    )


def test_tokens_are_told_apart_by_slot_unless_pooled_by_mean():
    given = observe().replace(vl_mask=jnp.ones((5, 5), bool))
    turned = given.replace(vl=jnp.roll(given.vl, 1, axis=1))
    for fusion in ("none", "cross_attention"):
        sample = sampler(tiny(fusion=fusion))
        assert np.abs(sample(turned) - sample(given)).max() > 1e-4
        config = tiny(fusion=fusion)
        sample = sampler(replace(config, fusion=replace(config.fusion, vl_pool="mean")))
        np.testing.assert_allclose(sample(turned), sample(given), atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_cross_attention_that_keeps_its_query_says_more_of_the_sensor_than_a_choice_of_tokens(residual):
    """Where all tokens are absent but one there is nothing to choose: only the kept query tells sensors apart."""
    given = observe()
    given = given.replace(vl_mask=jnp.zeros((5, 5), bool).at[:, 0].set(True), has_sensor=jnp.ones(5, bool))
    config = tiny(fusion="cross_attention")
    sample = sampler(replace(config, fusion=replace(config.fusion, query_residual=residual)))
    change = np.abs(sample(given.replace(sensor=-given.sensor)) - sample(given)).max(axis=(1, 2))
    assert (change > 1e-3).all() if residual else (change < 1e-6).all()


def test_attention_pooling_reads_each_slot_by_its_own_directions():
    """A random linear function of all slots together is learnt from the pooled vector; of their mean it cannot be."""
    from vla_jax.models.vl_pooling import AttentionPool

    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(600, 5, 6)).astype(np.float32)
    wanted = tokens.reshape(600, -1) @ rng.normal(size=(30, 3)).astype(np.float32)
    pool = AttentionPool(6, 5, 64, 8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    pooled = np.asarray(pool(jnp.asarray(tokens), None))
    for features, learnable in ((pooled, True), (tokens.mean(axis=1), False)):
        weights = np.linalg.lstsq(features[:400], wanted[:400], rcond=None)[0]
        share = 1 - np.var(features[400:] @ weights - wanted[400:]) / np.var(wanted[400:])
        assert (share > 0.9) == learnable


def test_more_tokens_than_slots_are_refused():
    network = make(tiny(fusion="none"))
    with pytest.raises(ValueError, match=r"6 vision-language tokens.*5"):
        network.condition(jnp.zeros((1, 6, 6)), None)


def test_without_sensor_fusion_no_encoder_exists():
    network = make(tiny(fusion="none"))
    assert network.sensor_encoder is None
    assert not any("sensor" in str(path[0]) for path, _ in nnx.to_flat_state(nnx.state(network)))
    given = observe()
    loss = network.loss(Observation(given.vl, None), jnp.zeros((5, 8, 7)), key=jax.random.key(0), train=True)
    assert loss.shape == (5,)


def test_missing_sensors_stay_out_of_the_statistics_and_zeros_are_the_references_way():
    given = observe()

    def statistics(config, sensor, has_sensor):
        network = make(config)
        quick = quick_jit(
            lambda state, *inputs: nnx.state(_encoded(nnx.merge(graphdef, state), *inputs), nnx.BatchStat)
        )
        graphdef, state = nnx.split(network)
        return jax.tree.leaves(quick(state, sensor, has_sensor))

    def _encoded(network, sensor, has_sensor):
        network.encode_sensor(sensor, has_sensor, train=True)
        return network

    present = jnp.array([0, 2, 3, 4])
    masked = statistics(tiny(), given.sensor, given.has_sensor)
    alone = statistics(tiny(), given.sensor[present], jnp.ones(4, bool))
    for a, b in zip(masked, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    config = tiny(no_sensor_embedding=False)
    config = replace(config, sensor=replace(config.sensor, masked_statistics=False))
    zeros = jnp.where(given.has_sensor[:, None, None], given.sensor, 0.0)
    for a, b in zip(
        statistics(config, given.sensor, given.has_sensor),
        statistics(config, zeros, jnp.ones(5, bool)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # A batch without any sensor changes nothing.
    before = jax.tree.leaves(nnx.state(make(tiny()), nnx.BatchStat))
    for a, b in zip(statistics(tiny(), given.sensor, jnp.zeros(5, bool)), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_per_group_are_those_of_the_groups_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 3)), jnp.float32)
    from vla_jax.models.batch_norm import BatchNorm

    def norm(groups):
        return BatchNorm(3, groups=groups, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))

    both, first = norm(2), norm(1)
    normalised = both(x, None, train=True)
    np.testing.assert_allclose(normalised[:3], first(x[:3], None, train=True), atol=1e-6)
    np.testing.assert_allclose(normalised[3:], norm(1)(x[3:], None, train=True), atol=1e-6)
    np.testing.assert_allclose(both.var[...], first.var[...], atol=1e-6)
    with pytest.raises(ValueError, match="split into 4 groups"):
        norm(4)(x, None, train=True)


def test_regression_adds_to_the_anchor_that_the_configuration_names():
    given, key = observe(), jax.random.key(0)
    actions = jnp.asarray(np.random.default_rng(1).normal(size=(5, 8, 7)), jnp.float32)
    seen = Observation(given.vl, given.vl_mask)
    losses = {}
    for anchor in ("zero", "target"):
        network = make(tiny(fusion="none", z_chunk=anchor))
        losses[anchor] = network.loss(seen, actions, key=key, train=False)
        _, delta = network.expert.decode(network.condition(given.vl, None, given.vl_mask), actions)
        expected = delta if anchor == "target" else delta - actions
        np.testing.assert_allclose(losses[anchor], jnp.square(expected).mean(axis=(1, 2)), rtol=1e-5)
    network = make(tiny(fusion="none", z_chunk="previous"))
    np.testing.assert_allclose(
        network.loss(seen.replace(previous_chunk=jnp.zeros_like(actions)), actions, key=key, train=False),
        losses["zero"],
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="previous"):
        network.loss(seen, actions, key=key, train=False)
    with pytest.raises(ValueError, match="previous"):
        network.sample(seen)
    # What the data give always is no anchor unless the configuration says so.
    network = make(tiny(fusion="none"))
    np.testing.assert_array_equal(network.sample(seen.replace(previous_chunk=actions)), network.sample(seen))


def test_rematerialisation_changes_no_gradient():
    given = observe()
    actions = jnp.ones((5, 8, 7))

    def gradient(remat):
        graphdef, params, rest = nnx.split(make(tiny(remat=remat)), nnx.Param, ...)

        def loss(params):
            network = nnx.merge(graphdef, params, rest, copy=True)
            return network.loss(given, actions, key=jax.random.key(0), train=True).mean()

        return jax.tree.leaves(quick_jit(jax.grad(loss))(params))

    for plain, recomputed in zip(gradient(False), gradient(True), strict=True):
        np.testing.assert_allclose(recomputed, plain, atol=1e-6)


def test_bfloat16_computes_about_the_same_and_keeps_float32_parameters():
    config = tiny("diffusion")
    network, given = make(config), observe()
    expected = sampler(config)(given)
    assert {
        leaf.dtype for leaf in jax.tree.leaves(nnx.state(make(replace(config, dtype="bfloat16")), nnx.Param))
    } == {jnp.dtype("float32")}
    graphdef, state = nnx.split(with_dtype(network, "bfloat16"))
    actual = quick_jit(lambda state: draw(nnx.merge(graphdef, state), given))(state)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=0.1)
    assert np.abs(actual - expected).max() > 0


def test_a_thousand_calls_compile_once():
    graphdef, state = nnx.split(make(tiny("diffusion", "none")))
    sampling = Sampling("ddim", 2)
    sample = quick_jit(
        lambda state, vl, keys: nnx.merge(graphdef, state).sample(
            Observation(vl, None), keys=keys, sampling=sampling
        )
    )
    vl = observe().vl
    for index in range(1000):
        sample(state, vl, jax.random.split(jax.random.key(index), len(vl)))
    assert sample._cache_size() == 1


@pytest.mark.parametrize("head", ["regression", "diffusion"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("recipe", ["full", "reference", "small"])
def test_every_configuration_can_be_built(head, fusion, recipe):
    config = {
        "full": lambda: PolicyConfig(
            head=head_config(head)(), vl_dim=2048, vl_slots=13, fusion=FusionConfig(strategy=fusion)
        ),
        "reference": lambda: PolicyConfig.reference(head, fusion),
        "small": lambda: PolicyConfig.small(head, vl_dim=64, vl_slots=13, fusion=fusion),
    }[recipe]()
    network = abstract_network(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert (count > 5e7) == (recipe != "small")


@pytest.mark.slow
def test_predictions_and_gradients_do_not_depend_on_the_number_of_devices():
    script = """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        import jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        from tests.vla_jax.policy.test_network import draw, make, observe, quick_jit, tiny

        assert len(jax.devices()) == 8
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        graphdef, params, rest = nnx.split(make(tiny("diffusion")), nnx.Param, ...)
        given = observe(16)
        actions = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 7)), jnp.float32)
        key = jax.random.key(0)

        def work(params, given, actions):
            def loss(params):
                network = nnx.merge(graphdef, params, rest, copy=True)
                losses = network.loss(given, actions, key=key, train=True)
                return losses.mean(), nnx.state(network, nnx.BatchStat)
            gradient, statistics = jax.grad(loss, has_aux=True)(params)
            return gradient, statistics, draw(nnx.merge(graphdef, params, rest), given, 3)

        one = quick_jit(work)(params, given, actions)
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        eight = quick_jit(work)(
            jax.device_put(params, everywhere), *jax.device_put((given, actions), spread)
        )
        assert len(eight[2].sharding.device_set) == 8
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-5)
    """
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 0, completed.stderr
