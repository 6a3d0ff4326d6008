"""What a network and failing senders do to messages: lost, doubled, reordered, late and damaged; senders that restart.

Equal seeds and messages give equal faults.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from vla_jax.contracts.checks import unknown_choice
from vla_jax.errors import UserError

STREAMS = ("cameras", "robot", "sensor")


@dataclass(frozen=True)
class FaultRates:
    """Faults of one stream. The first four are probabilities of each message."""

    lost: float = 0.0
    doubled: float = 0.0
    reordered: float = 0.0
    """It arrives after the next one."""
    damaged: float = 0.0
    """Cut off, changed in some bytes, replaced by noise, or with a part too many or too few."""
    late: float = 0.0
    """A message takes up to so many seconds more, uniformly. TCP keeps its order; datagrams may overtake."""
    restart: float = 0.0
    """Mean seconds from one restart of the sender to the next, at random; 0: it never restarts."""
    down: float = 1.0
    """Seconds for which a sender that restarts is gone."""


def read_faults(words: Sequence[str]) -> dict[str, FaultRates]:
    """Returns the faults of each stream from words such as "lost=0.02" (all streams) and "sensor.late=0.05".

    Raises:
        UserError: a word names no stream or fault, or its value does not fit.
    """
    rates = dict.fromkeys(STREAMS, FaultRates())
    names = tuple(entry.name for entry in fields(FaultRates))
    for word in words:
        where, _, text = word.partition("=")
        stream, _, name = where.rpartition(".")
        if stream and stream not in STREAMS:
            raise UserError(f"--faults {word}: the stream is {unknown_choice(stream, STREAMS)}")
        if name not in names:
            raise UserError(f"--faults {word}: the fault is {unknown_choice(name, names)}")
        for each in [stream] if stream else STREAMS:
            rates[each] = replace(rates[each], **{name: _value(word, name, text)})
    return rates


def _value(word: str, name: str, text: str) -> float:
    highest = 1.0 if name in ("lost", "doubled", "reordered", "damaged") else 3600.0
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= highest:
        raise UserError(f"--faults {word}: give a number from 0 to {highest:g} after the sign =")
    return value


@dataclass(frozen=True)
class Delivery:
    """A message on its way. tag: the number it was sent with; None where it is damaged."""

    at_s: float
    parts: list[bytes]
    tag: int | None


class FaultyLink:
    """One stream's way to the receiver. keeps_order: as TCP does."""

    def __init__(self, rates: FaultRates, rng: np.random.Generator, *, keeps_order: bool) -> None:
        self._rates, self._rng, self._keeps_order = rates, rng, keeps_order
        self._last_s = -np.inf
        self._held: list[Delivery] = []
        self.counts: Counter[str] = Counter()

    def pass_on(self, parts: list[bytes], tag: int, now_s: float) -> list[Delivery]:
        """Returns what arrives, and when, because this message was sent now: it, a copy, one held before, nothing."""
        rates = self._rates
        lost, doubled, reordered, damaged, late = self._rng.random(5)
        released, self._held = self._held, []
        if lost < rates.lost:
            self.counts["lost"] += 1
            return self._in_order(released, now_s)
        delivery = Delivery(now_s + rates.late * late, parts, tag)
        if damaged < rates.damaged:
            self.counts["damaged"] += 1
            delivery = replace(delivery, parts=damage(parts, self._rng), tag=None)
        deliveries = [delivery]
        if doubled < rates.doubled:
            self.counts["doubled"] += 1
            deliveries *= 2
        if reordered < rates.reordered and not released:
            self.counts["reordered"] += 1
            self._held = deliveries
            return []
        return self._in_order(deliveries, now_s) + self._in_order(released, now_s)

    def _in_order(self, deliveries: list[Delivery], now_s: float) -> list[Delivery]:
        """Returns them no earlier than now and, where the order is kept, than what was delivered before."""
        at = [max(each.at_s, now_s, self._last_s if self._keeps_order else 0.0) for each in deliveries]
        self._last_s = max([self._last_s, *at])
        return [replace(each, at_s=moment) for each, moment in zip(deliveries, at, strict=True)]


def damage(parts: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """Returns a message of which something is wrong."""
    which = int(rng.integers(len(parts)))
    part = parts[which]
    match int(rng.integers(5)):
        case 0:
            part = part[: int(rng.integers(len(part)))]
        case 1:
            part = rng.bytes(len(part))
        case 2:
            changed = bytearray(part)
            for place in rng.integers(len(part), size=8):
                changed[place] = int(rng.integers(256))
            part = bytes(changed)
        case 3:
            part += rng.bytes(int(rng.integers(1, 4000)))
        case _:
            return parts[:which] + parts[which + 1 :] if len(parts) > 1 else [b""]
    return [*parts[:which], part, *parts[which + 1 :]]


class Restarts:
    """When a sender is gone: for a while, again and again, at random moments."""

    def __init__(self, rates: FaultRates, rng: np.random.Generator) -> None:
        self._rates, self._rng = rates, rng
        self._gone_s: float | None = None

    def is_down(self, now_s: float) -> bool:
        """Whether the sender is gone; ask in order of time."""
        if self._rates.restart == 0:
            return False
        if self._gone_s is None or now_s >= self._gone_s + self._rates.down:
            since = now_s if self._gone_s is None else self._gone_s + self._rates.down
            self._gone_s = since + self._rates.down + self._rng.exponential(self._rates.restart)
        return now_s >= self._gone_s


def make_links(rates: Mapping[str, FaultRates], seed: int) -> dict[str, tuple[FaultyLink, Restarts]]:
    """Returns each stream's link and restarts."""
    made = {}
    for stream, sequence in zip(STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True):
        for_link, for_restarts = (np.random.default_rng(each) for each in sequence.spawn(2))
        link = FaultyLink(rates[stream], for_link, keeps_order=stream != "sensor")
        made[stream] = (link, Restarts(rates[stream], for_restarts))
    return made
