"""`python -m experiments.rollout RUN… --backbone DIR --out REPORT`: judges policies in closed loop in the phantom."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from experiments import cli
from experiments.console import make_console
from experiments.data import num_processors
from experiments.phantom import PhantomEnvironment, PhantomSimulator
from experiments.phantom.camera import VIEWS
from experiments.phantom.disturbance import Disturbance
from experiments.phantom.recorded_environment import RecordedPhantom
from experiments.phantom.scenario_seeds import scenario_seeds
from experiments.phantom.shift import SHIFTS
from experiments.phantom.simulator import ACTION_HZ, NUM_CHANNELS
from vla_jax.contracts.checks import unknown_choice
from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE
from vla_jax.errors import UserError
from vla_jax.reporting.page import number

if TYPE_CHECKING:
    from feature_cache.encoder import FeatureEncoder
    from vla_jax.evaluation.closed_loop import Rollout, RolloutSettings
    from vla_jax.evaluation.rollout_summary import Trial
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.reporting.film import Film

DESCRIPTION = """Lets each policy insert the needle in the simulated phantom, all in the same scenarios, and judges
where it stops. Pictures become features by the backbone as they come; sensor window and pose are those of the moment.

Writes REPORT/rollout.json, REPORT/rollouts.npz and REPORT/report.html. Ctrl-C keeps the episodes that are done."""


@dataclass(frozen=True)
class Acting:
    """How the policies act, and what they have to do with."""

    execute: int = 1
    """Actions of a chunk that are executed before the next prediction."""
    refresh: int | None = None
    """Control ticks from one set of pictures that the backbone sees to the next; as in the policy's data by default."""
    feature_latency: tuple[str, ...] = ("0",)
    """Time until pictures are features: control ticks (4), or milliseconds (400ms). Each of several is a roll-out of
    its own."""
    action_latency: str = "0"
    """Time until a predicted chunk can be executed, likewise."""
    ensemble: float | None = None
    """Average what all chunks have for a tick, weighted by exp(-ENSEMBLE age), the oldest most."""
    sampler: str | None = None
    """How a diffusion policy denoises (ddim or ddpm); the checkpoint's own by default."""
    sampling_steps: int | None = None
    """Its denoising steps."""
    sensor_lost: tuple[float, float] | None = None
    """Seconds from and up to which the sensor is gone."""
    views_lost: tuple[float, float] | None = None
    """Seconds from and up to which all pictures are gone."""


@dataclass(frozen=True)
class World:
    """What they act in."""

    shift: tuple[str, ...] = ("none",)
    """How scenarios differ from those of the training episodes (none, speckle, gain, membrane, deeper, shallower,
    brightness, marker, start, breathing, or all for each of them). Each of several is a roll-out of its own."""
    nudges: bool = False
    """Push the arm off its course at random times."""


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
    checkpoint: str = "latest"
    """Which checkpoint of a training output directory: latest, or best by its validation error."""
    acting: Annotated[Acting, tyro.conf.arg(name="")] = field(default_factory=Acting)
    world: Annotated[World, tyro.conf.arg(name="")] = field(default_factory=World)
    record: Path | None = None
    """Directory for the episodes as recorded, with what the demonstrator would have done at every tick, to train on
    (DAgger); `prepare` reads them."""
    parallel: int = 16
    """Episodes side by side: what they need is computed in batches."""
    workers: int = 0
    """Processes that simulate; 0 takes one per processor core, at most 16."""


def main(arguments: Arguments) -> None:
    """Rolls out every policy in every setting, prints the table and says where the report is."""
    from vla_jax.reporting.evaluation_report import make_report_directory
    from vla_jax.reporting.rollout_report import write_rollouts

    _check(arguments)
    plan = _plan(arguments)
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


@dataclass(frozen=True)
class _Planned:
    """A policy in one setting."""

    name: str
    policy: "InsertionPolicy"
    settings: "RolloutSettings"
    shift: str

    def trial(self, rollouts: "Sequence[Rollout]") -> "Trial":
        """Returns what came of it."""
        from vla_jax.evaluation.rollout_summary import Trial

        loaded = self.policy.loaded
        return Trial(
            self.name,
            sorted(rollouts, key=lambda rollout: rollout.seed),
            checkpoint={"path": str(loaded.path), "step": loaded.metadata.step},
            feature_latency_s=self.settings.feature_latency / _rate_hz(self.policy),
            shift=None if self.shift == "none" else self.shift,
        )


def _plan(arguments: Arguments) -> list[_Planned]:
    """Restores the policies and returns each in each setting."""
    from vla_jax.policy.insertion_policy import InsertionPolicy

    acting, shifts, plan = arguments.acting, _shifts(arguments.world.shift), []
    for run in arguments.runs:
        policy = InsertionPolicy.from_checkpoint(
            run, checkpoint=arguments.checkpoint, sampler=acting.sampler, steps=acting.sampling_steps
        )
        check_fits_phantom(run, policy)
        latencies = [_ticks(text, "feature-latency", policy) for text in acting.feature_latency]
        plan += [
            _Planned(run.resolve().name, policy, _settings(acting, policy, latency), shift)
            for latency in dict.fromkeys(latencies)
            for shift in shifts
        ]
    return plan


