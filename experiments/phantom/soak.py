"""`python -m experiments.phantom.soak RUN --backbone DIR --out DIR`: a policy in the phantom's lab for long, judged."""

import contextlib
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import cli
from experiments.acting import Acting
from experiments.console import make_console
from experiments.phantom.lab.weather import Weather, check_weather
from experiments.phantom.scenario_seeds import check_scenarios
from vla_jax.errors import UserError

DESCRIPTION = """Lets a policy act in the phantom's lab, both in processes of their own over real sockets, and says what
the run was like: rates and lost rows, missed ticks, jitter, latency from sensor to command, memory over time, ages
beside the lab's own truth, insertions that succeeded. With --episodes, `rollout` does the same insertions with features
as late as they were.

Writes OUT/lab, OUT/log, OUT/rollout and OUT/soak.json. See docs/robot.md."""

ENDING_S = 60.0


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or a checkpoint in it."""
    backbone: str
    """What the policy's features were exported with."""
    out: Path
    """Directory for everything; it must not hold a run already."""
    minutes: float | None = None
    """Go on for so long, however many insertions that are; 10 where --episodes is not given either."""
    episodes: int | None = None
    """Do so many insertions, and compare with `rollout`."""
    seed: int = 1
    """Of the scenarios."""
    marker: str = "Red"
    """Colour of their markers, which the prompt names."""
    checkpoint: str = "latest"
    """Which checkpoint of a training output directory."""
    acting: Annotated[Acting, tyro.conf.arg(name="")] = field(default_factory=Acting)
    weather: Annotated[Weather, tyro.conf.arg(name="")] = field(default_factory=Weather)


