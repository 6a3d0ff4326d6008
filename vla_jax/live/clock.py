"""One clock for all streams: this computer's, and how far another's is from it.

The least delay of the network cannot be told from the distance of two clocks: what is estimated is their sum, so that
things seem younger by that delay (some 0.1 ms on a cable, nothing on the same computer).
"""

import time
from collections import deque

import numpy as np

WINDOW_S = 20.0
"""Delays are looked at for so long; a drift of 100 ppm is 2 ms in it."""
LONE_S = 0.005
"""Most messages are held up somewhere, and in a stream that keeps its order nearly all wait for one before them; those
that were not tell the offset. A least delay that is so far below the next one could be a wrong stamp."""
JUMP_S = 0.25
"""A delay further than this from the usual one is a late message, or a clock that was set."""
CONSISTENT_S = 0.1
NUM_CONSISTENT = 3
STEADY_S = 2.0
MAX_LATE_S = 5.0
_RECOMPUTE_S = 0.1
_MAX_DELAYS = 4096
_MANY = 100


class LocalClock:
    """Unix time that never jumps: that of the start, and from there on the monotonic clock's."""

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def now(self) -> float:
        """Returns the unix time in seconds."""
        return self._base + time.monotonic()


class SenderClock:
    """How far a sender's clock is from ours: the least (receive − send time) of a sliding window, or the second least
    where the least is alone (`LONE_S`).

    The law: the estimate is off by the least delay of the network, by how far the clock drifts within the window where
    that makes delays longer (2 ms at 100 ppm), and by how much more than the least of the network the least in the
    window was. With 40 messages a second or more, each up to 50 ms late, all of it is below 5 ms from 2 s on where
    messages may overtake each other (UDP), and from 10 s on where each waits for those before it (TCP, 100 a second);
    after a jump as after the first message.

    A drift is followed. A jump is believed after a few messages that agree with each other: at once where they would
    come from the future or stamps run backwards, after `STEADY_S` where they might as well be messages that were held
    up; until then these are too old rather than too young. Not for several threads.

    Attributes:
        offset: our time − the sender's, seconds; 0 before the first messages.
        is_known: whether there was a first message.
        jumps: how often the clock has jumped.
        last_jump: by how much it did last, seconds; positive where the sender's clock was set back.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.offset = 0.0
        self.is_known = False
        self.jumps = 0
        self.last_jump = 0.0
        self._window_s = window_s
        self._delays: deque[tuple[float, float]] = deque(maxlen=_MAX_DELAYS)
        self._odd: list[tuple[float, float]] = []
        self._last_sent = -np.inf
        self._computed_at = -np.inf

    def observe(self, sent: float, received: float) -> bool:
        """Takes the send time of a message (the sender's clock) and when it was received (ours).

        Returns whether its times can be used: not where it would be from the future, or from long ago.
        """
        delay = received - sent
        excess = delay - self.offset
        if self.is_known and abs(excess) <= JUMP_S:
            self._odd.clear()
            self._delays.append((received, delay))
            self._last_sent = max(self._last_sent, sent)
            self._estimate(received)
            return True
        if self._odd and abs(delay - (self._odd[0][1] - self._odd[0][0])) > CONSISTENT_S:
            self._odd.clear()
        # The list stays short: what is odd for longer is believed, or interrupted by what is not.
        if len(self._odd) < NUM_CONSISTENT:
            self._odd.append((sent, received))
        else:
            self._odd[-1] = (sent, received)
        if self._is_believed(excess):
            self._restart()
            return True
        return self.is_known and JUMP_S < excess <= MAX_LATE_S

    def _is_believed(self, excess: float) -> bool:
        if len(self._odd) < NUM_CONSISTENT:
            return False
        if not self.is_known or excess < 0:
            return True
        runs_backwards = self._odd[0][0] < self._last_sent - JUMP_S
        return runs_backwards or self._odd[-1][1] - self._odd[0][1] >= STEADY_S

    def _restart(self) -> None:
        before = self.offset
        self._delays.clear()
        self._delays.extend((received, received - sent) for sent, received in self._odd)
        self._last_sent = self._odd[-1][0]
        self._odd.clear()
        self._computed_at = -np.inf
        self._estimate(self._delays[-1][0])
        if self.is_known:
            self.jumps += 1
            self.last_jump = self.offset - before
        self.is_known = True

    def _estimate(self, now: float) -> None:
        if now - self._computed_at < _RECOMPUTE_S and len(self._delays) >= _MANY:
            return
        self._computed_at = now
        # After a pause a single message tells little.
        while len(self._delays) > NUM_CONSISTENT and self._delays[0][0] < now - self._window_s:
            self._delays.popleft()
        delays = np.fromiter((delay for _, delay in self._delays), np.float64, len(self._delays))
        least, second = np.partition(delays, 1)[:2]
        self.offset = float(second if second - least > LONE_S else least)
