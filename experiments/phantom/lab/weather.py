"""What goes wrong in the lab, on request."""

from dataclasses import dataclass

from experiments.phantom.camera import VIEWS
from experiments.phantom.lab.faults import read_faults
from vla_jax.contracts.checks import unknown_choice
from vla_jax.errors import UserError


@dataclass(frozen=True)
class Weather:
    """What goes wrong."""

    clock_offset: float = 0.0
    """Seconds by which the sensor computer's clock is ahead."""
    clock_drift: float = 0.0
    """How much too fast it runs, parts per million."""
    clock_step: tuple[float, float] | None = None
    """After how many seconds it jumps, and by how many."""
    faults: tuple[str, ...] = ()
    """Of messages, as [STREAM.]KIND=NUMBER; the stream is cameras, robot or sensor, all of them where none is named.
    Probabilities: lost, doubled, reordered, damaged. Seconds: late (up to so many more), restart (mean time from one
    restart of the sender to the next), down (how long it is gone then, 1)."""
    fault_seed: int = 0
    """Equal seeds give equal faults of equal messages."""
    stop_camera: tuple[str, float] | None = None
    """A view that sends no more pictures after so many seconds of each insertion."""


def check_weather(weather: Weather) -> None:
    """Raises UserError where it cannot be."""
    read_faults(weather.faults)
    if weather.stop_camera is not None and weather.stop_camera[0] not in VIEWS:
        raise UserError(f"--stop-camera {unknown_choice(weather.stop_camera[0], VIEWS)}")
    after_s, jump_s = weather.clock_step or (0.0, 0.0)
    if not max(abs(weather.clock_offset), abs(jump_s)) <= 1e8 or not 0 <= after_s <= 1e8:
        raise UserError("--clock-offset and both numbers of --clock-step are at most 1e8 seconds")
    if not abs(weather.clock_drift) <= 1e5:
        raise UserError("--clock-drift is at most 1e5 ppm")
