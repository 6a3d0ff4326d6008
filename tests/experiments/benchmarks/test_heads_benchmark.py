"""The heads benchmark at a size that tries it out; its figures are not looked at."""

import json

from experiments.benchmarks import heads
from experiments.benchmarks.heads import Arguments


def test_both_sides_agree_and_are_written_down(tmp_path, capsys):
    out = tmp_path / "figures.json"
    heads.main(
        Arguments(
            cases=("train", "regression", "ddim"),
            batch_sizes=(2,),
            train_batch_size=2,
            sensor_lengths=(65,),
            rounds=2,
            compile_torch=False,
            bfloat16=False,
            size="small",
            out=out,
        )
    )
    results = json.loads(out.read_text())["results"]
    assert [(result["case"], result["side"]) for result in results] == [
        (f"{case} b2 t65", side)
        for case in ("train", "regression", "ddim")
        for side in ("torch eager", "jax float32")
    ]
    assert all(result["rate"] > 0 and result["flops"] > 0 and result["rounds"] == 2 for result in results)
    assert [result["error"] is None for result in results] == [True, True, False, False, False, False]
    assert all(0 < result["error"] < 1e-4 for result in results[3::2])
    assert "vs eager" in capsys.readouterr().out
