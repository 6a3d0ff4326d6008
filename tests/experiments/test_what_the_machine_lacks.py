"""Full disks, folders that turn read-only, missing packages: one line, status 2, and what was there stays."""

import os
import subprocess
import sys

import pytest

from tests.commands import REPOSITORY, error_line, run_command
from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_training
from vla_jax.policy.checkpoints import resolve_checkpoint
from vla_jax.storage import config_json
from vla_jax.training.config import TrainConfig

FULL = "No space left on device"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("lacks"))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own; the tests that need it are left out where no disk can be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be made here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def ends_in_one_line(done, *words):
    line = error_line(done)
    for word in words:
        assert word in line
    return line


def test_prepare_on_a_full_disk(workspace, small_disk):
    done = run_command("prepare", workspace.root / "episodes", "--out", small_disk / "data", status=2)
    ends_in_one_line(done, f"cannot write to {small_disk / 'data'}", FULL, "make room")
    assert not (small_disk / "data" / "dataset.json").exists()


def test_train_on_a_full_disk_loses_no_checkpoint(workspace, small_disk):
    run = small_disk / "run"
    config = TrainConfig(
        policy=policy_config(workspace), recipe="debug", steps=3, batch_size=4, checkpoint_every=1
    )
    save_training(workspace, run, config)
    (run / "config.json").write_text(config_json.to_json(config))
    used = os.statvfs(small_disk)
    (small_disk / "fill").write_bytes(bytes(max(0, used.f_bavail * used.f_bsize - 16384)))
    done = run_command(
        "train", workspace.data, "--cache", workspace.cache, "--out", run, "--resume", status=2
    )  # fmt: skip
    ends_in_one_line(done, "cannot write", FULL)
    assert resolve_checkpoint(run).name == "0"


MISSING = [
    (command, module, "export")
    for command in ("export", "tiny_backbone", "demo")
    for module in ("torch", "transformers")
]
MISSING += [("serve", module, "serve") for module in ("websockets", "msgpack")]


@pytest.mark.parametrize(("command", "module", "extra"), MISSING)
def test_a_missing_package_is_said_before_anything_is_done(command, module, extra, tmp_path):
    words = {
        "serve": ["nowhere"],
        "export": ["nowhere", "--backbone", "b", "--cache", str(tmp_path / "c")],
        "tiny_backbone": [str(tmp_path / "b")],
        "demo": ["--out", str(tmp_path / "demo")],
    }[command]
    script = f"""
import sys

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing)
sys.argv[1:] = {[command, *words]!r}
"""
    done = subprocess.run(
        [sys.executable, "-c", script + "from experiments.commands import main; main()"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"{command} needs {module}: install it with `pip install -e '.[{extra}]'`" in error_line(done)
    assert list(tmp_path.iterdir()) == []


def test_make_asks_for_a_new_python_first_and_rebuilds_an_old_environment(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    makefile = tmp_path / "Makefile"
    makefile.write_text(makefile.read_text().replace("-m pip install", "-c pass"))
    old = tmp_path / "old"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])' \"$@\"\n"
    )
    old.chmod(0o755)

    def make(*words):
        return subprocess.run(
            ["make", "install", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    refused = make(f"PYTHON={old}")
    assert refused.returncode != 0
    assert refused.stderr.startswith(f"error: {old} is Python 3.9, and 3.11 or newer is needed")
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.symlink_to(old)
    assert make(f"PYTHON={sys.executable}").returncode == 0
    assert python.resolve() != old
    (tmp_path / ".venv" / "mark").touch()
    next((tmp_path / ".venv").glob("installed-*")).unlink()
    assert make().returncode == 0
    assert (tmp_path / ".venv" / "mark").exists()
