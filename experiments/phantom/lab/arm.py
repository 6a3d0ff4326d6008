"""The robot's program: what its commands make the arm do. A function of the commands, their times and nothing else.

The program has a loop of 10 Hz, which is the simulator's step. What `dpose` commands have added up to when a step
begins is executed as a velocity from then on, cut to the arm's largest; while no other comes it stays in force, until
0.4 s after the last command arrived. `apose` goes to a pose at the largest speed. `stop` stops until `start`. So does
the watchdog, where nothing came for 5 s after a command.
"""

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from experiments.phantom.simulator import STEP_S
from vla_jax.live.wire import Command, MoveBy, MoveTo, Start, Stop

_MAX_WAITING = 1000
"""Commands that may come during a step; of more the newest count."""


@dataclass(frozen=True)
class ArmRules:
    """What the robot's program allows."""

    max_speed: float = 10.0
    """Largest speed along an axis, mm/s."""
    max_turn: float = 30.0
    """Largest speed of an angle, degrees/s."""
    expiry_s: float = 0.4
    """After which a velocity ends that no command renews."""
    watchdog_s: float = 5.0
    """Silence after a command that stops the arm."""

    @property
    def largest(self) -> Float[np.ndarray, " 6"]:
        """Largest velocity."""
        return np.repeat([self.max_speed, self.max_turn], 3)


class Arm:
    """An arm that is commanded. Times are seconds on one clock; `receive` may be called on another thread.

    counts: start, dpose, apose and stop commands; clamped, steps whose velocity was cut; expired velocities; watchdog,
    how often it struck; refused, movements while it was stopped; steps_without, steps that executed an older velocity.
    """

    def __init__(self, rules: ArmRules) -> None:
        self._rules = rules
        self._inbox: deque[tuple[Command, float]] = deque(maxlen=_MAX_WAITING)
        self.counts: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """Makes it ready at the start of an episode: it stands still, and forgets what it was told."""
        self._inbox.clear()
        self._moved = np.zeros(6)
        self._has_moved = False
        self._velocity: np.ndarray | None = None
        self._renewed_s = self._heard_s = -np.inf
        self._target: np.ndarray | None = None
        self._is_stopped = False

    def receive(self, command: Command, time_s: float) -> None:
        """Takes a command that has just arrived."""
        self._inbox.append((command, time_s))

    def advance(self, start_s: float, pose: Float[np.ndarray, " 6"]) -> Float[np.ndarray, " 6"]:
        """Returns what the arm moves by during the step that begins at `start_s`, mm and degrees.

        pose: where it is. Commands that arrive during the step are for the next one.
        """
        while self._inbox and self._inbox[0][1] <= start_s:
            self._obey(*self._inbox.popleft())
        if np.isfinite(self._heard_s) and start_s - self._heard_s >= self._rules.watchdog_s:
            self.counts["watchdog"] += 1
            self._heard_s = -np.inf
            self._halt(is_stopped=True)
        if self._target is not None:
            return self._towards(self._target - pose)
        return self._at_velocity(start_s)

    def _obey(self, command: Command, time_s: float) -> None:
        self._heard_s = time_s
        match command:
            case Start(_, pose, _):
                self.counts["start"] += 1
                self._halt(is_stopped=False)
                # Each scenario has a start of its own; where only joints are given, the arm stays.
                self._target = None if pose is None else np.array(pose)
            case Stop():
                self.counts["stop"] += 1
                self._halt(is_stopped=True)
            case MoveBy(delta):
                self.counts["dpose"] += 1
                if self._is_stopped:
                    self.counts["refused"] += 1
                    return
                self._target = None
                self._moved += delta
                self._has_moved, self._renewed_s = True, time_s
            case MoveTo(pose):
                self.counts["apose"] += 1
                if self._is_stopped:
                    self.counts["refused"] += 1
                    return
                self._halt(is_stopped=False)
                self._target = np.array(pose)

    def _halt(self, *, is_stopped: bool) -> None:
        self._is_stopped = is_stopped
        self._velocity, self._target = None, None
        self._moved[:], self._has_moved = 0.0, False

    def _towards(self, remaining: np.ndarray) -> np.ndarray:
        reach = self._rules.largest * STEP_S
        if (np.abs(remaining) <= reach).all():
            self._target = None
        return np.clip(remaining, -reach, reach)

    def _at_velocity(self, start_s: float) -> np.ndarray:
        if self._has_moved:
            wanted, largest = self._moved / STEP_S, self._rules.largest
            self._velocity = np.clip(wanted, -largest, largest)
            self.counts["clamped"] += bool((np.abs(wanted) > largest).any())
            self._moved[:], self._has_moved = 0.0, False
        elif self._velocity is not None:
            self.counts["steps_without"] += 1
        if self._velocity is None:
            return np.zeros(6)
        in_force_s = min(max(self._renewed_s + self._rules.expiry_s - start_s, 0.0), STEP_S)
        moved = self._velocity * in_force_s
        if in_force_s < STEP_S:
            self.counts["expired"] += 1
            self._velocity = None
        return moved
