"""`python -m experiments.record EPISODES --prompt TEXT`: writes live streams as episodes."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments import cli
from vla_jax.errors import UserError
from vla_jax.live.ports import LabPorts

if TYPE_CHECKING:
    from vla_jax.live.receivers import Receivers
    from vla_jax.live.recorder import EpisodeRecorder

DESCRIPTION = """Receives cameras, robot state and sensor, and writes them as `windows` episodes while they come. An
episode begins with the robot's first state and ends when the robot's program says so, or with Enter in the terminal.

Ctrl-C, SIGTERM and q end the recording. Whatever else ends it, `prepare` reads what came up to a second before."""

_LOOK_S = 0.05
_LINE_S = 10.0


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="EPISODES")]
    """Directory for the episodes; they are added to what is there."""
    prompt: str
    """What is done in them."""
    task: str | None = None
    """Folder in it for these episodes; made of the prompt by default."""
    episodes: int | None = None
    """End after so many."""
    seconds: float | None = None
    """End after so long."""
    estimate_camera_clock: bool = False
    """Estimate how far the cameras' clock is off, as for robot and sensor; by default their stamps count as they
    are."""
    ports: Annotated[LabPorts, tyro.conf.arg(name="")] = field(default_factory=LabPorts)


def main(arguments: Arguments) -> None:
    """Records until it is to end, and says what was written.

    Raises:
        UserError: it can be received or written no more.
    """
    from vla_jax.live.clock import LocalClock
    from vla_jax.live.receivers import Receivers
    from vla_jax.live.recorder import EpisodeRecorder
    from vla_jax.live.stop_key import stop_key
    from vla_jax.storage.stop_signals import stop_requested

    _check(arguments)
    clock = LocalClock()
    recorder = EpisodeRecorder(
        arguments.out, prompt=arguments.prompt, task=arguments.task, on_finished=_tell_finished
    )
    receivers = Receivers(arguments.ports, recorder, clock, estimates_cameras=arguments.estimate_camera_clock)
    end_of_episode = {b"\n": lambda: recorder.episode_end(clock.now())}
    try:
        receivers.start()
        print(f"recording to {recorder.folder}", flush=True)
        with stop_key(end_of_episode) as pressed, stop_requested() as signalled:
            lines = _Lines(receivers, recorder)
            ends = time.monotonic() + (arguments.seconds or math.inf)
            while not (signalled.is_set or pressed.is_set() or recorder.failure or receivers.failure):
                time.sleep(_LOOK_S)
                lines.look()
                done = recorder.counts["episodes"] >= (arguments.episodes or math.inf)
                if done or time.monotonic() >= ends:
                    break
    finally:
        receivers.close()
        recorder.close()
    print(_summary(receivers, recorder), flush=True)
    failure = recorder.failure or receivers.failure
    if failure is not None:
        raise UserError(failure)


class _Lines:
    """Says now and then how many messages come."""

    def __init__(self, receivers: "Receivers", recorder: "EpisodeRecorder") -> None:
        self._receivers, self._recorder = receivers, recorder
        self._told_s, self._received = time.monotonic(), {}

    def look(self) -> None:
        """Prints a line every ten seconds."""
        now = time.monotonic()
        if now - self._told_s < _LINE_S:
            return
        received = {
            name: count for name, count in self._receivers.counts.items() if name.endswith("/messages")
        }
        rates = [
            f"{name.partition('/')[0]} {(count - self._received.get(name, 0)) / (now - self._told_s):.0f}"
            for name, count in sorted(received.items())
        ]
        what = "recording" if self._recorder.is_recording else "waiting for the robot's state"
        print(f"{what}; messages a second: {', '.join(rates) or 'none'}", flush=True)
        self._told_s, self._received = now, received


def _tell_finished(folder: Path, seconds: float) -> None:
    print(f"{folder}: {seconds:.1f} s", flush=True)


def _summary(receivers: "Receivers", recorder: "EpisodeRecorder") -> str:
    """Returns what was written, and what was not."""
    counts = dict(recorder.counts)
    damaged = sum(count for name, count in receivers.counts.items() if name.endswith("/damaged"))
    wrong = {
        "damaged messages": damaged,
        "damaged pictures": counts.get("damaged", 0),
        "repeated pictures": counts.get("repeated", 0),
        "late or repeated rows and states": counts.get("late", 0),
        "messages dropped because the disk is too slow": counts.get("dropped", 0),
        "messages of another robot's form": counts.get("unfit", 0),
    }
    written = ", ".join(
        f"{counts.get(name, 0)} {name}" for name in ("episodes", "states", "rows", "pictures")
    )
    left_out = ", ".join(f"{count} {name}" for name, count in wrong.items() if count)
    return f"{written}" + (f"; left out: {left_out}" if left_out else "")


def _check(arguments: Arguments) -> None:
    if not arguments.prompt.strip():
        raise UserError("--prompt is empty; say what is done in the episodes")
    task = arguments.task
    if task is not None and (not task or task.startswith(".") or "/" in task or "\0" in task):
        raise UserError(f"--task {task!r} is no folder's name; give one without / that begins with no dot")
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {arguments.episodes}")
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise UserError(f"--seconds must be a number above 0, not {arguments.seconds:g}")


COMMAND = cli.Command("record", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
