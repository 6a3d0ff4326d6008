import dataclasses

import numpy as np
import pytest

from experiments import prepare
from experiments.option_groups import given_in_groups, group_of
from experiments.prepare import COMMAND, SETTINGS
from tests.vla_jax.recordings.recorded_episodes import write_data_set, write_windows_episode
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.recordings.registry import readers
from vla_jax.training.settings import replaced


def run(*argv):
    with pytest.raises(SystemExit) as exit_:
        prepare.COMMAND.run([str(a) for a in argv])
    return exit_.value.code


@pytest.fixture
def source(tmp_path):
    return write_data_set(tmp_path / "source", 4, seconds=1.0)


def test_packs_and_summarises(source, tmp_path, capsys):
    assert run(source, "--out", tmp_path / "d", "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "4 episodes, " in printed
    assert "experiments.export" in printed
    assert len(PackedDataset.open(tmp_path / "d").episodes) == 4
    assert run(source, "--out", tmp_path / "d", "--workers", 1) == 0
    assert "4 taken over unread" in capsys.readouterr().out


def test_faults_are_listed_and_strict_refuses(source, tmp_path, capsys):
    np.savez(
        source / "Task_1" / "episode_001" / "sensor_data.npz",
        data=np.zeros((2, 65, 7)),
        timestamps=[1.0, 2.0],
    )
    assert run(source, "--out", tmp_path / "d", "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "(2, 65, 7)" in printed
    assert "1 faulty episode(s) left out" in printed
    assert run(source, "--out", tmp_path / "e", "--strict") == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: --strict refuses faulty episodes: 1 of 4")
    )


def test_what_a_set_lacks_is_said(tmp_path, capsys):
    write_windows_episode(tmp_path / "s/t/e", views=(), has_sensor=False)
    assert run(tmp_path / "s", "--out", tmp_path / "d") == 2
    printed = capsys.readouterr()
    assert "images, sensor" in printed.out
    assert "no samples: no episode has images; there is nothing to export or to train on" in printed.err
    # It can be looked at.
    assert len(PackedDataset.open(tmp_path / "d").episodes) == 1


def test_the_same_fault_of_many_episodes_is_one_row(tmp_path, capsys):
    write_data_set(tmp_path / "s", 4, seconds=1.0)
    for folder in sorted((tmp_path / "s").rglob("episode_*"))[:3]:
        (folder / "robot_states.csv").write_text("")
    assert run(tmp_path / "s", "--out", tmp_path / "d", "--workers", 1) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert printed.count("robot_states.csv: is empty") == 1
    assert "3 episodes, the first:" in printed


def test_what_concerns_the_whole_set_is_said(source, tmp_path, capsys):
    """Windows that span different times are mixed; held-out episodes are chosen anew."""
    write_legacy_episode(tmp_path / "old" / "Task_2" / "recv_1")
    out = tmp_path / "d"
    assert run(source, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "windows of 65 rows" not in printed
    assert "chosen anew" not in printed
    assert run(source, tmp_path / "old", "--out", out, "--seed", 1, "--weight", "windows=3") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "windows of 65 rows span 6.5 s in legacy episodes, 0.1 s in windows episodes" in printed
    assert "chosen anew; before they were those of --val-fraction 0.2 --seed 0" in printed
    assert {(e.format, e.weight) for e in PackedDataset.open(out).episodes} == {
        ("legacy", 1.0),
        ("windows", 3.0),
    }


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_user_mistakes_are_one_line_and_status_2(source, tmp_path, capsys):
    assert run(tmp_path / "absent", "--out", tmp_path / "d") == 2
    assert last_error(capsys).endswith("no such folder; give a folder that holds recorded episodes")
    assert run("--out", tmp_path / "d") == 2
    assert "no source given" in last_error(capsys)
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--out", tmp_path / "d") == 2
    assert "holds no episodes" in last_error(capsys)
    assert run(source, "--out", tmp_path / "d", "--action-hz", 0) == 2
    assert "--action-hz 0 is impossible" in last_error(capsys)
    assert not (tmp_path / "d").exists()


def test_a_rate_above_the_poses_names_the_right_one(tmp_path, capsys):
    write_windows_episode(tmp_path / "s/t/e", robot_hz=5, seconds=4, has_sensor=False)
    assert run(tmp_path / "s", "--out", tmp_path / "d") == 2
    assert last_error(capsys).endswith("use --action-hz 5")
    assert run(tmp_path / "s", "--out", tmp_path / "d", "--action-hz", 5) == 0
    assert len(PackedDataset.open(tmp_path / "d").ticks) == 20


def test_weights_and_prompts_are_given_by_name(source, tmp_path, capsys):
    out = tmp_path / "d"
    options = ["--weight", "Task_0=3", "--weight", "Task_1=0.5", "--prompt", "Task_1=insert = slowly"]
    assert run(source, "--out", out, *options) == 0
    printed = capsys.readouterr().out
    assert "insert = slowly" in printed
    assert [(e.weight, e.instruction) for e in PackedDataset.open(out).episodes] == [
        *[(3.0, "insert")] * 2,
        *[(0.5, "insert = slowly")] * 2,
    ]
    for wrong, message in (
        (["--weight", "Task_0"], "--weight 'Task_0' is not NAME=VALUE"),
        (["--weight", "Task_0=x"], "--weight Task_0=x is no number"),
        (["--weight", "Task_0=0"], "--weight Task_0=0 is impossible"),
        (["--weight", "Task_0=1", "--weight", "Task_0=2"], "--weight Task_0 is given twice"),
        (["--prompt", "Task_7=x"], "did you mean Task_1?"),
    ):
        assert run(source, "--out", tmp_path / "e", *wrong) == 2
        assert message in last_error(capsys)
    assert not (tmp_path / "e").exists()


def test_every_option_is_a_documented_field(capsys):
    parsed = COMMAND.parse(["SOURCE", "--out", "D", "--match-limit-ms", "2.5", "--views", "b", "a"])
    assert group_of(parsed.readers, "capture").match_limit_ms == 2.5
    # What is not given is as in Python.
    assert replaced(
        PrepareOptions(), given_in_groups(parsed.settings, SETTINGS) | {"episode.views": None}
    ) == PrepareOptions(episode=EpisodeOptions())
    with pytest.raises(SystemExit, match="0"):
        COMMAND.run(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--views VIEW [VIEW …] Camera views to keep; all by default. (default: None)" in shown
    own = [entry.name for reader in readers() for entry in dataclasses.fields(reader.options)]
    for title in (*SETTINGS, "source", "legacy", "capture", "lerobot"):
        assert f" {title} options " in shown
    for option in (*(option for group in SETTINGS.values() for option in group), *own):
        assert f"--{option.replace('_', '-')} " in shown.replace(",", " ")


def test_a_reader_s_own_option_reaches_it(tmp_path):
    write_data_set(tmp_path / "s", 1, seconds=1.0)
    data = tmp_path / "d"
    assert run(tmp_path / "s", "--out", data, "--match-limit-ms", 2.5) == 0
    assert PackedDataset.open(data).index["episode_options"]["readers"] == {
        "capture": {"match_limit_ms": 2.5}
    }
