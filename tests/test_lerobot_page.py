"""The commands that docs/lerobot.md shows, as they stand there."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.commands import REPOSITORY
from tests.pages import fenced_blocks
from vla_jax.dataset.packed_dataset import PackedDataset

PAGE = REPOSITORY / "docs" / "lerobot.md"
# What the console script does.
PROGRAM = "import sys; sys.argv[0] = 'vla-jax'; from experiments.commands import main; main()"


def commands(section: str) -> list[list[str]]:
    """Returns the words of each `vla-jax …` line of a section, without the program's name."""
    blocks = [block for block in fenced_blocks(PAGE, "") if block.section == section]
    lines = [line for block in blocks for line in block.text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vla-jax ")]


def run(folder, words) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    return tmp_path


def shown(section: str, wanted: str) -> str:
    """Returns what a section shows of a command's output: the block that has some words."""
    (found,) = (
        block.text
        for block in fenced_blocks(PAGE, "text")
        if block.section == section and wanted in block.text
    )
    return found


def test_both_directions(folder):
    (into,), (changes,), (out, again) = commands("In"), commands("Actions from poses"), commands("Out")
    told = run(folder, into)
    for line in shown("In", "taken from").splitlines():
        assert " ".join(line.split()) in " ".join(told.split())
    told = run(folder, changes)
    for line in shown("Actions from poses", "actions").splitlines():
        assert " ".join(line.split()) in " ".join(told.split())
    assert run(folder, out) == shown("Out", "PUBLISHED") + "\n"
    run(folder, again)
    before, after = (PackedDataset.open(folder / name) for name in ("DATA", "AGAIN"))
    np.testing.assert_array_equal(before.ticks.delta, after.ticks.delta)
    assert (
        before.spec.actions.units == after.spec.actions.units == ("mm", "mm", "mm", "deg", "deg", "deg", "")
    )


@pytest.mark.slow
def test_the_shipped_set_goes_all_the_way(folder):
    (into,) = commands("In")
    for words in (into, *commands("On")):
        run(folder, words)
    assert (folder / "REPORT/report.html").is_file()
