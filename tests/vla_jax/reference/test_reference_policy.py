"""Reference checkpoints in and out: layouts, inferred sizes, errors, and equality with PyTorch modules."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flax import nnx  # noqa: E402

from experiments.benchmarks import torch_heads  # noqa: E402
from vla_jax.contracts.specs import FeatureSpec  # noqa: E402
from vla_jax.dataset.statistics import action_statistics  # noqa: E402
from vla_jax.errors import UserError  # noqa: E402
from vla_jax.heads.diffusion import DiffusionConfig  # noqa: E402
from vla_jax.heads.regression import RegressionConfig  # noqa: E402
from vla_jax.models.config import FusionConfig, SensorEncoderConfig  # noqa: E402
from vla_jax.policy.artifact import save_policy  # noqa: E402
from vla_jax.policy.config import PolicyConfig  # noqa: E402
from vla_jax.policy.insertion_policy import InsertionPolicy  # noqa: E402
from vla_jax.policy.metadata import PolicyMetadata, unknown_data  # noqa: E402
from vla_jax.policy.network import PolicyNetwork, abstract_network  # noqa: E402
from vla_jax.preprocessing.config import NormalisationConfig  # noqa: E402
from vla_jax.preprocessing.normaliser import make_normaliser  # noqa: E402
from vla_jax.reference.conversion import export_checkpoint, import_checkpoint  # noqa: E402
from vla_jax.reference.options import ReferenceOptions  # noqa: E402
from vla_jax.reference.reference_policy import load_reference  # noqa: E402
from vla_jax.reference.weights import reference_weights  # noqa: E402

OPTIONS = {"nhead": 4, "sensor_nhead": 4, "sensor_temporal_length": 20, "diffusion_timesteps": 10}


SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 4}
HEADS = {
    "regression": RegressionConfig(**SIZES),
    "diffusion": DiffusionConfig(
        **SIZES, horizon_embedding=False, ddim_spacing="leading", ddpm_clip=False, steps=10
    ),
}


def small_config(head: str, fusion: str) -> PolicyConfig:
    return PolicyConfig(
        head=HEADS[head],
        vl_dim=14,
        sensor=SensorEncoderConfig(
            channels=10,
            temporal_length=20,
            hidden_dim=8,
            output_dim=12,
            num_conv_layers=3,
            num_transformer_layers=1,
            num_heads=4,
            masked_statistics=False,
        ),
        fusion=FusionConfig(strategy=fusion, vl_pool="mean", num_heads=4),
        no_sensor_embedding=False,
    )


def make_policy(model_type: str, fusion: str) -> torch_heads.Policy:
    """A PyTorch policy whose every tensor, BatchNorm's statistics included, is far from its default."""
    torch.manual_seed(0)
    policy = torch_heads.Policy(small_config(model_type, fusion))
    for tensor in policy.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.3 * torch.rand_like(tensor))
        else:
            tensor.fill_(7)
    return policy.eval()


def save(policy: torch_heads.Policy, path, layout: str) -> None:
    state = policy.state_dict()
    parts = {
        part: {name.removeprefix(part + "."): value for name, value in state.items() if name.startswith(part)}
        for part in ("sensor_encoder", "action_expert")
    }
    parts = {part: value or None for part, value in parts.items()}
    content = {
        "full": {"epoch": 3, "model_state_dict": {**state, "vl_model.embed.weight": torch.zeros(3)}, **parts},
        "per part": {"epoch": 3, **parts},
        "bare": state,
        "wrapped": {f"module.{name}": value for name, value in state.items()},
        "wrapped parts": {
            name.replace(".", ".module.", 1): value.bfloat16() if value.is_floating_point() else value
            for name, value in state.items()
        },
    }[layout]
    torch.save(content, path)


def given(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sensor": rng.normal(size=(3, 26, 10)).astype(np.float32),
        "vl": rng.normal(size=(3, 5, 14)).astype(np.float32),
        "x": rng.normal(size=(3, 8, 7)).astype(np.float32),
        "t": np.array([0, 4, 9]),
    }


