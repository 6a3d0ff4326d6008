"""`python -m experiments.demo`: the main job on simulated episodes, one command after the other."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from experiments import cli
from experiments.console import make_console, print_table
from vla_jax.errors import UserError
from vla_jax.optional_torch import require

DESCRIPTION = """Simulates episodes, packs them, exports features with a tiny random Qwen2.5-VL, trains a
regression and a diffusion policy, and a regression policy without sensor, and judges them: open loop on held-out
episodes, and closed loop in scenarios of another seed. Ends with status 1 unless regression and diffusion halve the
error of the training episodes' mean action and succeed in two thirds of the scenarios.

Run again, it continues where it stopped."""

# run name: options of `experiments.train`
POLICIES = {
    "regression": ("--model-type", "regression", "--fusion-strategy", "concat", "--state-enabled"),
    "diffusion": ("--model-type", "diffusion", "--fusion-strategy", "concat", "--state-enabled"),
    "vision-only": ("--model-type", "regression", "--fusion-strategy", "none", "--state-enabled"),
    "gated": ("--model-type", "regression", "--fusion-strategy", "gated", "--state-enabled"),
    "cross-attention": (
        "--model-type",
        "regression",
        "--fusion-strategy",
        "cross_attention",
        "--state-enabled",
    ),
}
# Half of the batch and of the noises: an update costs less than half, and in the demo's time teaches as much.
THRIFTY = {"diffusion": ("--batch-size", "32", "--head", "noise_draws=2")}
CHECKED = ("regression", "diffusion")
REQUIRED_FACTOR, REQUIRED_SUCCESS = 2.0, 2 / 3


PolicyName = Literal["regression", "diffusion", "vision-only", "gated", "cross-attention"]


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    out: Path = Path("demo")
    """Directory for everything the demo writes (about 4 GB)."""
    episodes: int = 120
    """Number of simulated episodes; a fifth of them is held out."""
    rollouts: int = 40
    """Number of scenarios for the closed loop."""
    seed: int = 0
    """Seed of the episodes."""
    policies: tuple[PolicyName, ...] = ("regression", "diffusion", "vision-only")
    """Which policies to train. Those of gated and cross-attention are regression policies with another fusion."""
    steps: int = 1500
    """Optimizer updates of each policy."""
    thorough: bool = False
    """Train the diffusion policy on whole batches, as `small` says: twice as long, and better where steps are many."""


def main(arguments: Arguments) -> int:
    """Runs the whole job and returns 0 when regression and diffusion pass (`verdict`)."""
    require("demo", "torch", "transformers", "tokenizers")
    for option, value, least in (
        ("episodes", arguments.episodes, 2),
        ("rollouts", arguments.rollouts, 1),
        ("seed", arguments.seed, 0),
        ("steps", arguments.steps, 1),
    ):
        if value < least:
            raise UserError(f"--{option} {value} is impossible; give at least {least}")
    started = time.monotonic()
    out = arguments.out
    episodes, data, cache, backbone = (out / name for name in ("episodes", "data", "cache", "backbone"))
    run_command("phantom", episodes, "--episodes", arguments.episodes, "--seed", arguments.seed)
    run_command("prepare", episodes, "--out", data)
    if not (backbone / "config.json").is_file():
        run_command("tiny_backbone", backbone)
    run_command("export", data, "--backbone", backbone, "--cache", cache)
    for name in arguments.policies:
        options = POLICIES[name] + (() if arguments.thorough else THRIFTY.get(name, ()))
        run, report = out / "runs" / name, out / "reports" / name
        run_command(
            "train",
            data,
            *("--cache", cache, "--out", run, "--recipe", "small", "--resume"),
            *("--steps", arguments.steps, "--validate-every", arguments.steps),
            *options,
        )
        run_command("evaluate", run, data, "--cache", cache, "--out", report)
    runs, closed_loop = [out / "runs" / name for name in arguments.policies], out / "reports" / "rollout"
    run_command(
        "rollout", *runs, "--backbone", backbone, "--episodes", arguments.rollouts, "--out", closed_loop
    )
    metrics: dict[str, dict[str, Any]] = {
        name: read_metrics(out / "reports" / name) for name in arguments.policies
    }
    rollouts = read_rollouts(closed_loop)
    console = make_console()
    print_table(console, summary_table(metrics, rollouts))
    if {"regression", "vision-only"} <= metrics.keys():
        for line in findings(metrics):
            console.print(line)
    passed, said = verdict({name: (metrics[name], rollouts[name]) for name in CHECKED if name in metrics})
    console.print(said)
    console.print(f"\n{(time.monotonic() - started) / 60:.1f} minutes. Reports:")
    for name in (*arguments.policies, "rollout"):
        console.print(f"  {out / 'reports' / name / 'report.html'}", soft_wrap=True)
    return 0 if passed else 1


def run_command(name: str, *arguments: object) -> None:
    """Shows a command as a user would type it, and runs it.

    Raises:
        UserError: it failed; what it said is on the screen.
    """
    words = [str(argument) for argument in arguments]
    print(f"\n$ python -m experiments.{name} {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"experiments.{name}", *words], check=False).returncode
    if status:
        raise UserError(f"python -m experiments.{name} ended with status {status}; the demo stops here")


def read_metrics(report: Path) -> dict[str, Any]:
    """Reads REPORT/metrics.json."""
    return json.loads((report / "metrics.json").read_text())


def read_rollouts(report: Path) -> dict[str, dict[str, Any]]:
    """Reads the runs of REPORT/rollout.json by their names."""
    return {run["name"]: run for run in json.loads((report / "rollout.json").read_text())["runs"]}


def summary_table(metrics: Mapping[str, dict[str, Any]], rollouts: Mapping[str, dict[str, Any]]) -> Table:
    """Tabulates how often policies succeed in closed loop, and their errors and the baselines' on the held-out
    episodes, in physical units."""
    table = Table(
        title="closed loop, and mean squared error over the 8-step horizon on held-out episodes (mm, degrees)"
    )
    table.add_column("")
    for column in ("success", "95 %", "overall_mse", "mean / it", "motion_mse", "zero / it"):
        table.add_column(column, justify="right", no_wrap=True)
    baselines = next(iter(metrics.values()))["baselines"]
    rows = [(f"{name} policy", values) for name, values in metrics.items()]
    rows += [(f"{name} (baseline)", values) for name, values in baselines.items()]
    for name, values in rows:
        judged = rollouts.get(name.removesuffix(" policy"))
        cells = ["", ""]
        if judged is not None:
            success = judged["success"]
            cells = [f"{success['rate']:.0%}", f"{success['low']:.0%}–{success['high']:.0%}"]
        for metric, compared in (("overall_mse", ["mean"]), ("motion_mse", ["zero"])):
            cells.append(f"{values[metric]:.5f}")
            cells += [f"{baselines[baseline][metric] / values[metric]:.1f}x" for baseline in compared]
        table.add_row(name, *cells)
    table.caption = (
        "success: stopped within 0.2 mm of where the demonstrator would; motion leaves out the gripper, which is "
        "constant"
    )
    return table


def findings(metrics: Mapping[str, dict[str, Any]]) -> list[str]:
    """Says what vision and what the sensor contribute, from the reports' segments of the episodes."""
    align = metrics["regression"]["segments"]["align"]["all"]["first_r2_per_dim"]
    stop = {
        name: metrics[name]["segments"]["near_target"]["with_sensor"]["first_mse_per_dim"][2]
        for name in ("regression", "vision-only")
    }
    return [
        f"Vision: while aligning, the regression policy's dx and dy have R² {align[0]:.2f} and {align[1]:.2f}.",
        f"Sensor: within 1 mm of the target layer the mse of dz is {stop['regression']:.6f} mm² with the sensor, "
        f"{stop['vision-only']:.6f} without ({stop['vision-only'] / stop['regression']:.1f}x).",
    ]


def verdict(judged: Mapping[str, tuple[dict[str, Any], dict[str, Any]]]) -> tuple[bool, str]:
    """Whether each policy's overall_mse is at most half of the training mean's and it succeeds in two thirds of the
    scenarios, and a sentence that says so.

    Not half of the zero baseline's, which is a hundred times larger: the gripper is 1 throughout.

    judged: its metrics.json and its entry in rollout.json, by the policy's name.
    """
    passed, compared = True, []
    for name, (metrics, rollout) in judged.items():
        factor = metrics["baselines"]["mean"]["overall_mse"] / metrics["overall_mse"]
        rate = rollout["success"]["rate"]
        passed &= factor >= REQUIRED_FACTOR and rate >= REQUIRED_SUCCESS
        compared.append(f"{name} {factor:.1f}x, {rate:.0%}")
    return passed, (
        f"Check {'passed' if passed else 'failed'}: the training mean's overall_mse must be at least "
        f"{REQUIRED_FACTOR:g}x a policy's, and two thirds of its insertions a success; {'; '.join(compared)}."
    )


COMMAND = cli.Command("demo", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
