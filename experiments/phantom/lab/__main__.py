"""`python -m experiments.phantom.lab OUT`: the phantom as the lab, in real time, over real sockets."""

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from experiments.phantom.lab.arm import Arm, ArmRules
from experiments.phantom.lab.faults import make_links, read_faults
from experiments.phantom.lab.weather import Weather, check_weather
from experiments.phantom.scenario_seeds import check_scenarios, scenarios
from experiments.phantom.shift import SHIFTS
from vla_jax.contracts.checks import unknown_choice
from vla_jax.errors import UserError
from vla_jax.live.wire import CAMERA_PORT, COMMAND_PORT, ROBOT_PORT, SENSOR_PORT

DESCRIPTION = """Is the lab, in real time: cameras at 5 Hz, robot state at 100 Hz and sensor at 650 Hz come from the
simulated phantom over the lab's sockets, and its arm obeys the commands that arrive. One insertion follows the other,
each as soon as somebody listens to the robot, and each is judged at its end as `rollout` does.

Writes OUT/lab.json and OUT/truth.npz. Ctrl-C keeps the insertions that are done."""


@dataclass(frozen=True)
class Ports:
    """Where the lab's programs listen and send to; 0 is any free port, which is printed."""

    host: str = "127.0.0.1"
    """Address on which robot state and commands are offered."""
    robot_port: int = ROBOT_PORT
    """Robot state, to subscribe to; may be 0."""
    command_port: int = COMMAND_PORT
    """Commands; may be 0."""
    receiver: str = "127.0.0.1"
    """Computer that cameras and sensor send to."""
    camera_port: int = CAMERA_PORT
    """Its port for pictures."""
    sensor_port: int = SENSOR_PORT
    """Its port for the sensor."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Directory for lab.json and truth.npz."""
    episodes: int = 1
    """Insertions."""
    seed: int = 1
    """Of the scenarios: the same as those of `rollout` with this seed."""
    marker: str | None = None
    """Only scenarios with a marker of this colour (Red), for a policy that has one prompt for all episodes."""
    shift: str = "none"
    """How scenarios differ from those of the training episodes, as in `rollout`."""
    pause: float = 2.0
    """Seconds before each insertion, at least."""
    demonstrator: bool = False
    """Let the scripted demonstrator move the arm, to record it; commands are ignored."""
    image_size: str = "112"
    """Size of the pictures: 112 as in the phantom's episodes, or 640x360 as the lab's cameras have."""
    image_quality: int = 75
    """JPEG quality."""
    delay: float = 0.02
    """Seconds from what happens to when it is sent."""
    arm: Annotated[ArmRules, tyro.conf.arg(name="")] = field(default_factory=ArmRules)
    ports: Annotated[Ports, tyro.conf.arg(name="")] = field(default_factory=Ports)
    weather: Annotated[Weather, tyro.conf.arg(name="")] = field(default_factory=Weather)


