"""One clock for all benchmarks: sides timed in turn, so that what else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

ResultT = TypeVar("ResultT")
# What names a side: its name, or name and number of workers.
SideT = TypeVar("SideT")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the rounds of one side of one case came to. A benchmark that knows more of a side extends it.

    seconds: of one call, a value per round. amount: what a call gets done, in `unit`.
    """

    case: str
    side: str
    seconds: tuple[float, ...]
    amount: float
    unit: str

    @property
    def median_s(self) -> float:
        """Seconds of a call."""
        return float(np.median(self.seconds))

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """The lower and the upper quartile of the rounds, seconds of a call."""
        lower, upper = np.quantile(self.seconds, (0.25, 0.75))
        return float(lower), float(upper)

    @property
    def best_s(self) -> float:
        """The fastest round, seconds of a call."""
        return min(self.seconds)

    @property
    def rate(self) -> float:
        """`unit` per second, by the median."""
        return self.amount / self.median_s

    def figures(self) -> dict[str, Any]:
        """Returns what the JSON file holds of it: the fields, with a summary in place of the single rounds."""
        fields = asdict(self)
        rounds = len(fields.pop("seconds"))
        lower, upper = self.quartiles_s
        summary = {
            "rounds": rounds,
            "median_s": self.median_s,
            "lower_quartile_s": lower,
            "upper_quartile_s": upper,
            "best_s": self.best_s,
            "rate": self.rate,
        }
        return fields | summary


def clock(call: Callable[[], ResultT]) -> tuple[float, ResultT]:
    """Returns the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def in_turn(sides: Mapping[SideT, Callable[[], ResultT]], rounds: int) -> dict[SideT, tuple[ResultT, ...]]:
    """Returns the results of `rounds` calls of each side, one call of each after another."""
    results: dict[SideT, list[ResultT]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            results[name].append(call())
    return {name: tuple(values) for name, values in results.items()}


def time_in_turn(sides: Mapping[SideT, Callable[[], Any]], rounds: int) -> dict[SideT, tuple[float, ...]]:
    """Returns the seconds of `rounds` calls of each side, called in turn."""
    return in_turn({name: lambda call=call: clock(call)[0] for name, call in sides.items()}, rounds)


def seconds_per_item(items: Iterator[Any], *, seconds: float, warm_up: int, at_least: int = 1) -> float:
    """Returns how long an iterator takes for one item, over at least `seconds` and `at_least` items.

    warm_up: items that are taken before the clock starts.
    """
    for _ in range(warm_up):
        next(items)
    count, begun = 0, time.perf_counter()
    while True:
        next(items)
        count += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds and count >= at_least:
            return elapsed / count