def _roll_out(
    arguments: Arguments, plan: Sequence[_Planned], encoders: "Encoders"
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


def _films(trials: "Sequence[Trial]", *, nudges: bool) -> "dict[str, list[Film]]":
    """Films episodes of each policy in its first setting, in a world like the one that they happened in."""
    from vla_jax.progress import progress_bar
    from vla_jax.reporting.film import MAX_BYTES, make_films

    first = {trial.name: trial for trial in reversed(trials)}
    return {
        name: make_films(
            trial, make_environment(shift=trial.shift or "none", nudges=nudges), MAX_BYTES // len(first)
        )
        for name, trial in progress_bar(first.items(), desc="films", unit="policy")
    }


class Encoders:
    """The backbone, once for each kind of features that the policies read."""

    def __init__(self, backbone: str) -> None:
        self._backbone = backbone
        self._opened: list[FeatureEncoder] = []

    def of(self, policy: "InsertionPolicy") -> "FeatureEncoder":
        """Returns what makes a policy's features; raises UserError where the backbone does not."""
        from feature_cache.encoder import FeatureEncoder

        for encoder in self._opened:
            if encoder.spec == policy.features and encoder.views == (policy.data.views or ()):
                return encoder
        self._opened.append(FeatureEncoder.open(self._backbone, policy.features, policy.data.views or ()))
        return self._opened[-1]


def make_environment(
    *,
    shift: str = "none",
    nudges: bool = False,
    has_sensor: bool = True,
    record_to: Path | None = None,
    name: str = "",
) -> "PhantomEnvironment":
    """Builds the phantom's world in one setting. record_to: directory for its episodes, called `name`."""
    simulator = PhantomSimulator(
        shift=shift, has_sensor=has_sensor, disturbance=Disturbance() if nudges else None
    )
    return PhantomEnvironment(simulator) if record_to is None else RecordedPhantom(simulator, record_to, name)


def _episodes(
    arguments: Arguments, planned: _Planned, encoders: Encoders
) -> "Generator[Rollout, None, None]":
    """Yields the episodes of a policy in one setting."""
    import jax

    from vla_jax.evaluation.closed_loop import Inputs, roll_out
    from vla_jax.evaluation.environments import environment_processes

    policy = planned.policy
    make = functools.partial(
        make_environment,
        shift=planned.shift,
        nudges=arguments.world.nudges,
        # The costly A-scans are left out where nobody reads or records them.
        has_sensor=policy.config.uses_sensor or arguments.record is not None,
        record_to=arguments.record,
        name=planned.name,
    )
    workers = arguments.workers or num_processors()
    with environment_processes(make, arguments.parallel, workers) as environments:
        yield from roll_out(
            policy.predict,
            encoders.of(policy),
            environments,
            scenario_seeds(arguments.seed, arguments.episodes),
            planned.settings,
            jax.random.key(arguments.seed),
            Inputs.of(policy),
        )


def _settings(acting: Acting, policy: "InsertionPolicy", latency: int) -> "RolloutSettings":
    from vla_jax.evaluation.closed_loop import RolloutSettings
    from vla_jax.policy.chunk_execution import Execution

    action_latency = _ticks(acting.action_latency, "action-latency", policy)
    try:
        execution = Execution(acting.execute, action_latency, acting.ensemble)
        execution.check_horizon(policy.data.actions.horizon)
        return RolloutSettings(
            execution=execution,
            refresh_ticks=acting.refresh or policy.data.refresh_ticks or 3,
            feature_latency=latency,
            sensor_lost=acting.sensor_lost,
            views_lost=acting.views_lost,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _ticks(text: str, option: str, policy: "InsertionPolicy") -> int:
    """Returns a time in control ticks; milliseconds are rounded up, since nothing is there before it is there."""
    number, in_ms = text.removesuffix("ms"), text.endswith("ms")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    ticks = math.ceil(round(value / 1000 * _rate_hz(policy), 6)) if in_ms else value
    if not 0 <= ticks < 1000 or ticks != int(ticks):
        raise UserError(f"--{option} {text} is no time; give control ticks (4) or milliseconds (400ms)")
    return int(ticks)


def _rate_hz(policy: "InsertionPolicy") -> float:
    return policy.data.actions.rate_hz or ACTION_HZ


def _shifts(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in (*SHIFTS, "all")]
    if unknown:
        raise UserError(f"--shift {unknown_choice(unknown[0], (*SHIFTS, 'all'))}")
    return list(SHIFTS) if "all" in names else list(dict.fromkeys(names))


def _check(arguments: Arguments) -> None:
    if arguments.parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {arguments.parallel}")
    if arguments.workers < 0:
        raise UserError(f"--workers must not be negative, not {arguments.workers}")
    scenario_seeds(arguments.seed, arguments.episodes)
    names = [run.resolve().name for run in arguments.runs]
    if not names:
        raise UserError("name at least one training output directory")
    if len(set(names)) < len(names):
        raise UserError(
            f"two runs have the same name ({', '.join(names)}): a report could not tell them apart"
        )


def check_fits_phantom(run: Path, policy: "InsertionPolicy") -> None:
    """Refuses a policy of another arm, other cameras or another sensor."""
    data = policy.data
    lacking = [
        f"{what} {theirs}, the phantom has {ours}"
        for what, theirs, ours in (
            ("actions", data.actions.names, LAB_ACTIONS.names),
            ("views", data.views, VIEWS),
            ("a sensor of channels", data.sensor and data.sensor.channels, NUM_CHANNELS),
        )
        if theirs is not None and theirs != ours
    ]
    if policy.config.state is not None and data.state != LAB_STATE:
        lacking.append(f"state {data.state}, the phantom has {LAB_STATE}")
    if lacking:
        raise UserError(f"{run}: cannot act in the phantom: it has {'; '.join(lacking)}")


def _asked(arguments: Arguments) -> dict[str, Any]:
    """Returns what was asked for, as JSON values."""
    values = dataclasses.asdict(arguments)
    values |= values.pop("acting") | values.pop("world")
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
