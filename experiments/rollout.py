"""`python -m experiments.rollout RUN… --backbone DIR --out REPORT`: judges policies in closed loop in the phantom."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from experiments import cli
from experiments.acting import Acting
from experiments.console import make_console
from experiments.phantom.scenario_seeds import check_scenarios, scenarios
from experiments.phantom_policies import MOST_PARALLEL, Encoders, PhantomWorld, insertions
from experiments.rollout_plan import Handicaps, Planned, World, make_plan
from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.errors import UserError
from vla_jax.reporting.page import number

if TYPE_CHECKING:
    from vla_jax.evaluation.closed_loop import Rollout
    from vla_jax.evaluation.rollout_summary import Trial
    from vla_jax.reporting.film import Film

DESCRIPTION = """Lets each policy insert the needle in the simulated phantom, all in the same scenarios, and judges
where it stops. Pictures become features by the backbone as they come; sensor window and pose are those of the moment.

Writes REPORT/rollout.json, REPORT/rollouts.npz and REPORT/report.html. Ctrl-C keeps the episodes that are done."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Training output directories, or checkpoints in them."""
    backbone: str
    """What the policies' features were exported with: a directory, or a model hub's name."""
    out: Path
    """Directory to write the report to."""
    episodes: int = 100
    """Scenarios."""
    seed: int = 1
    """Of the scenarios and of the policies' noise. No training episode has a scenario of any."""
    marker: str | None = None
    """Only scenarios with a marker of this colour (Red), as in `phantom.lab`."""
    checkpoint: str = "latest"
    """Which checkpoint of a training output directory: latest, or best by its validation error."""
    acting: Annotated[Acting, tyro.conf.arg(name="")] = field(default_factory=Acting)
    handicaps: Annotated[Handicaps, tyro.conf.arg(name="")] = field(default_factory=Handicaps)
    world: Annotated[World, tyro.conf.arg(name="")] = field(default_factory=World)
    record: Path | None = None
    """Directory for the episodes as recorded, with what the demonstrator would have done at every tick, to train on
    (DAgger); `prepare` reads them."""
    parallel: int = MOST_PARALLEL
    """Episodes side by side: what they need is computed in batches."""
    workers: int = 0
    """Processes that simulate; 0 takes one per processor core, at most 16."""


def main(arguments: Arguments) -> None:
    """Rolls out every policy in every setting, prints the table and says where the report is."""
    from vla_jax.reporting.evaluation_report import make_report_directory
    from vla_jax.reporting.rollout_report import write_rollouts

    _check(arguments)
    plan = make_plan(
        arguments.runs, arguments.checkpoint, arguments.acting, arguments.handicaps, arguments.world
    )
    if arguments.record is not None and len(plan) > len(arguments.runs):
        raise UserError(
            "--record takes one --feature-latency and one --shift: episodes of others are called alike"
        )
    encoders = Encoders(arguments.backbone)
    for planned in plan:
        encoders.of(planned.policy)
    make_report_directory(arguments.out)
    trials, interrupted = _roll_out(arguments, plan, encoders)
    if not trials:
        raise UserError("stopped before the first episode had ended; nothing is written")
    content = write_rollouts(
        arguments.out,
        trials,
        LAB_ACTIONS,
        _asked(arguments) | {"interrupted": interrupted},
        _films(trials, nudges=arguments.world.nudges),
        seed=arguments.seed,
    )
    console = make_console()
    console.print(summary_table(content["runs"]))
    if interrupted:
        done, total = sum(len(trial.rollouts) for trial in trials), len(plan) * arguments.episodes
        console.print(f"stopped: {done} of {total} episodes are in the report")
    console.print(f"report: {arguments.out / 'report.html'}", soft_wrap=True)


