"""The control loop: at each tick what is newest, a chunk where one is due, and one limited action to the arm.

1. Features of the newest pictures are made beside the loop (`features`); it takes those that are there.
2. What is seen at a tick is put together (`observing`); what is missing, old or beyond a limit is a fault (`safety`).
3. Without a fault the policy predicts (`predicting`), and the chunks give the tick's action (`policy.chunk_execution`).
4. The action is cut to its limits, or the arm is held, or stopped; what is decided is sent, and logged.

An episode begins with the first state, or where the start was reached, and ends when the robot's program says so.
"""

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_jax.live.clock import LocalClock
from vla_jax.live.features import FeatureProcess, Features
from vla_jax.live.log import LiveLog
from vla_jax.live.newest import NewestOfAll
from vla_jax.live.observing import PICTURES, SENSOR, STATE, Observer, Seen
from vla_jax.live.predicting import Prediction, Predictor
from vla_jax.live.robot_link import RobotLink
from vla_jax.live.safety import Decision, SafetyLimits, SafetyMonitor
from vla_jax.live.status import Status, StatusLine
from vla_jax.live.ticks import Tick, Ticks
from vla_jax.policy.chunk_execution import ChunkQueue, Execution
from vla_jax.policy.insertion_policy import InsertionPolicy

SWITCH_INTERVAL_S = 5e-4
"""How long another thread may keep the interpreter from a tick that is due."""
COLLECT_EVERY_S = 5.0
COLLECT_IDLE_S = 0.05


