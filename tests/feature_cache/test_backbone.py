import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_cache.backbone import _default_compute_dtype, find_backbone, load_backbone
from tests.feature_cache.conftest import random_image
from tests.feature_cache.test_processor import RECORDS, make_stock, stock_inputs
from vla_jax.errors import UserError

PROMPTS = ["insert", "insert the needle into the red marker", "x"]


def reference_mean(backbone, prompt, images):
    """The mean over all tokens by a direct call of processor and model for one sample."""
    inputs = stock_inputs(backbone.processor, prompt, images)
    with torch.inference_mode():
        return backbone.model.model(**inputs, use_cache=False).last_hidden_state[0].mean(0).numpy()


@pytest.fixture(scope="module")
def records():
    return [*RECORDS.values(), *[(prompt, [random_image(7, 84, 56)]) for prompt in PROMPTS]]


@pytest.mark.parametrize("order", [1, -1])
def test_mean_features_equal_a_direct_call_whatever_else_is_in_the_batch(
    backbone_files, backbone, records, order
):
    provenance = backbone_files.provenance(pooling="mean")
    batch = [backbone.processor.prepare(*record) for record in records[::order]]
    for record, features in zip(records[::order], backbone.encode(batch, provenance), strict=True):
        assert features.shape == (1, 64)
        np.testing.assert_allclose(features[0], reference_mean(backbone, *record), atol=1e-5)


@pytest.mark.parametrize("pooling", ["grid", "last", "tokens"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_every_pooling_gives_the_same_alone_and_in_a_batch(backbone_files, backbone, records, pooling, layer):
    provenance = backbone_files.provenance(pooling=pooling, layer=layer)
    batch = [backbone.processor.prepare(*record) for record in records]
    for record, features in zip(batch, backbone.encode(batch, provenance), strict=True):
        np.testing.assert_allclose(features, backbone.encode([record], provenance)[0], atol=1e-5)


def test_layers_are_the_models_hidden_states(backbone_files, backbone):
    record = RECORDS["three views"]
    inputs = stock_inputs(backbone.processor, *record)
    with torch.inference_mode():
        hidden = backbone.model.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2, -1, -3):
        provenance = backbone_files.provenance(pooling="tokens", layer=layer)
        (features,) = backbone.encode([backbone.processor.prepare(*record)], provenance)
        np.testing.assert_allclose(features, hidden[layer][0].numpy(), atol=1e-5)


def test_one_layer_has_one_name_and_absent_ones_are_refused(backbone_files):
    assert backbone_files.provenance(layer=2) == backbone_files.provenance(layer=-1)
    for layer in (3, -4):
        with pytest.raises(UserError, match=r"hidden states 0 \(embeddings\) to 2"):
            backbone_files.provenance(layer=layer)


def test_moving_the_backbone_changes_nothing_and_one_weight_changes_the_digest(
    tiny_path, tmp_path, backbone_files
):
    moved = shutil.copytree(tiny_path, tmp_path / "elsewhere")
    assert find_backbone(str(moved)).provenance().digest() == backbone_files.provenance().digest()
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][5] += 0.25
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert find_backbone(str(moved)).digest != backbone_files.digest


def test_size_pooling_and_layer_change_the_provenance(tiny_path, backbone_files):
    digests = {
        backbone_files.provenance().digest(),
        backbone_files.provenance(pooling="mean").digest(),
        backbone_files.provenance(layer=-2).digest(),
        backbone_files.provenance(grid=3).digest(),
        find_backbone(str(tiny_path), max_pixels=180 * 320).provenance().digest(),
    }
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors weights"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "not 'qwen2_5_vl'"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
    ],
)
def test_an_incomplete_backbone_is_one_line(tiny_path, tmp_path, damage, message):
    folder = shutil.copytree(tiny_path, tmp_path / "tiny")
    damage(folder)
    with pytest.raises(UserError, match=message):
        find_backbone(str(folder))


def test_truncated_and_missing_weights_are_refused(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, the first is model.language_model.norm"):
        load_backbone(find_backbone(str(folder)), device="cpu")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load the weights"):
        load_backbone(find_backbone(str(folder)), device="cpu")


def test_a_missing_directory_is_not_looked_for_on_a_hub(tmp_path):
    with pytest.raises(UserError, match="no such directory; give"):
        find_backbone(str(tmp_path / "missing"))


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def unreachable(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"someone/model: .*no route to host.*check the name and the network"):
        find_backbone("someone/model")


def test_a_hub_name_is_loaded_from_its_snapshot(monkeypatch, tiny_path, backbone_files):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tiny_path))
    files = find_backbone("someone/model")
    assert files.name == "someone/model"
    assert files.provenance().digest() == backbone_files.provenance().digest()


@pytest.fixture(scope="module")
def adapter_path(backbone_files, tmp_path_factory):
    import peft

    torch.manual_seed(0)
    model = load_backbone(backbone_files, device="cpu").model
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    path = tmp_path_factory.mktemp("adapter") / "lora"
    with warnings.catch_warnings():
        # peft 0.21 asks for an attribute that transformers 5.23 deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        peft.get_peft_model(model, config).save_pretrained(path)
    return path


def test_an_adapter_is_merged_and_changes_features_and_provenance(
    tiny_path, backbone_files, backbone, adapter_path
):
    files = find_backbone(str(tiny_path), adapter=str(adapter_path))
    assert files.provenance().digest() != backbone_files.provenance().digest()
    adapted = load_backbone(files, device="cpu")
    weights = load_file(adapter_path / "adapter_model.safetensors")
    name = "model.language_model.layers.1.self_attn.v_proj"
    down, up = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    scale = 8 / 2  # lora_alpha / r
    expected = backbone.model.get_submodule(name).weight + scale * up @ down
    torch.testing.assert_close(adapted.model.get_submodule(name).weight, expected)


