"""The reference's samples, recorded from it, for the two episodes beside this test's data."""

import hashlib
import json

import numpy as np
import pytest

from tests.paths import PARITY
from vla_jax.errors import UserError
from vla_jax.reference.samples import reference_samples

RECORDED = json.loads((PARITY / "dataset_semantics.json").read_text())
RUNS = [(kind, i) for kind in ("old", "new") for i in range(len(RECORDED[kind]))]


@pytest.mark.parametrize(("kind", "run"), RUNS)
def test_samples_equal_the_recorded_ones(kind, run):
    recorded = RECORDED[kind][run]
    samples = reference_samples(PARITY / "episodes" / RECORDED["episodes"][kind], **recorded["settings"])
    assert len(samples) == recorded["len"]
    for sample, item in zip(samples, recorded["items"], strict=True):
        for name in (
            "instruction",
            "images",
            "has_sensor",
            "cache_key",
            "vlm_idx",
            "reuse_step",
            "confidence",
        ):
            assert sample[name] == item[name], name
        assert sample["actions"].dtype == item["actions_dtype"]
        np.testing.assert_array_equal(sample["actions"], np.array(item["actions"], np.float32))
        window = RECORDED["sensor_windows"][item["sensor"]]
        assert list(sample["sensor_data"].shape) == window["shape"]
        digest = hashlib.sha256(np.ascontiguousarray(sample["sensor_data"]).tobytes()).hexdigest()
        assert digest == window["sha256_float32"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        reference_samples(tmp_path, horizon=8, vlm_reuse_count=3, sensor_window_size=65)
