"""The heads benchmark at a size that tries it out; its figures are not looked at."""

import json

import pytest

from experiments.benchmarks import heads
from experiments.benchmarks.heads import Arguments


@pytest.mark.parametrize(
    "case",
    [
        "regression",
        "flow1",
        pytest.param("ddim", marks=pytest.mark.slow),
        pytest.param("train", marks=pytest.mark.slow),
    ],
)
def test_both_sides_agree_and_are_written_down(case, tmp_path, capsys):
    out = tmp_path / "figures.json"
    small = {
        "size": "small",
        "sensor_lengths": (65,),
        "batch_sizes": (2,),
        "train_batch_size": 2,
        "rounds": 2,
    }
    heads.main(Arguments(cases=(case,), compile_torch=False, bfloat16=False, out=out, **small))
    results = json.loads(out.read_text())["results"]
    sides = ("jax float32",) if case == "flow1" else ("torch eager", "jax float32")
    assert [(result["case"], result["side"]) for result in results] == [
        (f"{case} b2 t65", side) for side in sides
    ]
    assert all(result["rate"] > 0 and result["flops"] > 0 and result["rounds"] == 2 for result in results)
    if case in ("train", "flow1"):
        assert [result["error"] for result in results] == [None] * len(sides)
    else:
        assert results[0]["error"] == 0 < results[1]["error"] < 1e-4
    assert "vs eager" in capsys.readouterr().out