def test_an_adapter_with_old_names_is_refused_instead_of_left_out(tiny_path, adapter_path, tmp_path):
    old = shutil.copytree(adapter_path, tmp_path / "old")
    weights = load_file(old / "adapter_model.safetensors")
    renamed = {name.replace("model.language_model.layers", "model.layers"): w for name, w in weights.items()}
    save_file(renamed, old / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"8 tensors do not fit, the first, .*model\.layers.* has no place"):
        load_backbone(find_backbone(str(tiny_path), adapter=str(old)), device="cpu")


def test_an_adapter_that_is_none_is_one_line(tiny_path, tmp_path):
    with pytest.raises(UserError, match="no LoRA adapter here"):
        find_backbone(str(tiny_path), adapter=str(tmp_path))


def test_an_adapter_of_another_width_is_one_line(tiny_path, adapter_path, tmp_path):
    other = shutil.copytree(adapter_path, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: w.repeat(2, 2) for name, w in weights.items()}, other / "adapter_model.safetensors")
    with pytest.raises(UserError, match="cannot load this LoRA adapter"):
        load_backbone(find_backbone(str(tiny_path), adapter=str(other)), device="cpu")


def test_digests_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    from feature_cache import content_digest

    file = tmp_path / "weights"
    file.write_bytes(b"one")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    first = content_digest.content_digest([file])

    def refuse(*arguments):
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(content_digest, "file_digest", refuse)
        assert content_digest.content_digest([file]) == first
    file.write_bytes(b"two")
    assert content_digest.content_digest([file]) != first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    from feature_cache.content_digest import content_digest

    file = tmp_path / "weights"
    file.write_bytes(b"one")
    status = file.stat()
    first = content_digest([file])
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_digest([file]) != first


def test_padding_gets_no_weight(backbone_files, backbone):
    """A record whose neighbour is much longer, and the other way round."""
    short = backbone.processor.prepare("a", [])
    long = backbone.processor.prepare("a " * 200, [random_image(1, 112, 112)])
    provenance = backbone_files.provenance(pooling="mean")
    (alone,) = backbone.encode([short], provenance)
    for batch, position in ([short, long], 0), ([long, short], 1):
        np.testing.assert_allclose(backbone.encode(batch, provenance)[position], alone, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_mean_features_equal_the_stock_batch_whatever_its_padding_side(
    backbone_files, backbone, records, side
):
    """The stock processor pads the batch on either side; the mean is over what its mask leaves."""
    stock = make_stock(backbone.processor)
    stock.tokenizer.padding_side = side
    texts = [
        stock.apply_chat_template(
            backbone.processor.messages(prompt, len(images)), tokenize=False, add_generation_prompt=True
        )
        for prompt, images in records
    ]
    images = [image for _, images in records for image in images]
    inputs = stock(text=texts, images=images, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    padded = mask[:, 0 if side == "left" else -1] == 0
    assert padded.sum() == len(records) - 1
    with torch.inference_mode():
        hidden = backbone.model.model(**inputs, use_cache=False).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    batch = [backbone.processor.prepare(*record) for record in records]
    features = backbone.encode(batch, backbone_files.provenance(pooling="mean"))
    np.testing.assert_allclose(np.concatenate(features), expected.numpy(), atol=1e-5)


@pytest.fixture
def refused_attention(monkeypatch):
    """Returns a set of attention implementations that `from_pretrained` refuses, and a list of those tried."""
    import transformers

    refused, tried = set(), []
    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained

    def from_pretrained(*arguments, attn_implementation, **options):
        tried.append(attn_implementation)
        if attn_implementation in refused:
            raise ImportError(f"{attn_implementation} is not here")
        return load(*arguments, attn_implementation=attn_implementation, **options)

    monkeypatch.setattr(
        transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", staticmethod(from_pretrained)
    )
    return refused, tried


def test_attention_falls_back_with_a_message(
    backbone_files, backbone, records, refused_attention, monkeypatch, caplog
):
    refused, tried = refused_attention
    monkeypatch.setattr("feature_cache.backbone._flash_attention_usable", lambda device, dtype: True)
    refused.update(("flash_attention_2", "sdpa"))
    eager = load_backbone(backbone_files, device="cpu")
    assert tried == ["flash_attention_2", "sdpa", "eager"]
    assert "attention flash_attention_2 is not available (flash_attention_2 is not here)" in caplog.text
    provenance = backbone_files.provenance(pooling="mean")
    batch = [backbone.processor.prepare(*record) for record in records]
    for ours, usual in zip(eager.encode(batch, provenance), backbone.encode(batch, provenance), strict=True):
        np.testing.assert_allclose(ours, usual, atol=1e-5)
    refused.add("eager")
    with pytest.raises(
        UserError, match="none of the attention implementations flash_attention_2, sdpa, eager"
    ):
        load_backbone(backbone_files, device="cpu")


def test_flash_attention_is_not_tried_on_a_cpu(backbone_files, refused_attention):
    load_backbone(backbone_files, device="cpu")
    assert refused_attention[1] == ["sdpa"]


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_compute_type_suits_the_device(monkeypatch, caplog, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: supported)
    assert _default_compute_dtype("cpu") == "float32"
    assert _default_compute_dtype("cuda:1") == expected
    assert ("cuda:1 does not compute in bfloat16; using float32" in caplog.text) == (not supported)


def test_importing_the_readers_imports_no_torch():
    code = (
        "import feature_cache.store, feature_cache.keys, sys; assert not {'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
