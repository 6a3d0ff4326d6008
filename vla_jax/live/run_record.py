"""What a live run tells: a line of the log for each tick and event, and the status for whoever watches.

The fields of a line are in docs/robot.md.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.specs import DataSpec
from vla_jax.live.clock import LocalClock
from vla_jax.live.features import FeatureProcess
from vla_jax.live.log import MEMORY, LiveLog
from vla_jax.live.newest import NewestOfAll
from vla_jax.live.observing import SENSOR, STATE, Seen
from vla_jax.live.predicting import Prediction
from vla_jax.live.robot_link import RobotLink
from vla_jax.live.safety import Decision
from vla_jax.live.status import Status, StatusLine
from vla_jax.live.ticks import Tick
from vla_jax.storage.memory import resident_mb

_LOOK_AT_MEMORY_S = 1.0


@dataclass
class TickFacts:
    """What happened in one tick, noted as it happens."""

    tick: Tick
    now: float
    """When the streams were looked at: unix seconds, our clock. Ages count from here."""
    woke: float
    """The same moment on the monotonic clock."""
    seen: Seen | None = None
    looked_s: float = 0.0
    """For putting the observation together."""
    prediction: Prediction | None = None
    raw: Float[np.ndarray, " a"] | None = None
    """As the chunks gave it, and a residual corrected it."""
    decision: Decision | None = None
    is_sent: bool = False

    @property
    def mode(self) -> str:
        """Whether it waited for an episode, held the arm, or let it run."""
        if self.decision is None:
            return "wait"
        return "hold" if self.decision.intervention in ("hold", "stop") else "run"


class RunRecord:
    """Tells of a run as it goes on; nothing here waits. log, status: None tells nobody."""

    def __init__(
        self,
        data: DataSpec,
        link: RobotLink,
        newest: NewestOfAll,
        features: FeatureProcess,
        clock: LocalClock,
        log: LiveLog | None,
        status: StatusLine | None,
    ) -> None:
        self._data = data
        self._link = link
        self._newest = newest
        self._features = features
        self._clock = clock
        self._log = log
        self._status = status
        self._missed = 0
        self._reasons: tuple[str, ...] = ()
        self._jumps: dict[str, int] = {}
        self._deaths = 0
        self._memory_mb: float | None = None
        self._memory_at = -np.inf

    def event(self, event: str, text: str = "", *, now: float | None = None, **more: Any) -> None:
        """Tells that something happened, by default just now."""
        if self._log is not None:
            self._log.event(self._clock.now() if now is None else now, event, text, **more)

    def episode_begins(self, now: float) -> None:
        """Tells that an episode begins."""
        self._reasons = ()
        self.event("episode_begin", now=now)

    def changes(self, now: float) -> None:
        """Tells which clocks have jumped since the last time, and whether the backbone was started anew."""
        for name, (jumps, seconds) in self._link.jumps.items():
            if jumps > self._jumps.get(name, 0):
                self.event("clock_step", f"{name}: the clock jumped by {-seconds:+.3f} s", now=now)
            self._jumps[name] = jumps
        if self._features.deaths > self._deaths:
            self._deaths = self._features.deaths
            self.event("encoder_restarted", "the backbone's process had died", now=now)

    def decided(self, now: float, decision: Decision) -> None:
        """Tells where interventions begin, change and end."""
        if decision.reasons == self._reasons:
            return
        if decision.intervention is None:
            self.event("resumed", now=now)
            if self._status is not None:
                self._status.say("resumed")
        else:
            text = ", ".join(decision.reasons)
            self.event("intervention", text, now=now, intervention=decision.intervention)
            if self._status is not None and decision.intervention != "limit":
                self._status.say(f"{decision.intervention}: {text}")
        self._reasons = decision.reasons

    def tick(self, facts: TickFacts, *, episode: int, action_id: int, ahead: int) -> None:
        """Tells of a tick. ahead: actions that the newest chunk still has."""
        sent_at = self._clock.now()
        self._missed += facts.tick.missed
        if self._log is not None:
            self._log.tick(self._line(facts, sent_at, episode, action_id, ahead))
        if self._status is not None and self._status.is_due:
            self._status.show(self._shown(facts, episode, ahead))

    def _line(
        self, facts: TickFacts, sent_at: float, episode: int, action_id: int, ahead: int
    ) -> dict[str, Any]:
        newest, features, seen, decision = self._newest, self._features.newest, facts.seen, facts.decision
        source = None if seen is None else seen.times.get(SENSOR, seen.times.get(STATE))
        is_measured = facts.is_sent and source is not None
        rows = {STATE: newest.states} | ({} if newest.rows is None else {SENSOR: newest.rows})
        return {
            "timestamp": facts.now,
            "episode": episode,
            "action_id": action_id,
            "late_ms": 1e3 * (facts.tick.woke - facts.tick.scheduled),
            "missed": facts.tick.missed,
            "mode": facts.mode,
            "vl_update_number": 0 if features is None else features.number,
            "sensor_encoding_time": 1e3 * facts.looked_s,
            "action_prediction_time": None if facts.prediction is None else 1e3 * facts.prediction.seconds,
            "total_time": 1e3 * (time.monotonic() - facts.woke),
            "buffers": {SENSOR: 0}
            | {name: len(each) for name, each in rows.items()}
            | {"features": int(features is not None)},
            "queue": ahead,
            "age_ms": {name: None if age is None else 1e3 * age for name, age in self._ages(seen).items()},
            "clock_s": {name: each.offset for name, each in rows.items()},
            "sensor_to_command_ms": 1e3 * (sent_at - source) if is_measured else None,
            MEMORY: self._memory(),
            "raw_action": facts.raw,
            "action": None if decision is None else decision.action,
            "pose": None if seen is None or seen.pose is None else seen.pose.copy(),
            "sent": facts.is_sent,
            "intervention": None if decision is None else decision.intervention,
            "reasons": () if decision is None else decision.reasons,
        }

    def _shown(self, facts: TickFacts, episode: int, ahead: int) -> Status:
        newest, decision = self._newest, facts.decision
        received = {STATE: newest.states.counts.received}
        if newest.rows is not None:
            received[SENSOR] = newest.rows.counts.received
        received["features"] = self._features.count
        action = ""
        if decision is not None:
            names = self._data.actions.names
            action = " ".join(f"{n} {v:+.3f}" for n, v in zip(names, decision.action, strict=True))
        return Status(
            facts.mode,
            episode,
            received,
            self._ages(facts.seen),
            self._missed,
            1e3 * (facts.tick.woke - facts.tick.scheduled),
            ahead,
            action,
            () if decision is None else decision.reasons,
        )

    def _ages(self, seen: Seen | None) -> dict[str, float | None]:
        if seen is None:
            return {}
        names = [STATE, *([] if self._newest.rows is None else [SENSOR]), "features"]
        return {name: seen.age(name) for name in [*names, *(self._data.views or ())]}

    def _memory(self) -> float | None:
        now = time.monotonic()
        if now - self._memory_at >= _LOOK_AT_MEMORY_S:
            self._memory_mb, self._memory_at = resident_mb(), now
        return self._memory_mb
