"""`vla-jax NAME …`: one program for all commands, each of which is imported when it is called."""

import importlib
import sys
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from experiments.cli import Command

COMMANDS = {
    "phantom": "writes simulated needle insertions as episodes",
    "phantom.lab": "is the lab in real time: the phantom's streams over real sockets, and an arm that obeys",
    "phantom.soak": "lets a policy act in the phantom's lab for long, and judges the run",
    "record": "writes live streams as episodes",
    "prepare": "checks recorded episodes, aligns them in time and packs them into a data set",
    "inspect": "shows what a packed data set holds",
    "export": "writes the vision-language features that a data set needs into a cache",
    "cache": "looks after a feature cache: stats, verify, gc, merge, import",
    "to_lerobot": "writes a data set, or recorded episodes, in LeRobot's format",
    "train": "trains a policy on all local devices",
    "train_residual": "trains what corrects a policy's actions at every tick by the newest sensor window",
    "evaluate": "judges a policy on recorded episodes",
    "rollout": "judges policies in closed loop in the simulated phantom",
    "serve": "answers requests for actions over the network, by openpi's protocol",
    "bundle": "writes a policy as a folder that runs with jax and numpy alone, for a robot's computer",
    "live": "lets a policy act on a robot, from live streams",
    "live_report": "shows the log of a live run on one page",
    "compare": "tabulates training runs side by side",
    "import_torch": "turns a checkpoint of the PyTorch reference into one of ours",
    "export_torch": "turns a checkpoint into one of the PyTorch reference's",
    "tiny_backbone": "writes a tiny random Qwen2.5-VL, to try things out without a model hub",
    "demo": "does the main job on simulated episodes, one command after the other",
    "benchmarks.heads": "times the policy heads beside the same in PyTorch",
    "benchmarks.training": "times training, from recorded data to updated weights, beside PyTorch",
    "benchmarks.data": "times how fast training is fed, beside the reference's way",
    "benchmarks.prepare": "times how fast episodes are packed",
    "benchmarks.lerobot": "times how fast LeRobot data sets' pictures are read, beside the lerobot package",
    "benchmarks.serving": "times a served policy with several clients, beside direct calls",
    "benchmarks.first_action": "times a policy from a fresh process to its first action",
    "benchmarks.late_features": "finds what helps policies whose features are late, in closed loop",
    "benchmarks.cache": "times the feature cache beside the reference's way",
}
"""What `python -m experiments.NAME` and `vla-jax NAME` take, in the order of a project, and what each does."""

PACKAGES = ("phantom", "phantom.lab")
"""Those that are packages of their own."""

USAGE_STATUS = 2


def main() -> NoReturn:
    """Runs the command that the first word names; without one, or with --help, lists them all."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
        sys.exit(0)
    known = name.replace("-", "_")
    if known not in COMMANDS:
        close = get_close_matches(known, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: unknown command {name}; {hint}All commands: vla-jax --help", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    sys.argv[1:] = words  # As the command finds them when it is called by itself.
    command: Command = command_module(known).COMMAND
    command.run()


def command_module(name: str) -> ModuleType:
    """Imports the module that declares a command."""
    return importlib.import_module(f"experiments.{name}" + (".__main__" if name in PACKAGES else ""))


def listing() -> str:
    """Returns all commands with what each does, and how to go on."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    usage = "usage: vla-jax COMMAND …, or python -m experiments.COMMAND …"
    return "\n".join([usage, "", *lines, "", "vla-jax COMMAND --help says what a command takes."])