@pytest.mark.parametrize(
    ("fusion", "model_type"),
    [
        ("concat", "regression"),
        ("cross_attention", "diffusion"),
        ("gated", "regression"),
        ("none", "diffusion"),
        pytest.param("concat", "diffusion", marks=pytest.mark.slow),
        pytest.param("cross_attention", "regression", marks=pytest.mark.slow),
        pytest.param("gated", "diffusion", marks=pytest.mark.slow),
        pytest.param("none", "regression", marks=pytest.mark.slow),
    ],
)
def test_import_equals_torch_and_export_loads_strictly(tmp_path, model_type, fusion):
    module = make_policy(model_type, fusion)
    save(module, tmp_path / "in.pt", "full")
    policy, _ = import_checkpoint(tmp_path / "in.pt", tmp_path / "run", ReferenceOptions(**OPTIONS))
    if fusion != "none":
        assert policy.config == small_config(model_type, fusion)
    assert policy.checkpoint.ignored == 1
    assert policy.checkpoint.epoch == 3
    data = given()
    tensors = {name: torch.from_numpy(array) for name, array in data.items()}
    with torch.no_grad():
        features = module.encode(tensors["sensor"])
        if model_type == "diffusion":
            expected = module.action_expert(tensors["x"], tensors["t"], tensors["vl"], features)
        else:
            expected = module.action_expert(tensors["vl"], tensors["x"], features)[0]
    ours = None if fusion == "none" else policy.encode_sensor(data["sensor"])
    if model_type == "diffusion":
        actual = policy.predict_noise(data["x"], data["t"], data["vl"], ours)
    else:
        actual = policy.decode(data["vl"], data["x"], ours)[0]
    np.testing.assert_allclose(actual, expected.numpy(), atol=2e-5)

    export_checkpoint(tmp_path / "run", tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    fresh = torch_heads.Policy(small_config(model_type, fusion))
    fresh.load_state_dict(written["model_state_dict"], strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
        assert fresh.state_dict()[name].dtype == tensor.dtype
    again, _ = import_checkpoint(tmp_path / "out.pt", tmp_path / "again", ReferenceOptions(**OPTIONS))
    assert again.config == policy.config
    first, second = (acted(tmp_path / run, data) for run in ("run", "again"))
    np.testing.assert_array_equal(first, second)
    assert first.std() > 0


def acted(run, data) -> np.ndarray:
    """The actions of the policy in RUN."""
    present = np.ones((len(data["vl"]), 1), bool)
    policy = InsertionPolicy.from_checkpoint(run)
    return policy.predict(data["vl"][:, :1], present, data["sensor"], present[:, 0])


@pytest.mark.parametrize(
    ("head", "fusion", "normalisation", "parts"),
    [
        ("regression", "none", NormalisationConfig(), "actions, features"),
        ("regression", "none", NormalisationConfig(actions="none"), "features"),
        ("diffusion", "concat", NormalisationConfig("min_max", "none", "none"), "actions"),
        ("diffusion", "concat", NormalisationConfig("none", "centred", "none"), "sensor"),
        ("regression", "none", NormalisationConfig("none", "centred", "none"), ""),
    ],
)
def test_a_policy_that_scales_is_not_exported(tmp_path, head, fusion, normalisation, parts):
    """Its weights alone would act by other numbers; a sensor that the network does not read does not matter."""
    config = small_config(head, fusion)
    network = PolicyNetwork(config, rngs=nnx.Rngs(0))
    statistics = {"actions": action_statistics(np.random.default_rng(0).normal(size=(9, 7)))}
    normaliser = make_normaliser(normalisation, statistics, np.full((1, 14), 0.5), np.full((1, 14), 2.0))
    metadata = PolicyMetadata(
        network=config, data=unknown_data(config), features=FeatureSpec(1, 14), normalisation=normalisation
    )
    save_policy(tmp_path / "run", network, normaliser, metadata)
    if not parts:
        assert export_checkpoint(tmp_path / "run", tmp_path / "out.pt")
        return
    with pytest.raises(UserError, match=rf"scales its {parts}, .*--recipe reference"):
        export_checkpoint(tmp_path / "run", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("layout", ["per part", "bare", "wrapped", "wrapped parts"])
def test_every_layout_is_read(tmp_path, layout):
    module = make_policy("diffusion", "concat")
    save(module, tmp_path / "in.pt", layout)
    policy = load_reference(tmp_path / "in.pt", **OPTIONS)
    assert policy.config == small_config("diffusion", "concat")
    kernel = module.state_dict()["action_expert.cond_proj.weight"]
    expected = kernel.bfloat16().float() if layout == "wrapped parts" else kernel
    np.testing.assert_array_equal(policy.network.fusion.project.kernel[...], expected.numpy().T)


def test_all_faulty_tensors_are_listed_together(tmp_path):
    state = make_policy("regression", "gated").state_dict()
    del state["action_expert.gate.0.bias"]
    del state["sensor_encoder.conv_backbone.1.running_var"]
    state["action_expert.surprise"] = torch.zeros(2)
    state["action_expert.output_head.1.weight"] = torch.zeros(7, 15)
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(UserError) as caught:
        load_reference(tmp_path / "in.pt", **OPTIONS)
    message = str(caught.value)
    for part in (
        "missing action_expert.gate.0.bias (16,)",
        "missing sensor_encoder.conv_backbone.1.running_var (8,)",
        "unexpected action_expert.surprise (2,)",
        "action_expert.output_head.1.weight has shape (7, 15), expected (7, 16)",
        "4 tensors",
        "in.pt",
    ):
        assert part in message
    assert "\n" not in message


def test_an_expert_without_its_encoder_is_called_with_features(tmp_path):
    state = make_policy("diffusion", "concat").state_dict()
    expert = {name: value for name, value in state.items() if name.startswith("action_expert")}
    torch.save(expert, tmp_path / "in.pt")
    policy = load_reference(tmp_path / "in.pt", vl_dim=14, **OPTIONS)
    assert policy.config.fusion.strategy == "concat"
    with pytest.raises(UserError, match="no sensor encoder"):
        policy.encode_sensor(given()["sensor"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable PyTorch checkpoint"),
        (b"no torch file at all", "not a readable PyTorch checkpoint"),
        ([1, 2], "not a checkpoint"),
        ({"weights": {}}, "holds no tensors of the reference"),
        ({"action_expert": {"odd": 1}}, "holds no tensors of the reference"),
    ],
)
def test_what_is_no_checkpoint_says_so(tmp_path, content, message):
    path = tmp_path / "in.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_reference(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_reference(tmp_path / "absent.pt")


@pytest.mark.parametrize("kind", ["flow", "minimal_iterative"])
def test_a_head_the_reference_does_not_have_is_not_exported(kind):
    network = abstract_network(PolicyConfig.small(kind, vl_dim=8))
    with pytest.raises(UserError, match=f"the reference has no {kind} head, only regression and diffusion"):
        reference_weights(network)


def test_a_network_the_reference_does_not_know_is_not_exported():
    config = replace(
        small_config("diffusion", "none"), head=DiffusionConfig(hidden_dim=8, num_layers=1, num_heads=1)
    )
    with pytest.raises(UserError, match=r"horizon_embedding"):
        reference_weights(PolicyNetwork(config, rngs=nnx.Rngs(0)))


def test_weights_that_would_mean_something_else_there_are_not_exported():
    """The names and shapes are the reference's; what is done with them is not."""
    made = small_config("diffusion", "cross_attention")
    others = {
        "averaged_rows": {"sensor": replace(made.sensor, averaged_rows=2)},
        "query_residual": {"fusion": replace(made.fusion, query_residual=True)},
        "clean actions predicted": {"head": replace(made.head, prediction="sample")},
    }
    reference_weights(PolicyNetwork(made, rngs=nnx.Rngs(0)))
    for name, changes in others.items():
        with pytest.raises(UserError, match=f"it has no {name};"):
            reference_weights(abstract_network(replace(made, **changes)))


def test_sampling_honours_masks_and_recorded_noise(tmp_path):
    save(make_policy("diffusion", "cross_attention"), tmp_path / "in.pt", "full")
    policy = load_reference(tmp_path / "in.pt", **OPTIONS)
    data = given()
    features = policy.encode_sensor(data["sensor"])
    noise = np.random.default_rng(1).normal(size=(9, 3, 8, 7)).astype(np.float32)
    padded = np.concatenate([data["vl"], np.full((3, 2, 14), 9, np.float32)], axis=1)
    mask = np.arange(7)[None] < np.full((3, 1), 5)
    for sampler, steps in (("ddim", 5), ("ddpm", 10)):
        plain = policy.sample(data["x"], data["vl"], features, sampler=sampler, steps=steps, noise=noise)
        masked = policy.sample(data["x"], padded, features, mask, sampler=sampler, steps=steps, noise=noise)
        np.testing.assert_allclose(masked, plain, rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))
