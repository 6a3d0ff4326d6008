"""Where the lab's programs are met."""

from dataclasses import dataclass

from vla_jax.errors import UserError
from vla_jax.live import wire


@dataclass(frozen=True)
class LabPorts:
    """The robot's computer, and what we listen at."""

    robot: str = "127.0.0.1"
    """Host name or address of the robot's computer."""
    bind: str = "0.0.0.0"
    """Our address that cameras and sensor send to; by default all of this computer's."""
    camera_port: int = wire.CAMERA_PORT
    """Port that the cameras' program connects to."""
    robot_port: int = wire.ROBOT_PORT
    """Port at which the robot's computer tells its state."""
    sensor_port: int = wire.SENSOR_PORT
    """Port that the sensor's datagrams come to."""
    command_port: int = wire.COMMAND_PORT
    """Port at which the robot's computer takes commands."""

    def __post_init__(self) -> None:
        for name in ("camera_port", "robot_port", "sensor_port", "command_port"):
            if not 1 <= getattr(self, name) <= 65535:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is no port; give one from 1 to 65535"
                )
