"""What a policy acted on is what `prepare` makes of the recording of it: the lab, live and its backbone are real."""

import json
import os
import signal

import numpy as np

from experiments.live import Arguments, main
from tests.commands import start_command
from tests.vla_jax.live.live_policies import PROMPT, write_lab_policy
from tests.vla_jax.live.small_lab import free_ports, port_options
from vla_jax.data import EpisodeOptions, PrepareOptions, prepare
from vla_jax.live.limit_options import LimitOptions
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.recordings.windows import WindowsReader

SAMPLES = 25
TOLERANCE_S = 0.005


def act(tmp_path, monkeypatch):
    """Acts in the lab until so many predictions were made; returns what they were made on, in order."""
    acted_on, predict = [], InsertionPolicy.predict

    def noting(policy, vl, vl_mask, sensor, has_sensor, *arguments, **named):
        acted_on.append(sensor[0].copy())
        if len(acted_on) == SAMPLES:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(policy, vl, vl_mask, sensor, has_sensor, *arguments, **named)

    write_lab_policy(tmp_path / "run", tmp_path / "backbone")
    ports = free_ports()
    lab = start_command(
        "phantom.lab", tmp_path / "lab", "--episodes", 20, "--demonstrator", "--clock-offset", 3, "--clock-drift", 100,
        "--pause", 0.5, *port_options(ports),
    )  # fmt: skip
    try:
        monkeypatch.setattr(InsertionPolicy, "predict", noting)
        status = main(
            Arguments(
                tmp_path / "run",
                str(tmp_path / "backbone"),
                PROMPT,
                log=tmp_path / "log",
                record=tmp_path / "recorded",
                seconds=300.0,
                wait=300.0,
                ports=ports,
                # A busy machine makes everything old.
                limits=LimitOptions(
                    state_age=5.0, sensor_age=5.0, camera_gap=5.0, feature_age=60.0, stop_after=300.0
                ),
            )
        )
    finally:
        lab.kill()
        lab.communicate()
    assert status == 0, "a busy machine did not come to it"
    return acted_on


def test_the_samples_that_were_acted_on_are_those_of_the_recording(tmp_path, monkeypatch):
    acted_on = act(tmp_path, monkeypatch)
    lines = [json.loads(line) for line in (tmp_path / "log" / "ticks.jsonl").read_text().splitlines()]
    ticks = [line for line in lines if line["kind"] == "tick" and line["action_prediction_time"] is not None]
    assert len(ticks) == len(acted_on) >= SAMPLES

    options = PrepareOptions(episode=EpisodeOptions(sensor_dtype="float32"))
    dataset = prepare([str(tmp_path / "recorded")], tmp_path / "data", options).dataset
    recordings = [WindowsReader().read(dataset.folder(i)) for i in range(len(dataset.raw_episodes))]
    row_times = np.concatenate([recording.sensor.end_times for recording in recordings])
    stream = np.asarray(dataset.sensor)
    assert len(row_times) == len(stream)
    row_of = {row.tobytes(): number for number, row in enumerate(stream)}
    assert len(row_of) == len(stream), "rows differ from each other"
    poses = np.concatenate([recording.state for recording in recordings])
    pose_times = np.concatenate([recording.times for recording in recordings])
    pictures = {view: [] for view in ("View1", "View2", "View3")}
    for episode in range(len(recordings)):
        for view, times in dataset.image_times(episode).items():
            pictures[view].extend(times)

    # A recording knows how far the clocks are apart at its end; on a busy machine it takes a while to be known so well.
    apart = {name: [tick["clock_s"][name] for tick in ticks] for name in ("sensor", "state")}
    within = {name: TOLERANCE_S + max(values) - min(values) for name, values in apart.items()}
    for tick, window in zip(ticks, acted_on, strict=True):
        moment, age_s = tick["timestamp"], {name: age / 1e3 for name, age in tick["age_ms"].items()}
        newest = row_of[window[-1].tobytes()]
        whole = stream[max(0, newest - len(window) + 1) : newest + 1]
        # Where the recording begins, the first row stands for those before it in both.
        np.testing.assert_array_equal(window[len(window) - len(whole) :], whole)
        assert abs(moment - row_times[newest] - age_s["sensor"]) < within["sensor"]
        near = np.abs(pose_times - (moment - age_s["state"])) < within["state"]
        assert np.isclose(poses[near], tick["pose"], rtol=0, atol=1e-5).all(axis=1).any()
        for view, times in pictures.items():
            assert np.abs(np.array(times) - (moment - age_s[view])).min() < TOLERANCE_S
