from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cache.worklist import (
    ImageSource,
    count_tokens,
    make_batches,
    make_worklist,
    process_share,
    read_images,
)
from tests.feature_cache.conftest import random_image
from vla_jax.errors import UserError


def test_equal_records_are_one_item():
    image, moved = ImageSource("a.jpg", "1"), ImageSource("b.jpg", "1")
    items = make_worklist("p", [("go", [image]), ("stop", [image]), ("go", [moved]), ("go", [])])
    assert [(item.prompt, item.images) for item in items] == [
        ("go", (image,)),
        ("stop", (image,)),
        ("go", ()),
    ]


def test_the_key_depends_on_content_not_on_place():
    place_a, place_b = (make_worklist("p", [("go", [ImageSource(path, "1")])]) for path in ("a", "b"))
    assert place_a[0].key == place_b[0].key
    assert make_worklist("q", [("go", [ImageSource("a", "1")])])[0].key != place_a[0].key


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 120))
def test_batches_cover_all_within_the_budget(lengths, batch_tokens):
    lengths = np.array(lengths)
    batches = make_batches(lengths, batch_tokens)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= batch_tokens
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_missing_and_broken_images_are_all_counted(write_records, tmp_path):
    items = make_worklist("p", write_records(4))
    (tmp_path / "images/1_0.jpg").unlink()
    (tmp_path / "images/3_1.jpg").write_bytes(b"no jpeg")
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(UserError, match="2 of 6 images cannot be read") as error,
    ):
        count_tokens(items, lambda prompt, sizes: 1, threads)
    assert "1_0.jpg (No such file or directory)" in str(error.value)
    assert "3_1.jpg (UnidentifiedImageError)" in str(error.value)


def test_lengths_come_from_the_headers(write_records):
    items = make_worklist("p", write_records(4))
    with ThreadPoolExecutor(1) as threads:
        lengths = count_tokens(
            items, lambda prompt, sizes: sum(height * width for height, width in sizes), threads
        )
    np.testing.assert_array_equal(lengths, [0, 84 * 56, 2 * 56 * 56, 3 * 84 * 56])


def test_an_image_that_has_changed_is_named(write_records, tmp_path):
    (_, item) = make_worklist("p", write_records(2))
    path = tmp_path / "images/1_0.jpg"
    assert read_images(item) == [(str(path), path.read_bytes())]
    random_image(99).save(path)
    with pytest.raises(UserError, match=r"1_0\.jpg: this image has changed since the data set was prepared"):
        read_images(item)


def test_the_share_is_torchruns(monkeypatch):
    assert process_share() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process_share() == (2, 4)
