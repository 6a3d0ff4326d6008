"""The entry point: one list of commands, each imported when it is called, mistakes in one line."""

import re
import subprocess
import sys
import tomllib

import pytest

from experiments.commands import COMMANDS, command_module
from experiments.usage_errors import option_names
from tests.commands import REPOSITORY, error_line, run_command

HEAVY = {"jax", "jaxlib", "flax", "torch", "transformers"}


def call(*words, code="from experiments.commands import main; main()", program="/usr/bin/vla-jax"):
    """Runs the console script's function as the installed script does; returns the process and what it imported."""
    script = f"""
import atexit, sys
atexit.register(lambda: print("MODULES", *{{name.split(".")[0] for name in sys.modules}}))
sys.argv = [{program!r}, *{list(words)!r}]
{code}
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown, _, modules = done.stdout.rpartition("MODULES")
    done.stdout = shown
    return done, set(modules.split())


def test_the_list_of_commands_imports_next_to_nothing():
    done, modules = call("--help")
    assert done.returncode == 0, done.stderr
    for name, what in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert what in done.stdout
    assert not modules & (HEAVY | {"numpy", "tyro", "rich"})
    assert call()[0].stdout == done.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert listed.stdout == done.stdout


def test_the_installed_script_is_this_entry_point():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vla-jax": "experiments.commands:main"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_declares_itself_under_its_name(name):
    assert command_module(name).COMMAND.name == name


def test_every_command_is_listed():
    modules = {
        ".".join(path.relative_to(REPOSITORY / "experiments").with_suffix("").parts)
        for path in (REPOSITORY / "experiments").rglob("*.py")
        if "COMMAND = cli.Command(" in path.read_text()
    }
    assert {module.removesuffix(".__main__") for module in modules} == set(COMMANDS)


# The benchmarks time JAX and torch, and import them.
@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.startswith("benchmarks.")])
def test_help_of_a_command_imports_neither_jax_nor_torch(name):
    done, modules = call(name.replace("_", "-"), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: vla-jax {name} ")
    assert not modules & HEAVY
    # The list that mistyped options are compared with is the one that help shows.
    if name != "cache":
        shown = re.findall(r"^│ (?:-h, )?(--[\w-]+)[^,│]*(?:, (--no-[\w-]+))?", done.stdout, re.MULTILINE)
        names = option_names(command_module(name).COMMAND.arguments)
        assert {option for pair in shown for option in pair if option} == set(names)


def test_an_unknown_command_names_the_closest():
    done, modules = call("trian", "DATA")
    assert done.returncode == 2
    assert done.stderr == "error: unknown command trian; did you mean train? All commands: vla-jax --help\n"
    assert "tyro" not in modules
    assert call("qqq")[0].stderr == "error: unknown command qqq; All commands: vla-jax --help\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "--bach-size", "3"), "unknown option --bach-size; did you mean --batch-size?"),
        (("evaluate", "R", "D", "--cahce", "C"), "unknown option --cahce; did you mean --cache?"),
        (("evaluate", "R", "D", "--cache", "C"), "missing: --out PATH"),
        (("evaluate",), "missing: RUN, DATA, --cache PATH, --out PATH"),
        (("evaluate", "R", "D", "E", "--cache", "C", "--out", "O"), "unexpected argument E"),
        (("cache", "gc", "C", "--limt-gb", "3"), "unknown option --limt-gb; did you mean --limit-gb?"),
        (("cache",), "give one of stats, verify, gc, merge, import"),
        (("phantom", "OUT", "--seed", "x"), "--seed takes INT, not x"),
        (("phantom", "OUT", "--seed"), "--seed is missing its value INT"),
        (
            ("export", "D", "--backbone", "B", "--cache", "C", "--pooling", "gird"),
            "--pooling takes one of grid, mean, last, tokens, not gird; did you mean grid?",
        ),
    ],
)
def test_a_mistyped_command_line_is_one_line_with_the_closest_first(words, told):
    done, _ = call(*words)
    assert done.returncode == 2
    assert error_line(done) == f"error: {told} (vla-jax {words[0]} --help says more)"
    assert done.stderr.count("\n") == 1


def test_a_module_of_its_own_says_how_it_was_called():
    done = run_command("evaluate", "--bach-size", "3", status=2)
    assert error_line(done).endswith("(python -m experiments.evaluate --help says more)")
    assert run_command("phantom", "--help").stdout.startswith("usage: python -m experiments.phantom ")


def test_without_tyro_s_events_its_own_message_is_shown():
    without = "from experiments import usage_errors; usage_errors.events = None\n"
    done, _ = call(
        "phantom", "OUT", "--sede", "3", code=f"{without}from experiments.commands import main; main()"
    )
    assert done.returncode == 2
    assert "Unrecognized options" in done.stderr
    assert "--seed" in done.stderr
