"""`python -m experiments.live RUN --backbone DIR --prompt TEXT`: a policy acts on a robot."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments import cli
from experiments.acting import Acting
from experiments.console import make_console
from vla_jax.errors import UserError
from vla_jax.live.limit_options import LimitOptions
from vla_jax.live.ports import LabPorts

if TYPE_CHECKING:
    from feature_cache.encoder import FeatureEncoder
    from vla_jax.contracts.specs import FeatureSpec
    from vla_jax.live.features import FeatureProcess
    from vla_jax.live.lab_link import LabLink
    from vla_jax.live.log import LiveLog
    from vla_jax.live.loop import Ending, LoopSettings
    from vla_jax.live.newest import NewestOfAll
    from vla_jax.live.recorder import EpisodeRecorder
    from vla_jax.live.wire import Start
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import Residual

DESCRIPTION = """Lets a policy act on a robot: receives cameras, robot state and sensor, makes features of the newest
pictures beside the control loop, and sends one limited action at each control tick.

q, space or Escape in the terminal, Ctrl-C and SIGTERM stop the arm at once; Enter ends the episode. See docs/robot.md
before an arm moves."""

FAULT_STATUS = 1
"""Of a run that nobody asked to end."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or a checkpoint in it."""
    backbone: str
    """What the policy's features were exported with: a directory, or a model hub's name."""
    prompt: str
    """What the policy is told to do, as in its training episodes."""
    checkpoint: str = "latest"
    """Which checkpoint of a training output directory: latest, or best by its validation error."""
    dry_run: bool = False
    """Do everything but send commands."""
    log: Path | None = None
    """Directory for ticks.jsonl, a line for each tick, and summary.json."""
    record: Path | None = None
    """Directory to write the episodes to while they happen; `prepare` reads them."""
    seconds: float | None = None
    """End after so long."""
    episodes: int | None = None
    """End after so many episodes."""
    wait: float = 60.0
    """Seconds to wait for all streams at the beginning."""
    sensor: bool = True
    """Whether there is a sensor; without, the policy acts as it was trained to where a sensor is missing."""
    seed: int = 0
    """Of the noise of a policy that denoises."""
    start_joints: tuple[float, float, float, float, float, float] | None = None
    """Send the arm to these joints (degrees) before each episode; an episode begins when it is there."""
    start_pose: tuple[float, float, float, float, float, float] | None = None
    """Likewise to a pose: x y z in mm, a b r in degrees."""
    lock_j6: bool = False
    """Keep the sixth joint where it is on the way there."""
    estimate_camera_clock: bool = False
    """Estimate how far the cameras' clock is off, as for robot and sensor; by default their stamps count as they
    are."""
    acting: Annotated[Acting, tyro.conf.arg(name="")] = field(default_factory=Acting)
    ports: Annotated[LabPorts, tyro.conf.arg(name="")] = field(default_factory=LabPorts)
    limits: Annotated[LimitOptions, tyro.conf.arg(name="")] = field(default_factory=LimitOptions)


def main(arguments: Arguments) -> int:
    """Runs the policy until it is to end; returns 1 where nobody asked for the end."""
    _check(arguments)
    # JAX would take most of a GPU's memory, and the backbone's process needs some of the same one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    policy = arguments.acting.policy(arguments.run, arguments.checkpoint)
    residual, settings = arguments.acting.residual_of(policy), _settings(arguments, policy)
    console = make_console()
    recorder = None
    if arguments.record is not None:
        from vla_jax.live.recorder import EpisodeRecorder

        recorder = EpisodeRecorder(arguments.record, prompt=arguments.prompt)
    try:
        ending = _run(arguments, settings, policy, residual, recorder)
    finally:
        if recorder is not None:
            recorder.close()
    if recorder is not None:
        console.print(f"episodes: {recorder.folder}", soft_wrap=True, markup=False)
        if recorder.failure is not None:
            console.print(f"not all was recorded: {recorder.failure}", soft_wrap=True, markup=False)
    console.print(f"stopped: {ending.why}" if ending.why != "done" else "done", markup=False)
    if arguments.log is not None:
        console.print(f"log: {arguments.log}", soft_wrap=True, markup=False)
    return FAULT_STATUS if ending.is_fault else 0


