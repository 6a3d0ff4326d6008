"""The benchmarks run at a tiny size; their figures are nobody's business here."""

import json

import numpy as np
import pytest

from experiments.benchmarks import data, prepare
from experiments.benchmarks.feeding_cases import Feeding
from experiments.benchmarks.recorded_episodes import EpisodeShape, sensor_stream, write_episodes
from vla_jax.dataset.preparation import PrepareOptions
from vla_jax.dataset.preparation import prepare as pack


def run(command, *argv):
    with pytest.raises(SystemExit) as exit_:
        command.COMMAND.run([str(a) for a in argv])
    return exit_.value.code


@pytest.mark.parametrize("compressed", [False, True])
def test_made_up_episodes_are_packed_without_a_finding(compressed, tmp_path):
    shape = EpisodeShape(seconds=2.0, views=2, image_size=(32, 24), compressed=compressed)
    write_episodes(tmp_path / "s", 2, shape, seed=3)
    result = pack([str(tmp_path / "s")], tmp_path / "d", PrepareOptions())
    assert result.findings == ()
    stream = sensor_stream(1300, np.random.default_rng(3))
    first = result.dataset.episodes[0]
    # Overlapping windows: what is stored once is the stream, up to the end of the last whole window.
    assert first.sensor_stop == 650 + 116 * 5
    np.testing.assert_array_equal(result.dataset.sensor[: first.sensor_stop], stream[: first.sensor_stop])
    digests = result.dataset.array("image_digest")
    assert len(np.unique(digests, axis=0)) == len(digests) == 2 * 2 * 10


def test_prepare_is_timed_beside_the_bare_reading(tmp_path, capsys):
    out = tmp_path / "figures.json"
    options = ["--episodes", 1, "--seconds", 1.2, "--rounds", 1, "--workers", 1, "--scratch", tmp_path]
    assert run(prepare, *options, "--out", out) == 0
    results = json.loads(out.read_text())["results"]
    sides = ("bare reading", "prepare", "np.load", "decode and hash")
    cases = [(case, side) for case in ("uncompressed", "compressed") for side in sides]
    assert [(row["case"], row["side"]) for row in results] == cases
    for row in results:
        assert row["amount"] == pytest.approx(650 * 1026 * 4 * 2 / 1e6, rel=0.01)
        assert row["rate"] == pytest.approx(row["amount"] / row["median_s"])
        assert row["pictures"] == 5 * 6
    for bare, _, load, decode in (results[:4], results[4:]):
        assert bare["median_s"] == pytest.approx(load["median_s"] + decode["median_s"])
    assert results[4]["file_mb"] < results[0]["file_mb"]
    assert "vs bare reading" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert run(prepare, "--episodes", 0) == 2


def test_feeding_is_timed_beside_a_copy_and_the_reference(tmp_path, capsys):
    out = tmp_path / "figures.json"
    options = ["--sensor-lengths", 65, "--episodes", 3, "--seconds", 3, "--batch-size", 16, "--threads", 1, 2]
    options += ["--reference-workers", 1, "--opened", 3, "--measure-s", 0.05, "--scratch", tmp_path]
    assert run(data, *options, "--out", out) == 0
    figures = json.loads(out.read_text())
    assert [(rate["side"], rate["workers"]) for rate in figures["results"]] == [
        ("numpy copy", 1),
        ("host", 1),
        ("host", 2),
        ("on devices, --feed host", 1),
        ("on devices, --feed host", 2),
        ("on devices, --feed device", 1),
        ("on devices, --feed device", 2),
        ("reference", 1),
    ]
    assert all(rate["rate"] > 0 for rate in figures["results"])
    # Whole batches of 16: sensor and features in float16, five views of 2x2 cells and the text, 2048 wide.
    assert all(
        rate["mb_per_s"] > rate["rate"] * 2 * (65 * 1026 + 21 * 2048) / 1e6
        for rate in figures["results"][:-1]
    )
    assert figures["results"][-1]["mb_per_s"] is None
    assert [(row["case"], row["side"]) for row in figures["opening"]] == [
        ("3 episodes", "open"),
        ("3 episodes", "open and look for changed recordings"),
    ]
    assert figures["peak_resident_bytes"]["65"] is None or figures["peak_resident_bytes"]["65"] > 1e7
    assert "vs numpy copy" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_the_reference_side_reads_the_samples_that_are_fed(tmp_path):
    reference = pytest.importorskip("experiments.benchmarks.reference_feeding")
    workspace = Feeding(tmp_path, 65, 2, 2.0, batch_size=1).workspace
    reference.write_feature_files(workspace, pooled=True)
    dataset = workspace.dataset()
    ticks = dataset.sample_ticks("train")
    samples = reference.PerSampleFiles(reference.sample_files(workspace))
    assert len(samples) == len(ticks)
    # Window 3 ends at row 260; so does what tick 4 sees, 0.4 s into the episode.
    tick = dataset.episodes[1].tick_start + 4
    item = samples[ticks.tolist().index(tick)]
    np.testing.assert_array_equal(item["sensor"].numpy(), dataset.sensor_windows(np.array([tick]))[0])
    slots, _ = workspace.features(dataset).gather(dataset.record_index(np.array([tick])))
    assert item["vl"].shape == (2048,)
    np.testing.assert_allclose(item["vl"].numpy(), slots[0].mean(axis=0, dtype=np.float32), atol=1e-3)