class StopNow(Exception):
    """Somebody asked the loop to stop; the text says who."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs."""

    execution: Execution = field(default_factory=Execution)
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
    does; it is called every 20 ms. tell_sent: is told of each action that was sent, and when.
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
    ) -> None:
        self._policy = policy
        self._link = link
        self._newest = newest
        self._features = features
        self._predictor = predictor
        self._limits_at = limits_at
        self._clock = clock
        self._settings = settings
        self._log = log
        self._status = status
        self._asked_to_stop = asked_to_stop
        self._tell_sent = tell_sent
        self._observer = Observer(policy, newest)
        self._still = policy.data.actions.before_first
        self._rate_hz = policy.data.actions.rate_hz or 10.0
        self._monitor: SafetyMonitor | None = None
        self._queue = ChunkQueue(settings.execution, self._still)
        self._queue_tick = 0
        self._newest_chunk = -1
        self._asked_from = 0
        self._owes_chunk = False
        self._episode = 0
        self._action_id = 0
        self._began_at = -np.inf
        self._ended_before = 0
        self._missed = 0
        self._reasons: tuple[str, ...] = ()
        self._jumps: dict[str, int] = {}
        self._deaths = 0
        self._collected_at = time.monotonic()

    def run(self) -> Ending:
        """Runs until it is to end, then stops the arm."""
        switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.disable()
        begun = time.monotonic()
        ending = Ending("an error", True)
        try:
            self._event("start", "dry run: nothing is sent" if self._settings.dry_run else "")
            self._ask_to_start()
            ticks = Ticks(1.0 / self._rate_hz)
            while True:
                tick = ticks.wait(self._watch)
                self._missed += tick.missed
                why = self._tick(tick)
                if why is not None:
                    ending = Ending(why, True)
                    break
                if self._is_done(time.monotonic() - begun):
                    ending = Ending("done", False)
                    break
                self._use_idle_time(ticks)
        except StopNow as stop:
            ending = Ending(str(stop), False)
        finally:
            self._stop_arm(ending.why)
            gc.enable()
            gc.unfreeze()
            sys.setswitchinterval(switch_interval)
        return ending

    def _tick(self, tick: Tick) -> str | None:
        """Does one tick; returns why the arm was stopped, None where it goes on."""
        woke = time.monotonic()
        now = self._clock.now()
        self._note_changes(now)
        if self._monitor is None and self._begins():
            self._begin(now)
        monitor = self._monitor
        if monitor is None:
            self._record(tick, now, woke, None, None, None, None, is_sent=False)
            return self._link.failure
        if self._newest.episodes_ended > self._ended_before:
            self._end(now)
            return None
        features = self._usable_features()
        seen = self._observer.look(now, features, monitor.previous, self._began_at)
        looked = time.monotonic()
        faults = monitor.faults(seen) + self._own_faults()
        prediction, raw = None, None
        if not faults:
            prediction = self._predict(faults)
            raw = None if faults else self._queue.action(self._queue_tick)
            if raw is self._still:
                faults.append("no chunk yet")
        self._queue_tick += 1
        decision = monitor.decide(now, None if faults else raw, seen, faults)
        is_sent = self._send(decision)
        if decision.intervention == "hold" and raw is not self._still:
            self._start_afresh()
        self._note_decision(now, decision)
        self._record(
            tick, now, woke, seen, decision, prediction, raw, is_sent=is_sent, looked_s=looked - woke
        )
        self._action_id += 1
        return decision.reasons[0] if decision.intervention == "stop" else None

    def _predict(self, faults: list[str]) -> Prediction | None:
        """Asks for a chunk where one is due, and takes what has come."""
        collected = self._predictor.collect()
        if self._queue.needs_chunk(self._queue_tick) or self._owes_chunk:
            self._owes_chunk = self._predictor.is_busy
            if not self._owes_chunk:
                asked = self._predictor.ask(self._queue_tick, self._observer.parts)
                collected = asked or collected
        if collected is None:
            return None
        if collected.chunk is None:
            faults.append(collected.why)
        elif collected.tick >= self._asked_from:
            self._queue.add(collected.tick, collected.chunk)
            self._newest_chunk = collected.tick
        return collected

    def _start_afresh(self) -> None:
        """Forgets the chunks: after a hold they are plans for another moment."""
        self._queue = ChunkQueue(self._settings.execution, self._still)
        # What is under way was asked for before: it is known by its tick, which never comes again.
        self._asked_from = self._queue_tick
        self._owes_chunk = True
        self._newest_chunk = -1

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
        self._start_afresh()
        self._began_at = state.time
        self._episode += 1
        self._action_id = 0
        self._ended_before = self._newest.episodes_ended
        self._reasons = ()
        self._event("episode_begin", now=now)

    def _end(self, now: float) -> None:
        """Ends the episode: nothing moves until the next."""
        self._monitor = None
        if not self._settings.dry_run:
            self._link.move(self._still)
        self._event("episode_end", now=now)
        self._ask_to_start()

    def _ask_to_start(self) -> None:
        if not self._settings.dry_run and self._link.start():
            self._event("start_command")

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
                self._start_afresh()
                self._note_decision(now, decision)
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
        self._event("stop", why, sent=is_sent)

    def _note_decision(self, now: float, decision: Decision) -> None:
        """Logs where interventions begin, change and end."""
        if decision.reasons == self._reasons:
            return
        if decision.intervention is None:
            self._event("resumed", now=now)
            if self._status is not None:
                self._status.say("resumed")
        else:
            text = ", ".join(decision.reasons)
            self._event("intervention", text, now=now, intervention=decision.intervention)
            if self._status is not None and decision.intervention != "limit":
                self._status.say(f"{decision.intervention}: {text}")
        self._reasons = decision.reasons

    def _note_changes(self, now: float) -> None:
        for name, (jumps, seconds) in self._link.jumps.items():
            if jumps > self._jumps.get(name, 0):
                self._event("clock_step", f"{name}: the clock jumped by {-seconds:+.3f} s", now=now)
            self._jumps[name] = jumps
        if self._features.deaths > self._deaths:
            self._deaths = self._features.deaths
            self._event("encoder_restarted", "the backbone's process had died", now=now)

    def _record(
        self,
        tick: Tick,
        now: float,
        woke: float,
        seen: Seen | None,
        decision: Decision | None,
        prediction: Prediction | None,
        raw: np.ndarray | None,
        *,
        is_sent: bool,
        looked_s: float = 0.0,
    ) -> None:
        """Logs the tick and shows the status."""
        sent_at = self._clock.now()
        mode = "wait" if decision is None else "hold" if decision.intervention in ("hold", "stop") else "run"
        late_ms = 1e3 * (tick.woke - tick.scheduled)
        newest, features = self._newest, self._features.newest
        ages = {} if seen is None else self._ages(seen)
        num_rows = 0 if newest.rows is None else len(newest.rows)
        ahead = 0
        if self._newest_chunk >= 0:
            horizon = self._policy.data.actions.horizon
            ahead = max(0, self._newest_chunk + horizon - self._queue_tick)
        if self._log is not None:
            source = None if seen is None else seen.times.get(SENSOR, seen.times.get(STATE))
            self._log.tick(
                {
                    "timestamp": now - (tick.woke - tick.scheduled),
                    "episode": self._episode,
                    "action_id": self._action_id,
                    "late_ms": late_ms,
                    "missed": tick.missed,
                    "mode": mode,
                    "vl_update_number": 0 if features is None else features.number,
                    "sensor_encoding_time": 1e3 * looked_s,
                    "action_prediction_time": None if prediction is None else 1e3 * prediction.seconds,
                    "total_time": 1e3 * (time.monotonic() - woke),
                    "buffers": {
                        "sensor": num_rows,
                        "state": len(newest.states),
                        "features": int(features is not None),
                    },
                    "queue": ahead,
                    "age_ms": {name: None if age is None else 1e3 * age for name, age in ages.items()},
                    "sensor_to_command_ms": 1e3 * (sent_at - source)
                    if is_sent and source is not None
                    else None,
                    "raw_action": raw,
                    "action": None if decision is None else decision.action,
                    "pose": None if seen is None or seen.pose is None else seen.pose.copy(),
                    "sent": is_sent,
                    "intervention": None if decision is None else decision.intervention,
                    "reasons": () if decision is None else decision.reasons,
                }
            )
        if self._status is not None and self._status.is_due:
            self._show(mode, ages, late_ms, ahead, decision)

    def _ages(self, seen: Seen) -> dict[str, float | None]:
        names = [STATE, *([] if self._newest.rows is None else [SENSOR]), "features"]
        return {name: seen.age(name) for name in [*names, *(self._policy.data.views or ())]}

    def _show(
        self,
        mode: str,
        ages: Mapping[str, float | None],
        late_ms: float,
        queue: int,
        decision: Decision | None,
    ) -> None:
        assert self._status is not None
        newest = self._newest
        received = {STATE: newest.states.counts.received}
        if newest.rows is not None:
            received[SENSOR] = newest.rows.counts.received
        received["features"] = self._features.count
        action = ""
        if decision is not None:
            names = self._policy.data.actions.names
            action = " ".join(f"{n} {v:+.3f}" for n, v in zip(names, decision.action, strict=True))
        reasons = () if decision is None else decision.reasons
        self._status.show(
            Status(mode, self._episode, received, ages, self._missed, late_ms, queue, action, reasons)
        )

    def _event(self, event: str, text: str = "", *, now: float | None = None, **more: Any) -> None:
        if self._log is not None:
            self._log.event(self._clock.now() if now is None else now, event, text, **more)

    def _use_idle_time(self, ticks: Ticks) -> None:
        """Collects garbage where nothing is due."""
        if time.monotonic() - self._collected_at > COLLECT_EVERY_S and ticks.idle_s > COLLECT_IDLE_S:
            gc.collect()
            self._collected_at = time.monotonic()
