"""The control loop: at each tick what is newest, a chunk where one is due, and one limited action to the arm.

1. Features of the newest pictures are made beside the loop (`features`); it takes those that are there.
2. What is seen at a tick is put together (`observing`); what is missing, old or beyond a limit is a fault (`safety`).
3. Without a fault the policy predicts where a chunk is due, and the chunks give the tick's action (`planning`), which a
   residual corrects by the newest sensor window.
4. The action is cut to its limits, or the arm is held, or stopped; what is decided is sent, and told (`run_record`).

An episode begins with the first state, or where the start was reached, and ends when the robot's program says so.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vla_jax.live.clock import LocalClock
from vla_jax.live.features import FeatureProcess, Features
from vla_jax.live.log import LiveLog
from vla_jax.live.newest import NewestOfAll
from vla_jax.live.observing import PICTURES, SENSOR, STATE, Observer
from vla_jax.live.planning import ChunkPlan
from vla_jax.live.predicting import Predictor
from vla_jax.live.quiet import quiet_interpreter
from vla_jax.live.robot_link import RobotLink
from vla_jax.live.run_record import RunRecord, TickFacts
from vla_jax.live.safety import Decision, SafetyLimits, SafetyMonitor
from vla_jax.live.status import StatusLine
from vla_jax.live.ticks import Tick, Ticks
from vla_jax.policy.chunk_execution import Execution, Noise
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.residual import Residual

NO_CHUNK = "no chunk yet"


class StopNow(Exception):
    """Somebody asked the loop to stop; the text says who."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs."""

    execution: Execution = field(default_factory=Execution)
    noise: Noise = "chunk"
    """How often a policy's noise is drawn."""
    dry_run: bool = False
    """Sends nothing."""
    seconds: float | None = None
    """Ends after so long; None goes on."""
    episodes: int | None = None
    """Ends after so many episodes."""


@dataclass(frozen=True)
class Ending:
    """Why the loop ended. is_fault: whether nobody asked for it."""

    why: str
    is_fault: bool


