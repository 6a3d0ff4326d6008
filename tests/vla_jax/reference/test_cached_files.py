import pickle

import numpy as np
import pytest
import torch

from feature_cache.keys import record_key
from feature_cache.store import FeatureStore
from vla_jax.errors import UserError
from vla_jax.reference.cached_files import (
    ImportedRecord,
    import_features,
    imported_provenance,
    reference_files,
)

PROVENANCE = imported_provenance("a 3B model")
WIDTH = 5


def tensor(i):
    return torch.from_numpy(np.random.default_rng(i).normal(size=(1, 1, WIDTH)).astype(np.float16))


def record(path):
    return ImportedRecord(path, record_key(PROVENANCE.digest(), path.name, []), f"prompt of {path.name}")


def write(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        torch.save(content, folder / name)
    return [record(folder / name) for name in contents]


def read(cache, records):
    return FeatureStore.open(cache, PROVENANCE.name()).read([entry.key for entry in records])


def test_values_are_kept_to_the_bit_and_a_second_import_adds_what_is_new(tmp_path):
    contents = {f"{i}.pt": tensor(i) for i in range(4)}
    records = write(tmp_path / "reference", contents)
    first = import_features(tmp_path / "cache", PROVENANCE, records[:3])
    assert (first.num_written, first.num_present, first.unusable) == (3, 0, {})
    second = import_features(tmp_path / "cache", PROVENANCE, records)
    assert (second.num_written, second.num_present) == (1, 3)
    for content, stored in zip(contents.values(), read(tmp_path / "cache", records), strict=True):
        np.testing.assert_array_equal(stored, content[0].numpy())


class Hostile:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_cannot_be_used_are_told_by_reason_and_none_is_executed(tmp_path):
    contents = {
        "good.pt": tensor(0),
        "also_good.pt": tensor(1).float(),
        "state.pt": {"a": tensor(0)},
        "flat.pt": tensor(0)[0],
        "two.pt": tensor(0).repeat(1, 2, 1),
        "empty.pt": tensor(0)[..., :0],
        "whole.pt": torch.zeros(1, 1, WIDTH, dtype=torch.int32),
        "sparse.pt": tensor(0).float().to_sparse(),
        "nan.pt": torch.full((1, 1, WIDTH), torch.nan),
        "large.pt": torch.full((1, 1, WIDTH), 1e6),
        "wide.pt": torch.zeros(1, 1, WIDTH + 1),
        "hostile.pt": Hostile(tmp_path / "harm"),
    }
    records = write(tmp_path, contents)
    for name, data in {
        "text.pt": b"not a torch file",
        "none.pt": b"",
        "pickle.pt": pickle.dumps(Hostile(tmp_path / "harm")),
        "short.pt": (tmp_path / "good.pt").read_bytes()[:-200],
    }.items():
        (tmp_path / name).write_bytes(data)
        records.append(record(tmp_path / name))
    summary = import_features(tmp_path / "cache", PROVENANCE, records)
    assert summary.num_written == 2
    assert summary.unusable == {
        "without a tensor of shape (1, 1, V) of floating-point numbers": [
            "state.pt", "flat.pt", "two.pt", "empty.pt", "whole.pt", "sparse.pt",
        ],
        "with values that are not finite in float16": ["nan.pt", "large.pt"],
        "unreadable": ["hostile.pt", "text.pt", "none.pt", "pickle.pt", "short.pt"],
        "of another width than most": ["wide.pt"],
    }  # fmt: skip
    assert not (tmp_path / "harm").exists()


def test_other_features_under_one_name_are_refused(tmp_path):
    records = write(tmp_path / "reference", {"0.pt": tensor(0), "1.pt": tensor(1)})
    import_features(tmp_path / "cache", PROVENANCE, records)
    write(tmp_path / "reference", {"1.pt": tensor(2)})
    with pytest.raises(
        UserError, match=r"1\.pt: .* holds other features of the same pictures .*another --backbone"
    ):
        import_features(tmp_path / "cache", PROVENANCE, records)
    write(tmp_path / "reference", {"0.pt": torch.zeros(1, 1, 3), "1.pt": torch.zeros(1, 1, 3)})
    with pytest.raises(UserError, match="width 5, the files have 3; give these another --backbone"):
        import_features(tmp_path / "cache", PROVENANCE, records)
    np.testing.assert_array_equal(read(tmp_path / "cache", records)[1], tensor(1)[0].numpy())


def test_nothing_usable_writes_nothing(tmp_path):
    records = write(tmp_path / "reference", {"0.pt": torch.zeros(2)})
    assert import_features(tmp_path / "cache", PROVENANCE, records).num_written == 0
    assert not (tmp_path / "cache").exists()


def test_a_directory_without_files_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        reference_files(tmp_path / "missing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no \.pt files"):
        reference_files(tmp_path)
