import numpy as np
import pytest
import torch

from feature_cache.tiny_backbone import write_tiny_backbone
from vla_jax.errors import UserError


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_seed_decides_every_byte(tiny_path, tmp_path):
    state = torch.random.get_rng_state()
    again = write_tiny_backbone(tmp_path / "again", seed=0)
    other = write_tiny_backbone(tmp_path / "other", seed=1)
    assert files(again) == files(tiny_path)
    assert files(other).keys() == files(tiny_path).keys()
    assert files(other)["model.safetensors"] != files(tiny_path)["model.safetensors"]
    torch.testing.assert_close(torch.random.get_rng_state(), state)


def test_the_stock_classes_load_it(tiny_path):
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    tokens = tokenizer("<|vision_start|><|image_pad|>needle")["input_ids"]
    assert tokens[:2] == [model.config.vision_start_token_id, model.config.image_token_id]
    assert max(tokens) < model.config.text_config.vocab_size
    for text in ("Insert the needle!", "größer 针\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_older_backbone_is_replaced_and_anything_else_kept(tmp_path):
    out = tmp_path / "tiny"
    write_tiny_backbone(out, seed=1)
    write_tiny_backbone(out, seed=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("…")
    with pytest.raises(UserError, match="is no backbone"):
        write_tiny_backbone(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "tiny"]


def test_cells_of_an_image_tell_where_a_marker_is_and_their_mean_hardly_does(backbone_files, backbone):
    """The reason for grid pooling: linear read-out of a disc's place, on discs that were not fitted."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    places = rng.uniform(-30, 30, (240, 2))
    records = []
    for x, y in places:
        image = Image.new("RGB", (112, 112), (150, 140, 130))
        ImageDraw.Draw(image).ellipse([x + 45, y + 45, x + 67, y + 67], fill=(200, 40, 40))
        records.append(backbone.processor.prepare("insert", [image]))
    scores = {}
    for pooling in ("grid", "mean"):
        provenance = backbone_files.provenance(pooling=pooling)
        features = np.array([slots.ravel() for slots in backbone.encode(records, provenance)], np.float64)
        scores[pooling] = ridge_score(features, places, num_fitted=180)
    assert scores["grid"] > 0.8
    assert scores["grid"] > scores["mean"] + 0.2


def ridge_score(features, targets, *, num_fitted):
    """R² of a ridge regression on the rows that were not fitted."""
    features = (features - features[:num_fitted].mean(0)) / (features[:num_fitted].std(0) + 1e-6)
    fitted, unseen = features[:num_fitted], features[num_fitted:]
    mean = targets[:num_fitted].mean(0)
    weights = np.linalg.solve(
        fitted.T @ fitted + 10 * np.eye(features.shape[1]), fitted.T @ (targets[:num_fitted] - mean)
    )
    error = targets[num_fitted:] - mean - unseen @ weights
    return 1 - (error**2).sum() / ((targets[num_fitted:] - targets[num_fitted:].mean(0)) ** 2).sum()
