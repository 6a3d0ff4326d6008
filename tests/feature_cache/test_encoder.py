"""Live pictures give what an export of the same bytes gave, in the slots of the policy."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_cache import encoder as encoders
from feature_cache.encoder import FeatureEncoder
from feature_cache.exporter import export
from feature_cache.store import FeatureStore
from feature_cache.worklist import make_worklist
from vla_jax.contracts.specs import FeatureSpec
from vla_jax.errors import UserError

WIDTH = 64
VIEWS = ("View1", "View2", "View3")


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, backbone):
    monkeypatch.setattr(encoders, "load_backbone", lambda files, **options: backbone)


def spec(provenance, num_slots):
    return FeatureSpec(num_slots, WIDTH, provenance)


@pytest.fixture
def exported(tmp_path, backbone_files, backbone, write_records):
    """Returns a function that exports records and gives (provenance, items, features as stored)."""

    def run(**settings):
        provenance = backbone_files.provenance(**settings)
        items = make_worklist(provenance.digest(), write_records(8))
        export(backbone_files, provenance, items, tmp_path / "cache", backbone=backbone, num_threads=1)
        store = FeatureStore.open(tmp_path / "cache", provenance.name())
        return provenance, items, store.read([item.key for item in items])

    return run


def one_step_of_float16(values):
    return np.spacing(np.abs(values).astype(np.float16)).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [{}, {"grid": 3}, {"pooling": "mean"}, {"pooling": "last", "layer": 1}, {"pooling": "tokens"}],
    ids=str,
)
def test_live_features_are_the_exported_ones(exported, tiny_path, settings):
    provenance, items, stored = exported(**settings)
    cells = provenance.grid**2 if provenance.pooling == "grid" else 0
    num_slots = 3 * cells + 1 if cells else max(map(len, stored))
    live = FeatureEncoder.open(tiny_path, spec(provenance, num_slots), VIEWS)
    for item, features in zip(items, stored, strict=True):
        paths = [Path(image.path) for image in item.images]
        # The files' bytes, their pixels and open images in turn.
        forms = (Path.read_bytes, lambda path: np.asarray(Image.open(path)), Image.open)
        images = {view: forms[i % 3](path) for i, (view, path) in enumerate(zip(VIEWS, paths, strict=False))}
        values, mask = live.encode(item.prompt, images)
        assert values.shape == (num_slots, WIDTH)
        assert values.dtype == np.float32
        assert mask.sum() == len(features)
        # A batch's sums may round otherwise than a single record's.
        difference = np.abs(values[mask] - features.astype(np.float32))
        assert (difference <= one_step_of_float16(features) + 1e-6).all()
        assert not values[~mask].any()


def test_an_absent_view_is_masked_and_the_others_keep_their_slots(tiny_path, backbone_files):
    live = FeatureEncoder.open(tiny_path, spec(backbone_files.provenance(), 13), VIEWS)
    picture = np.full((56, 56, 3), 90, np.uint8)
    values, mask = live.encode("go", {"View3": picture, "View1": picture})
    np.testing.assert_array_equal(mask, [True] * 4 + [False] * 4 + [True] * 5)
    nothing, mask = live.encode("go", {})
    np.testing.assert_array_equal(mask, [False] * 12 + [True])
    assert (nothing[-1] != values[-1]).any()


def test_the_order_of_the_views_is_the_policys(tiny_path, backbone_files):
    live = FeatureEncoder.open(tiny_path, spec(backbone_files.provenance(), 9), VIEWS[:2])
    dark, bright = (np.full((56, 56, 3), value, np.uint8) for value in (10, 240))
    one, _ = live.encode("go", {"View1": dark, "View2": bright})
    other, _ = live.encode("go", {"View2": bright, "View1": dark})
    np.testing.assert_array_equal(one, other)
    swapped, _ = live.encode("go", {"View1": bright, "View2": dark})
    assert (swapped != one).any()


def test_an_unknown_view_is_refused(tiny_path, backbone_files):
    live = FeatureEncoder.open(tiny_path, spec(backbone_files.provenance(), 13), VIEWS)
    with pytest.raises(UserError, match="view 'view1' is none of the policy's: View1, View2, View3"):
        live.encode("go", {"view1": np.zeros((56, 56, 3), np.uint8)})


def test_more_tokens_than_slots_are_refused(tiny_path, backbone_files):
    live = FeatureEncoder.open(tiny_path, spec(backbone_files.provenance(pooling="tokens"), 3), VIEWS)
    with pytest.raises(UserError, match=r"make \d+ tokens, the policy reads at most 3"):
        live.encode("go", {})


def test_views_that_do_not_fill_the_slots_are_refused(tiny_path, backbone_files):
    with pytest.raises(UserError, match=r"2 views \(View1, View2\) give 9 feature slots, the policy has 13"):
        FeatureEncoder.open(tiny_path, spec(backbone_files.provenance(), 13), VIEWS[:2])


def test_another_backbone_or_adapter_is_refused_in_one_line(tiny_path, backbone_files, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_path, other)
    config = other / "config.json"
    config.write_text(config.read_text() + "\n")
    made_by = backbone_files.provenance()
    with pytest.raises(UserError, match=r"other: does not make the policy's features: backbone is ") as error:
        FeatureEncoder.open(other, spec(made_by, 13), VIEWS)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"adapter is None, the policy's 'abc'.*--adapter DIR"):
        FeatureEncoder.open(tiny_path, spec(replace(made_by, adapter="abc"), 13), VIEWS)


def test_the_picture_size_is_the_policys_not_the_callers(tiny_path, exported, backbone_files):
    from feature_cache.backbone import find_backbone

    small = find_backbone(str(tiny_path), max_pixels=28 * 28).provenance()
    live = FeatureEncoder.open(tiny_path, spec(small, 13), VIEWS)
    assert live.spec.provenance == small
    assert small.digest() != backbone_files.provenance().digest()


@pytest.mark.parametrize("imported", [True, False])
def test_features_of_unknown_origin_are_refused(tiny_path, imported):
    from vla_jax.reference.cached_files import imported_provenance

    provenance = imported_provenance("a 3B model") if imported else None
    with pytest.raises(UserError, match="does not say which backbone"):
        FeatureEncoder.open(tiny_path, FeatureSpec(1, WIDTH, provenance), VIEWS)