def main(arguments: Arguments) -> int | None:
    """Runs lab and policy, and the roll-out; prints what came of them. Returns 1 where a process failed."""
    from experiments.phantom.lab.run_check import check_run
    from vla_jax.reporting.evaluation_report import make_report_directory
    from vla_jax.storage.replacing import replace_text, writing_to

    _check(arguments)
    make_report_directory(arguments.out)
    console = make_console()
    statuses = {"lab and live": _act(arguments)}
    if not (arguments.out / "log" / "summary.json").exists():
        raise UserError(f"live ended before it acted: {_last_line(arguments.out / 'live.txt')}")
    found = check_run(arguments.out / "lab", arguments.out / "log")
    if arguments.episodes is not None and found["features_age_ms"] is not None:
        statuses["rollout"] = _roll_out(arguments, found)
        found["rollout"] = _rollout_success(arguments.out / "rollout")
    with writing_to(arguments.out):
        replace_text(arguments.out / "soak.json", json.dumps(found, indent=2) + "\n")
    for line in lines(found):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"all of it: {arguments.out / 'soak.json'}", soft_wrap=True, markup=False)
    return 1 if any(statuses.values()) else None


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what was found, for people."""
    yield f"{found['seconds']:.0f} s, {found['episodes']} insertions; ended: {found['ended']}"
    for stream, counts in found["streams"].items():
        rows = f", {counts['rows']} rows, {counts['rows_lost']} lost" if "rows" in counts else ""
        yield f"{stream}: {counts['received']} of {counts['sent']} messages{rows}"
    yield f"ticks: {found['missed']} of {found['ticks'] + found['missed']} missed ({found['missed_share']:.3%})"
    for name, of_name in (
        ("tick late", found["late_ms"]),
        ("sensor to command", found["sensor_to_command_ms"]),
        ("features old", found["features_age_ms"]),
    ):
        if of_name is not None:
            yield f"{name}: p50 {of_name['p50']:.1f}, p99 {of_name['p99']:.1f}, most {of_name['max']:.1f} ms"
    memory = found["memory_mb"]
    if memory is not None:
        yield (
            f"memory of live: {memory['after_a_minute']:.1f} MB after a minute, then {memory['lowest']:.1f} to "
            f"{memory['highest']:.1f}"
        )
    for name, age in found["ages"].items():
        if age is not None:
            settled = age["within_when_settled"]
            of_settled = "" if settled is None else f", {settled:.2%} from 10 s on"
            yield (
                f"age of {name}: {age['within']:.2%} of {age['ticks']} ticks right within 5 ms{of_settled} "
                f"(p1 {age['p1_ms']:+.1f}, p99 {age['p99_ms']:+.1f}, most {age['largest_ms']:.1f} ms), "
                f"{age['unknown']} unknown, newer ones overlooked in {age['overlooked']:.2%}"
            )
    if found["success"] is not None:
        yield f"success in the lab: {_interval(found['success'])}"
    if found.get("rollout") is not None:
        yield f"success in rollout, the same scenarios: {_interval(found['rollout'])}"
    if found["interventions"]:
        each = ", ".join(f"{reason} {count}" for reason, count in found["interventions"].items())
        yield f"interventions, in ticks: {each}"


def _act(arguments: Arguments) -> int:
    """Runs lab and live until one has done what was asked; returns the worse exit status."""
    out, ports = arguments.out, _port_words()
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    if seconds is None and arguments.episodes is None:
        seconds = 600.0
    # For a time that is up sooner: no insertion takes less than two seconds.
    episodes = arguments.episodes or math.ceil((seconds or 0.0) / 2)
    lab = [
        "phantom.lab", out / "lab", "--episodes", episodes, "--seed", arguments.seed, "--marker", arguments.marker,
        *ports, *_words(arguments.weather),
    ]  # fmt: skip
    live = [
        "live", arguments.run, "--backbone", arguments.backbone, "--checkpoint", arguments.checkpoint,
        "--prompt", f"Insert the needle at the {arguments.marker.lower()} point", "--log", out / "log",
        "--bind", "127.0.0.1", *ports, *_words(arguments.acting),
        *(["--episodes", arguments.episodes] if arguments.episodes is not None else []),
        *(["--seconds", seconds] if seconds is not None else []),
    ]  # fmt: skip
    with _process(lab, out / "lab.txt") as lab_process, _process(live, out / "live.txt") as live_process:
        while live_process.poll() is None and lab_process.poll() is None:
            time.sleep(0.2)
        # The end of the lab's last insertion is the end of live's last episode.
        status = _end_of(live_process)
        if arguments.episodes is None or status:
            lab_process.terminate()
        return max(status, _end_of(lab_process), key=abs)


def _roll_out(arguments: Arguments, found: Mapping[str, Any]) -> int:
    """Does the same insertions in the simulator, with features as late as they were; returns the exit status."""
    # When they were new: that they are used for some ticks is so in both.
    age_ms = found["features_age_ms"]["p10"]
    words = [
        "rollout", arguments.run, "--backbone", arguments.backbone, "--checkpoint", arguments.checkpoint,
        "--out", arguments.out / "rollout", "--episodes", arguments.episodes, "--seed", arguments.seed,
        "--marker", arguments.marker, "--feature-latency", f"{age_ms:.0f}ms", *_words(arguments.acting),
    ]  # fmt: skip
    with _process(words, arguments.out / "rollout.txt") as process:
        return process.wait()


def _rollout_success(report: Path) -> dict[str, float] | None:
    try:
        (run,) = json.loads((report / "rollout.json").read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError):
        return None
    return {name: run["success"][name] for name in ("rate", "low", "high")}


@contextlib.contextmanager
def _process(words: Sequence[object], output: Path) -> Iterator[subprocess.Popen]:
    """Runs a command of ours meanwhile; ends it where we are ended."""
    name, *rest = words
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *map(str, rest)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(ENDING_S)


def _end_of(process: subprocess.Popen) -> int:
    """Returns the exit status of a process that is about to end; one that does not is ended."""
    for end in (process.terminate, process.kill):
        try:
            return process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()


def _last_line(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _words(options: object) -> list[str]:
    """Returns the command line for a dataclass of options, without those that have their defaults."""
    words = []
    for name, value in vars(options).items():
        if value == getattr(type(options), name):
            continue
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _port_words() -> list[str]:
    """Returns options with ports that nobody uses."""
    kinds = {"camera": socket.SOCK_STREAM, "robot": socket.SOCK_STREAM, "command": socket.SOCK_STREAM}
    kinds["sensor"] = socket.SOCK_DGRAM
    with contextlib.ExitStack() as stack:
        words = []
        for name, kind in kinds.items():
            one = stack.enter_context(socket.socket(socket.AF_INET, kind))
            one.bind(("127.0.0.1", 0))
            words += [f"--{name}-port", str(one.getsockname()[1])]
    return words


def _interval(success: Mapping[str, float]) -> str:
    return f"{success['rate']:.1%} (95 % interval {success['low']:.0%} to {success['high']:.0%})"


def _check(arguments: Arguments) -> None:
    if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
        raise UserError(f"--minutes must be a number above 0, not {arguments.minutes:g}")
    if arguments.minutes is not None and arguments.episodes is not None:
        raise UserError("give --minutes or --episodes, not both")
    check_scenarios(
        arguments.seed, arguments.episodes if arguments.episodes is not None else 1, arguments.marker
    )
    check_weather(arguments.weather)
    if (arguments.out / "log" / "ticks.jsonl").exists():
        raise UserError(f"{arguments.out}: holds a run already; name another directory with --out")


COMMAND = cli.Command("phantom.soak", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