class LiveLoop:
    """Runs a policy on a robot.

    limits_at: from an episode's first pose to its limits. asked_to_stop: returns who asks for a stop, None while nobody
    does; it is called every 20 ms. tell_sent: is told of each action that was sent, and when. residual: corrects each
    tick's action; it must be warm.
    """

    def __init__(
        self,
        policy: InsertionPolicy,
        link: RobotLink,
        newest: NewestOfAll,
        features: FeatureProcess,
        predictor: Predictor,
        limits_at: Callable[[np.ndarray], SafetyLimits],
        clock: LocalClock,
        settings: LoopSettings,
        *,
        log: LiveLog | None = None,
        status: StatusLine | None = None,
        asked_to_stop: Callable[[], str | None] = lambda: None,
        tell_sent: Callable[[list[float], float], None] | None = None,
        residual: Residual | None = None,
    ) -> None:
        self._link = link
        self._newest = newest
        self._features = features
        self._limits_at = limits_at
        self._clock = clock
        self._settings = settings
        self._asked_to_stop = asked_to_stop
        self._tell_sent = tell_sent
        self._residual = residual
        self._observer = Observer(policy, newest)
        self._plan = ChunkPlan(policy, predictor, settings.execution, settings.noise)
        self._record = RunRecord(policy.data, link, newest, features, clock, log, status)
        self._still = policy.data.actions.before_first
        self._rate_hz = policy.data.actions.control_hz
        self._monitor: SafetyMonitor | None = None
        self._episode = 0
        self._action_id = 0
        self._began_at = -np.inf
        self._ended_before = 0

    def run(self) -> Ending:
        """Runs until it is to end, then stops the arm."""
        begun = time.monotonic()
        ending = Ending("an error", True)
        with quiet_interpreter() as use_idle_time:
            try:
                self._record.event("start", "dry run: nothing is sent" if self._settings.dry_run else "")
                self._ask_to_start()
                ticks = Ticks(1.0 / self._rate_hz)
                while True:
                    why = self._tick(ticks.wait(self._watch))
                    if why is not None:
                        ending = Ending(why, True)
                        break
                    if self._is_done(time.monotonic() - begun):
                        ending = Ending("done", False)
                        break
                    use_idle_time(ticks.idle_s)
            except StopNow as stop:
                ending = Ending(str(stop), False)
            finally:
                self._stop_arm(ending.why)
        return ending

    def _tick(self, tick: Tick) -> str | None:
        """Does one tick; returns why the arm was stopped, None where it goes on."""
        facts = TickFacts(tick, now=self._clock.now(), woke=time.monotonic())
        self._record.changes(facts.now)
        if self._monitor is None and self._begins():
            self._begin(facts.now)
        monitor = self._monitor
        if monitor is None:
            self._tell(facts)
            return self._link.failure
        if self._newest.episodes_ended > self._ended_before:
            self._end(facts.now)
            return None
        self._act(facts, monitor)
        self._tell(facts)
        self._action_id += 1
        decision = facts.decision
        return decision.reasons[0] if decision is not None and decision.intervention == "stop" else None

    def _act(self, facts: TickFacts, monitor: SafetyMonitor) -> None:
        """Looks, decides and sends."""
        facts.seen = self._observer.look(facts.now, self._usable_features(), monitor.previous, self._began_at)
        facts.looked_s = time.monotonic() - facts.woke
        faults = monitor.faults(facts.seen) + self._own_faults()
        if not faults:
            faults += self._choose_action(facts)
        self._plan.advance()
        facts.decision = monitor.decide(facts.now, facts.raw, facts.seen, faults)
        facts.is_sent = self._send(facts.decision)
        # While there is no chunk yet, the one that is under way stays wanted.
        if facts.decision.intervention == "hold" and faults != [NO_CHUNK]:
            self._plan.forget()
        self._record.decided(facts.now, facts.decision)

    def _choose_action(self, facts: TickFacts) -> list[str]:
        """Takes the tick's action of the chunks; returns why there is none."""
        facts.prediction = self._plan.predict(self._observer.parts)
        if facts.prediction is not None and facts.prediction.chunk is None:
            return [facts.prediction.why]
        action = self._plan.action()
        if action is None:
            return [NO_CHUNK]
        facts.raw = action if self._residual is None else self._corrected(action, self._residual)
        return []

    def _corrected(self, action: Float[np.ndarray, " a"], residual: Residual) -> Float[np.ndarray, " a"]:
        parts = self._observer.parts
        age = np.array([self._plan.chunk_age])
        return residual.correct(action[None], age, parts["sensor"], parts["has_sensor"])[0]

    def _tell(self, facts: TickFacts) -> None:
        self._record.tick(facts, episode=self._episode, action_id=self._action_id, ahead=self._plan.num_ahead)

    def _usable_features(self) -> Features | None:
        """Returns the newest features, if their pictures are of this episode: before it there was another scene."""
        features = self._features.newest
        return None if features is None or features.oldest < self._began_at else features

    def _own_faults(self) -> list[str]:
        return [failure for failure in (self._link.failure, self._features.failure) if failure is not None]

    def _begins(self) -> bool:
        """Whether an episode begins: the arm has told its state since the last one, and is where it should start."""
        state = self._newest.last_state
        if state is None or state.received <= self._newest.episode_ended_at:
            return False
        return self._link.is_at_start(state)

    def _begin(self, now: float) -> None:
        state = self._newest.last_state
        assert state is not None, "an episode begins with a state"
        self._monitor = SafetyMonitor(self._limits_at(np.array(state.pose)), self._still)
        self._plan.begin_episode()
        self._began_at = state.time
        self._episode += 1
        self._action_id = 0
        self._ended_before = self._newest.episodes_ended
        self._record.episode_begins(now)

    def _end(self, now: float) -> None:
        """Ends the episode: nothing moves until the next."""
        self._monitor = None
        if not self._settings.dry_run:
            self._link.move(self._still)
        self._record.event("episode_end", now=now)
        self._ask_to_start()

    def _ask_to_start(self) -> None:
        if not self._settings.dry_run and self._link.start():
            self._record.event("start_command")

    def _is_done(self, seconds: float) -> bool:
        settings = self._settings
        if settings.seconds is not None and seconds >= settings.seconds:
            return True
        return settings.episodes is not None and self._monitor is None and self._episode >= settings.episodes

    def _watch(self) -> None:
        """Looks between ticks whether a stream has stopped, or somebody asks for a stop."""
        who = self._asked_to_stop()
        if who is not None:
            raise StopNow(who)
        monitor = self._monitor
        if monitor is None or monitor.is_holding or monitor.is_stopped:
            return
        now = self._clock.now()
        for name, received in self._received_at().items():
            limit = monitor.limits.max_age_s.get(name)
            if limit is not None and now - received > limit:
                decision = monitor.hold(now, f"{name} too old")
                self._send(decision)
                self._plan.forget()
                self._record.decided(now, decision)
                return

    def _received_at(self) -> Mapping[str, float]:
        newest = self._newest
        received = {STATE: newest.states.received, PICTURES: newest.pictures.received}
        if newest.rows is not None:
            received[SENSOR] = newest.rows.received
        return received

    def _send(self, decision: Decision) -> bool:
        if self._settings.dry_run:
            return False
        if decision.intervention == "stop":
            return self._link.stop()
        is_sent = self._link.move(decision.action)
        if is_sent and self._tell_sent is not None:
            self._tell_sent(decision.action.tolist(), self._clock.now())
        return is_sent

    def _stop_arm(self, why: str) -> None:
        is_sent = not self._settings.dry_run and self._link.stop()
        self._record.event("stop", why, sent=is_sent)
