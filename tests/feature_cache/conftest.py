"""A tiny backbone on disk and small work lists, shared by the tests that need torch."""

import numpy as np
import pytest
from PIL import Image

from feature_cache.keys import image_digest
from feature_cache.tiny_backbone import write_tiny_backbone
from feature_cache.worklist import ImageSource


@pytest.fixture(autouse=True)
def _own_memory_of_digests(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def backbone_files(tiny_path):
    from feature_cache.backbone import find_backbone

    return find_backbone(str(tiny_path))


@pytest.fixture(scope="session")
def backbone(backbone_files):
    from feature_cache.backbone import load_backbone

    return load_backbone(backbone_files, device="cpu")


def random_image(seed, height=56, width=56):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 14, width // 14, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def write_records(tmp_path):
    """Returns a function that writes JPEGs and returns (prompt, images) pairs of varied length."""

    def write(count, folder="images"):
        (tmp_path / folder).mkdir(exist_ok=True)
        records = []
        for i in range(count):
            images = []
            for view in range(i % 4):
                path = tmp_path / folder / f"{i}_{view}.jpg"
                random_image(10 * i + view, 56 + 28 * (i % 2), 56).save(path)
                images.append(ImageSource(str(path), image_digest(path.read_bytes())))
            records.append(("insert the needle" + " now" * (i % 3) + str(i // 4), images))
        return records

    return write
