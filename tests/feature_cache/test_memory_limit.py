import types

import numpy as np
import pytest
import torch

from feature_cache.memory_limit import MemoryLimit, encode_within_memory
from vla_jax.errors import UserError


def fake_backbone(capacity):
    """A backbone whose memory holds `capacity` tokens; `.tried` collects the size of each batch it is given."""
    tried = []

    def encode(records, provenance, inputs):
        tried.append(len(records) * max(len(record.tokens) for record in records))
        if tried[-1] > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [np.full((1, 2), record.tokens[0]) for record in records]

    return types.SimpleNamespace(encode=encode, device=torch.device("cpu"), tried=tried)


def fake_records(values, length=5):
    return [types.SimpleNamespace(tokens=np.full(length, value)) for value in values]


@pytest.mark.parametrize("capacity", [5, 15, 500])
def test_batches_are_halved_until_they_fit(capacity):
    features = encode_within_memory(fake_backbone(capacity), fake_records(range(7)), None, MemoryLimit())
    np.testing.assert_array_equal([array[0, 0] for array in features], range(7))


def test_later_batches_are_divided_without_running_out_again(caplog):
    backbone, limit = fake_backbone(15), MemoryLimit()
    encode_within_memory(backbone, fake_records(range(8)), None, limit)
    assert backbone.tried == [40, 20, 10, 10, 10, 10]
    assert "8 records (40 tokens) at once; going on with 20 tokens (give --batch-tokens 20" in caplog.text
    backbone.tried.clear()
    encode_within_memory(backbone, fake_records(range(8)), None, limit)
    assert backbone.tried == [10, 10, 10, 10]


def test_a_single_record_too_large_is_one_line():
    with pytest.raises(UserError, match="single record of 5 tokens; use a smaller --image-size"):
        encode_within_memory(fake_backbone(0), fake_records([0]), None, MemoryLimit())


def test_other_errors_of_the_backbone_are_not_hidden():
    def encode(records, provenance, inputs):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        encode_within_memory(types.SimpleNamespace(encode=encode), fake_records([1, 2]), None, MemoryLimit())
