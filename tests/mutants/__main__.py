"""`python -m tests.mutants [WORD …]`: makes each wrong change in a copy of the tree, and runs the tests that notice it.

Prints every mutant with its fate and ends with status 1 if one survives, or no longer fits the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TREES = ("vla_jax", "feature_cache", "experiments", "tests")
FILES = ("pyproject.toml",)
SECONDS = 300
PASSED, FAILED = 0, 1  # pytest's exit statuses; others mean that the tests did not run


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only mutants with one of them in name or file"
    )
    words = parser.parse_args().words
    chosen = [m for m in MUTANTS if not words or any(word in m.name or word in m.file for word in words)]
    if not chosen:
        parser.error(f"no mutant has {' or '.join(words)} in its name or file")
    fates: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "tree"
        _copy_tree(copy)
        caught_by = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        print(f"{len(chosen)} mutants; first their tests on the code as it is", flush=True)
        status, _, said = _run(copy, caught_by, SECONDS + 30 * len(caught_by))
        if status != PASSED:
            print(said)
            print(f"pytest ends with status {status} without any mutant: mend that first")
            return 1
        for number, mutant in enumerate(chosen, 1):
            fate, seconds = _try(copy, mutant)
            fates.setdefault(fate, []).append(f"{mutant.name} ({mutant.file})")
            print(f"{number:3} {fate:8} {seconds:5.1f} s  {mutant.name}", flush=True)
    print(", ".join(f"{len(names)} {fate}" for fate, names in sorted(fates.items())))
    bad = [f"{fate}: {name}" for fate, names in fates.items() if fate != "killed" for name in names]
    print("\n".join(bad))
    return 1 if bad else 0


def _copy_tree(copy: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in TREES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)


def _try(copy: Path, mutant: Mutant) -> tuple[str, float]:
    """Returns a mutant's fate and how long its tests took; the copy is as before."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return "misfit", 0.0
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, seconds, said = _run(copy, mutant.tests, SECONDS)
    finally:
        path.write_text(text, encoding="utf-8")
    if status not in (PASSED, FAILED):
        print(said)
        return "broken", seconds
    return "survived" if status == PASSED else "killed", seconds


def _run(copy: Path, tests: Sequence[str], limit: float) -> tuple[int, float, str]:
    """Runs tests in the copy; returns pytest's status, the seconds it took and the end of what it said."""
    # Without byte code: a mutant and the original can have the same size and time, and would be taken for each other.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(copy.parent / "compiled"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return FAILED, time.monotonic() - began, "ran too long"
    return done.returncode, time.monotonic() - began, (done.stdout + done.stderr)[-2000:]


if __name__ == "__main__":
    sys.exit(main())
