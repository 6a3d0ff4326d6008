"""The phantom's world on the lab's clock: step by step, each of which is sent while it lasts.

A step of 0.1 s is simulated when it begins, with the velocity that is in force then; what it brings leaves at the
moments at which it happens, `delay_s` later.
"""

import time
from dataclasses import dataclass

import numpy as np

from experiments.phantom import PhantomEnvironment
from experiments.phantom.kinematics import joint_angles
from experiments.phantom.lab.clock import SkewedClock
from experiments.phantom.lab.pictures import camera_jpeg
from experiments.phantom.lab.senders import Post, Senders
from experiments.phantom.simulator import SENSOR_HZ, STEP_S, StepTrace
from vla_jax.contracts.environment import Reading
from vla_jax.live import wire
from vla_jax.live.clock import LocalClock

ROWS_PER_BATCH = 13
"""A datagram every 20 ms, five in a step."""


@dataclass(frozen=True)
class CameraSettings:
    """What the cameras send."""

    width: int = 112
    height: int = 112
    quality: int = 75
    stopped_view: str | None = None
    """A camera that stops in every episode, `stops_after_s` after it began."""
    stops_after_s: float = 0.0


class StreamedWorld:
    """Sends what an environment's steps bring. start_s: when its time 0 is."""

    def __init__(
        self,
        environment: PhantomEnvironment,
        senders: Senders,
        sensor_clock: SkewedClock,
        cameras: CameraSettings,
        delay_s: float,
    ) -> None:
        self.environment = environment
        self.start_s = 0.0
        self._senders, self._sensor_clock, self._cameras = senders, sensor_clock, cameras
        self._delay_s = delay_s
        self._pictured_s = -np.inf

    def send(self, reading: Reading, *, states: slice | None) -> None:
        """Sends the step that ended at the reading. states: which of its 10 of the robot; None: none of them."""
        trace = self.environment.simulator.trace
        self._send_sensor(trace)
        if states is not None:
            for time_s, pose in zip(trace.pose_times_s[states], trace.poses[states], strict=True):
                self._send_state(float(self.start_s + time_s), pose)
        if reading.images and reading.image_time_s > self._pictured_s:
            self._pictured_s = reading.image_time_s
            for view, pixels in reading.images.items():
                self._send_picture(view, reading.image_time_s, pixels)

    def send_end(self) -> None:
        """Says, after the last state, that the episode has ended."""
        end = self.start_s + self.environment.simulator.time_s
        self._senders.post(Post(end + self._delay_s, "robot", end, end, lambda now: wire.encode_end()))

    def _send_sensor(self, trace: StepTrace) -> None:
        if trace.sensor is None:
            return
        taken = self.start_s + trace.sensor_times_s
        stamped = self._sensor_clock.reads(taken)
        for first in range(0, len(taken), ROWS_PER_BATCH):
            rows = slice(first, first + ROWS_PER_BATCH)
            times, values = stamped[rows], trace.sensor[rows]

            def make(now: float, times=times, values=values) -> list[bytes]:
                sent = np.repeat(self._sensor_clock.reads(np.array([now])), len(times))
                return [wire.encode_sensor(wire.SensorBatch(times, sent, values))]

            last = float(taken[rows][-1])
            due = last + 1.0 / SENSOR_HZ + self._delay_s
            self._senders.post(Post(due, "sensor", last, float(times[-1]), make))

    def _send_state(self, moment: float, pose: np.ndarray) -> None:
        joints = np.nan_to_num(joint_angles(pose))  # Out of reach: the phantom's arm goes there nevertheless.

        def make(now: float) -> list[bytes]:
            return wire.encode_state(wire.RobotState(moment, now, 0.0, joints, pose))

        self._senders.post(Post(moment + self._delay_s, "robot", moment, moment, make))

    def _send_picture(self, view: str, time_s: float, pixels: np.ndarray) -> None:
        cameras = self._cameras
        if view == cameras.stopped_view and time_s >= cameras.stops_after_s:
            return
        moment = float(self.start_s + time_s)
        jpeg = camera_jpeg(pixels, cameras.width, cameras.height, cameras.quality)
        message = wire.encode_picture(wire.Picture(view, moment, jpeg))
        self._senders.post(Post(moment + self._delay_s, "cameras", moment, moment, lambda now: message))


class StepClock:
    """Begins a step every 0.1 s, without drift. late_s: how late each one began."""

    def __init__(self, clock: LocalClock) -> None:
        self._clock = clock
        self._first_s = clock.now() + STEP_S
        self._num_steps = 0
        self.late_s: list[float] = []

    def next(self) -> float:
        """Waits for the next step and returns when it should begin."""
        begins = self._first_s + self._num_steps * STEP_S
        self._num_steps += 1
        time.sleep(max(begins - self._clock.now(), 0.0))
        self.late_s.append(self._clock.now() - begins)
        return begins