def _run(
    arguments: Arguments,
    settings: "LoopSettings",
    policy: "InsertionPolicy",
    residual: "Residual | None",
    recorder: "EpisodeRecorder | None",
) -> "Ending":
    """Opens everything, in the order in which it can be refused, and runs the loop."""
    import numpy as np

    from vla_jax.live.clock import LocalClock
    from vla_jax.live.features import FeatureProcess
    from vla_jax.live.handshake import check_policy, wait_for_streams
    from vla_jax.live.lab_link import LabLink
    from vla_jax.live.limits import make_limits
    from vla_jax.live.loop import Ending, LiveLoop, StopNow
    from vla_jax.live.newest import NewestOfAll
    from vla_jax.live.predicting import Predictor
    from vla_jax.live.status import StatusLine
    from vla_jax.live.streams import Sinks

    clock, views = LocalClock(), policy.data.views or ()
    link = LabLink(
        arguments.ports,
        clock,
        has_sensor=arguments.sensor,
        start_command=_start_command(arguments),
        estimates_cameras=arguments.estimate_camera_clock,
    )
    newest = NewestOfAll(link, views)
    sinks = Sinks([newest] if recorder is None else [newest, recorder])
    with contextlib.ExitStack() as stack:
        stack.callback(link.close)
        asked_to_stop = stack.enter_context(_stop_asked_for(lambda: sinks.episode_end(clock.now())))

        def watch() -> None:
            if (who := asked_to_stop()) is not None:
                raise StopNow(who)

        limits_at = functools.partial(make_limits, arguments.limits, policy, link)
        limits_at(np.zeros(len(link.state)))  # Whether they can be made at all.
        features = FeatureProcess(
            functools.partial(_open_encoder, arguments.backbone, policy.features, views),
            arguments.prompt,
            newest.pictures,
            clock,
            period_s=arguments.acting.refresh_ticks(policy) / policy.data.actions.control_hz,
        )
        stack.callback(features.close)
        features.start()
        predictor = Predictor(policy, seed=arguments.seed, beside_ticks=settings.execution.latency > 0)
        stack.callback(predictor.close)
        if residual is not None:
            residual.warm_up()
        try:
            features.wait_until_open(watch)
            link.open(sinks)
            wait_for_streams(policy, newest, arguments.wait, watch)
        except StopNow as stop:
            return Ending(str(stop), False)
        check_policy(policy, link, newest)
        status = StatusLine()
        with _log(arguments.log) as log:
            loop = LiveLoop(
                policy,
                link,
                newest,
                features,
                predictor,
                limits_at,
                clock,
                settings,
                log=log,
                status=status,
                asked_to_stop=asked_to_stop,
                tell_sent=None if recorder is None else recorder.command,
                residual=residual,
            )
            ending = loop.run()
            status.close()
            if log is not None:
                log.more |= {"ended": ending.why, "counts": _counts(link, newest, features)}
        return ending


@contextlib.contextmanager
def _stop_asked_for(end_episode: Callable[[], None]) -> "Iterator[Callable[[], str | None]]":
    """Yields what says who asks for a stop: the terminal's key, a signal, or nobody. end_episode: what Enter does."""
    from vla_jax.live.stop_key import stop_key
    from vla_jax.storage.stop_signals import stop_requested

    with stop_key({b"\n": end_episode}) as pressed, stop_requested() as signalled:

        def asked() -> str | None:
            if signalled.is_set:
                return f"signal {signalled.signal}"
            return "the stop key" if pressed.is_set() else None

        yield asked


@contextlib.contextmanager
def _log(directory: Path | None) -> "Iterator[LiveLog | None]":
    from vla_jax.live.log import LiveLog

    if directory is None:
        yield None
        return
    log = LiveLog(directory)
    try:
        yield log
    finally:
        log.close()


def _counts(link: "LabLink", newest: "NewestOfAll", features: "FeatureProcess") -> dict[str, int]:
    """Returns what came of everything received."""
    counts = {**link.counts(), "pictures/late": newest.pictures.late}
    for name, rows in (("state", newest.states), ("sensor", newest.rows)):
        if rows is not None:
            counts |= {f"{name}_rows/{kind}": count for kind, count in vars(rows.counts).items()}
    return counts | {
        "features/sets": features.count,
        "features/refused": features.damaged,
        "features/restarts": features.deaths,
    }


def _open_encoder(backbone: str, spec: "FeatureSpec", views: tuple[str, ...]) -> "FeatureEncoder":
    """Loads the backbone, in the process that will use it."""
    from feature_cache.encoder import FeatureEncoder

    return FeatureEncoder.open(backbone, spec, views)


def _settings(arguments: Arguments, policy: "InsertionPolicy") -> "LoopSettings":
    from vla_jax.live.loop import LoopSettings

    acting = arguments.acting
    return LoopSettings(
        acting.execution(policy), acting.noise, arguments.dry_run, arguments.seconds, arguments.episodes
    )


def _start_command(arguments: Arguments) -> "Start | None":
    from vla_jax.live.wire import Start

    if arguments.start_joints is None and arguments.start_pose is None:
        return None
    return Start(arguments.start_joints, arguments.start_pose, arguments.lock_j6)


def _check(arguments: Arguments) -> None:
    if not arguments.prompt.strip():
        raise UserError("--prompt is empty; give what the policy was told in its training episodes")
    for name in ("seconds", "wait"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be a number above 0, not {value:g}")
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {arguments.episodes}")
    if arguments.start_joints is not None and arguments.start_pose is not None:
        raise UserError("give --start-joints or --start-pose, not both")
    if arguments.lock_j6 and arguments.start_joints is None and arguments.start_pose is None:
        raise UserError("--lock-j6 goes with --start-joints or --start-pose")
    if arguments.log is not None and (arguments.log / "ticks.jsonl").exists():
        raise UserError(f"{arguments.log}: holds a log already; name another directory with --log")


COMMAND = cli.Command("live", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