def main(arguments: Arguments) -> None:
    """Is the lab until all insertions are done, and says how they went."""
    import zmq

    from experiments.phantom import PhantomEnvironment, PhantomSimulator
    from experiments.phantom.lab.clock import SkewedClock
    from experiments.phantom.lab.commands import CommandReceiver
    from experiments.phantom.lab.insertions import Course, insert
    from experiments.phantom.lab.report import success, write_lab_json, write_truth
    from experiments.phantom.lab.senders import CameraLine, RobotLine, Senders, SensorLine
    from experiments.phantom.lab.world import CameraSettings, StepClock, StreamedWorld
    from vla_jax.live.clock import LocalClock
    from vla_jax.reporting.evaluation_report import make_report_directory
    from vla_jax.storage.replacing import writing_to
    from vla_jax.storage.stop_signals import stop_requested

    _check(arguments)
    seeds = scenarios(arguments.seed, arguments.episodes, arguments.marker)
    ports, weather = arguments.ports, arguments.weather
    links = make_links(read_faults(weather.faults), weather.fault_seed)
    stopped_view, stops_after_s = weather.stop_camera or (None, 0.0)
    width, height = _size(arguments.image_size)
    cameras = CameraSettings(width, height, arguments.image_quality, stopped_view, stops_after_s)
    make_report_directory(arguments.out)
    sys.setswitchinterval(0.001)  # A message does not wait for the simulation.
    clock = LocalClock()
    jump_after_s, jump_s = weather.clock_step or (float("inf"), 0.0)
    sensor_clock = SkewedClock(clock.now(), weather.clock_offset, weather.clock_drift, jump_after_s, jump_s)
    robot = RobotLine(ports.host, ports.robot_port)
    lines = {
        "cameras": CameraLine(ports.receiver, ports.camera_port),
        "robot": robot,
        "sensor": SensorLine(ports.receiver, ports.sensor_port),
    }
    arm = Arm(arguments.arm)
    try:
        senders = Senders(clock, lines, links)
        commands = CommandReceiver(arm, clock, ports.host, ports.command_port)
    except zmq.ZMQError as error:
        raise UserError(
            f"cannot listen on {ports.host}: {error.strerror or error}; choose other ports"
        ) from error
    print(
        f"lab: robot tcp://{ports.host}:{robot.port}, commands tcp://{ports.host}:{commands.port}, "
        f"cameras to tcp://{ports.receiver}:{ports.camera_port}, sensor to udp {ports.receiver}:{ports.sensor_port}",
        flush=True,
    )
    began, insertions, steps = clock.now(), [], StepClock(clock)
    senders.start()
    commands.start()
    with stop_requested() as stop:
        for insertion in insert(
            seeds,
            lambda: PhantomEnvironment(PhantomSimulator(shift=arguments.shift)),
            Course(arguments.pause, arguments.demonstrator),
            arm,
            steps,
            lambda environment: StreamedWorld(environment, senders, sensor_clock, cameras, arguments.delay),
            lambda: senders.has_listener,
            lambda: stop.is_set or not (senders.is_alive() and commands.is_alive()),
        ):
            insertions.append(insertion)
            print(f"insertion {len(insertions)} of {len(seeds)}: {insertion}", flush=True)
    seconds = clock.now() - began
    senders.close()
    commands.close()
    with writing_to(arguments.out):
        settings = {**dataclasses.asdict(arguments), "out": str(arguments.out)}
        write_lab_json(arguments.out / "lab.json", insertions, arm, senders, links, steps, settings, seconds)
        write_truth(arguments.out / "truth.npz", senders)
    rate = success(insertions)
    if rate is not None:
        print(
            f"{rate['rate']:.0%} of {len(insertions)} succeeded "
            f"(95 % interval {rate['low']:.0%} to {rate['high']:.0%}): {arguments.out / 'lab.json'}"
        )


def _size(text: str) -> tuple[int, int]:
    """Returns width and height in pixels."""
    found = re.fullmatch(r"(\d{2,4})(?:x(\d{2,4}))?", text)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 16 <= width <= 2000 or not 16 <= height <= 2000:
        raise UserError(f"--image-size {text} is no size; give 112 or 640x360, each side 16 to 2000")
    return width, height


def _check(arguments: Arguments) -> None:
    ports, rules = arguments.ports, arguments.arm
    for name in ("robot_port", "command_port", "camera_port", "sensor_port"):
        # What listens may have any free port; where to send must be known.
        lowest, port = (0 if name in ("robot_port", "command_port") else 1), getattr(ports, name)
        if not lowest <= port <= 65535:
            raise UserError(f"--{name.replace('_', '-')} is {lowest} to 65535, not {port}")
    numbers = {
        "pause": arguments.pause,
        "delay": arguments.delay,
        "max-speed": rules.max_speed,
        "max-turn": rules.max_turn,
        "expiry-s": rules.expiry_s,
        "watchdog-s": rules.watchdog_s,
    }
    for name, value in numbers.items():
        if not 0 <= value <= 3600:
            raise UserError(f"--{name} is 0 to 3600, not {value}")
    if not 1 <= arguments.image_quality <= 95:
        raise UserError(f"--image-quality is 1 to 95, not {arguments.image_quality}")
    if arguments.shift not in SHIFTS:
        raise UserError(f"--shift {unknown_choice(arguments.shift, tuple(SHIFTS))}")
    check_scenarios(arguments.seed, arguments.episodes, arguments.marker)
    check_weather(arguments.weather)


COMMAND = cli.Command("phantom.lab", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