def _roll_out(
    arguments: Arguments, plan: Sequence[Planned], encoders: Encoders
) -> "tuple[list[Trial], bool]":
    """Lets the policies act, with a progress bar; returns what came of it, and whether it was stopped early."""
    from vla_jax.progress import progress_bar
    from vla_jax.storage.stop_signals import stop_requested

    trials, total = [], len(plan) * arguments.episodes
    with stop_requested() as stop, progress_bar(total=total, desc="rollout", unit="episode") as bar:
        for planned in plan:
            rollouts = []
            with contextlib.closing(_episodes(arguments, planned, encoders)) as episodes:
                for rollout in episodes:
                    rollouts.append(rollout)
                    bar.update()
                    if stop.is_set:
                        break
            if rollouts:
                trials.append(planned.trial(rollouts))
            if stop.is_set:
                break
    return trials, stop.is_set


def _episodes(arguments: Arguments, planned: Planned, encoders: Encoders) -> "Generator[Rollout, None, None]":
    """Yields the episodes of a policy in one setting."""
    return insertions(
        planned.policy,
        encoders,
        scenarios(arguments.seed, arguments.episodes, arguments.marker),
        planned.settings,
        world=PhantomWorld(
            planned.shift,
            arguments.world.nudges,
            arguments.record,
            planned.name,
            arguments.world.time_limit,
        ),
        key_seed=arguments.seed,
        parallel=arguments.parallel,
        workers=arguments.workers,
        residual=planned.residual,
    )


def _films(trials: "Sequence[Trial]", *, nudges: bool) -> "dict[str, list[Film]]":
    """Films episodes of each policy in its first setting, in a world like the one that they happened in."""
    from vla_jax.progress import progress_bar
    from vla_jax.reporting.film import MAX_BYTES, make_films

    first = {trial.name: trial for trial in reversed(trials)}
    return {
        name: make_films(trial, PhantomWorld(trial.shift or "none", nudges).make(), MAX_BYTES // len(first))
        for name, trial in progress_bar(first.items(), desc="films", unit="policy")
    }


def _check(arguments: Arguments) -> None:
    if arguments.parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {arguments.parallel}")
    if arguments.workers < 0:
        raise UserError(f"--workers must not be negative, not {arguments.workers}")
    if not 0 < arguments.world.time_limit < math.inf:
        raise UserError(
            f"--time-limit must be a number of seconds above 0, not {arguments.world.time_limit:g}"
        )
    check_scenarios(arguments.seed, arguments.episodes, arguments.marker)
    names = [run.resolve().name for run in arguments.runs]
    if not names:
        raise UserError("name at least one training output directory")
    if len(set(names)) < len(names):
        raise UserError(
            f"two runs have the same name ({', '.join(names)}): a report could not tell them apart"
        )


def _asked(arguments: Arguments) -> dict[str, Any]:
    """Returns what was asked for, as JSON values."""
    values = dataclasses.asdict(arguments)
    values |= values.pop("acting") | values.pop("handicaps") | values.pop("world")
    return {name: json.loads(json.dumps(value, default=str)) for name, value in values.items()}


def summary_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Returns each policy in each setting: success with its interval, where it stops, and why it fails."""
    table = Table(title=f"closed loop in the phantom, {runs[0]['episodes']} episodes each")
    table.add_column("")
    for column in ("success", "95 %", "depth error µm", "overshoot µm", "lateral µm"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("failures")
    for run in runs:
        success = run["success"]
        settled = run["setting"] == "no delay, no shift"
        table.add_row(
            run["name"] if settled else f"{run['name']}, {run['setting']}",
            f"{success['rate']:.1%}",
            f"{success['low']:.0%}–{success['high']:.0%}",
            *(number(run[name]["median"]) for name in ("depth_error_um", "overshoot_um", "lateral_um")),
            ", ".join(f"{name} {count}" for name, count in run["failures"].items()),
        )
    table.caption = (
        "medians. Success: the needle enters within 0.5 mm of the marker, is never 0.5 mm past the stop, and stops "
        "within 0.2 mm of it"
    )
    return table


COMMAND = cli.Command("rollout", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
