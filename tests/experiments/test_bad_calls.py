"""Every command on calls that cannot do anything: one line that says what and where, status 2, no file more or less."""

import json
import re
import shutil

import pytest

from experiments.commands import COMMANDS
from tests.calls import call_here
from tests.commands import error_line, run_command
from tests.experiments.bad_calls import BAD_CALLS
from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_training
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.storage import config_json
from vla_jax.training.config import TrainConfig

# A mistake of each kind, of the commands that take longest to start.
AS_PROCESSES = BAD_CALLS[::25]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    workspace = make_workspace(root)
    config = TrainConfig(policy=policy_config(workspace), recipe="debug")
    save_training(workspace, root / "run", config)
    (root / "run" / "config.json").write_text(config_json.to_json(config))
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    episode = next((root / "episodes").rglob("episode_0"))
    shutil.copytree(episode, root / "others" / "Other" / "episode_0")
    shutil.copytree(episode, root / "others" / "Other" / "episode_1")
    prepare([str(root / "others")], root / "other", PrepareOptions())
    (root / "file").write_text("in the way")
    (root / "key").write_text("a-key-of-many-letters")
    (root / "configs").mkdir()
    write_configs(root / "configs", config)
    write_backbone(root / "backbone")
    names = (
        "data",
        "cache",
        "run",
        "episodes",
        "other",
        "file",
        "configs",
        "backbone",
        "new",
        "nothing",
        "key",
    )
    return {name: root / name for name in names}


def write_configs(folder, config):
    plain = config_json.to_plain(config)

    def write(name, **changes):
        values = json.loads(json.dumps(plain))
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
        (folder / f"{name}.json").write_text(json.dumps(values))

    write("sound")
    write("fraction", steps=1.9)
    write("quoted", steps="2")
    write("true", steps=True)
    write("optimizer", optimizer__beta1=5, optimizer__eps=-1, optimizer__clip_norm=-1)
    write("horizon", policy__horizon=3)
    write("action_dim", policy__action_dim=9)
    write("channels", policy__sensor__channels=5)
    write("length", policy__sensor__temporal_length=10**9)
    write("width", policy__sensor__output_dim=2 * 10**9)
    write("misspelt", stpes=3)
    (folder / "list.json").write_text("[]")
    (folder / "text.json").write_text('"x"')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "broken.json").write_text("{")
    (folder / "latin.json").write_bytes(b'{"steps": "\xff"}')


def write_backbone(folder):
    from feature_cache.tiny_backbone import write_tiny_backbone

    write_tiny_backbone(folder)


def listing(root):
    return sorted(str(path) for path in root.rglob("*") if "__pycache__" not in path.parts)


def words_of(call, places):
    return [word.format(**places) for word in call.split()]


def check(done, told, before, root):
    assert done.returncode == 2, (done.stdout, done.stderr)
    line = error_line(done)
    assert re.search(told, line), line
    assert len(line) < 1000
    assert listing(root) == before


def test_the_table_is_large_and_of_every_command():
    assert len(BAD_CALLS) >= 80
    assert len({call for call, _ in BAD_CALLS}) == len(BAD_CALLS)
    called = {call.split()[0] for call, _ in BAD_CALLS}
    assert called == {name for name in COMMANDS if not name.startswith("benchmarks.")}


@pytest.mark.parametrize(("call", "told"), BAD_CALLS, ids=[call for call, _ in BAD_CALLS])
def test_a_bad_call_is_one_line_and_changes_nothing(call, told, places, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = places["data"].parent
    before = listing(root)
    check(call_here(*words_of(call, places)), told, before, root)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(("call", "told"), AS_PROCESSES, ids=[call for call, _ in AS_PROCESSES])
def test_it_is_so_in_a_process_of_its_own(call, told, places):
    in_a_process(call, told, places)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "told"), BAD_CALLS, ids=[call for call, _ in BAD_CALLS])
def test_all_of_them_are_so_in_processes(call, told, places):
    in_a_process(call, told, places)


def in_a_process(call, told, places):
    root = places["data"].parent
    before = listing(root)
    check(run_command(*words_of(call, places), status=2), told, before, root)
