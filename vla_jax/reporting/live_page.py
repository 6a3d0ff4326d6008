"""The report of a live run, as an HTML page."""

from collections.abc import Mapping
from typing import Any

from vla_jax.live.log import MEMORY
from vla_jax.reporting.live_plots import (
    LATENCIES,
    actions_figure,
    ages_figure,
    jitter_figure,
    latency_figure,
)
from vla_jax.reporting.live_record import LiveRecord
from vla_jax.reporting.page import Cell, ReportFigure, cards, figure, number, page, section, table

MAX_EVENTS = 200
AGE = "age_ms/"
_QUANTILES = ("mean", "p50", "p95", "p99", "max")


def live_html(record: LiveRecord, name: str) -> str:
    """Builds the page of a run. name: of its log."""
    statistics = record.summary["statistics"]
    parts = [
        cards(_cards(record)),
        section(
            "Time", _statistics_table(statistics, _timing_names(statistics)), "All in ms, over the ticks."
        ),
        section(
            "Ages",
            _statistics_table(
                statistics, {key: key[len(AGE) :] for key in statistics if key.startswith(AGE)}
            ),
            "How old the newest of each stream was at the ticks, ms; features are as old as the oldest picture "
            "behind them.",
        ),
        figure(
            ReportFigure(
                "Ticks",
                "How much later than planned each tick began; of long runs the largest of each stretch. Red: ticks "
                "were missed before this one.",
                jitter_figure(record),
            )
        ),
        figure(
            ReportFigure(
                "Ages over time", "Of long runs the largest of each stretch is drawn.", ages_figure(record)
            )
        ),
        figure(
            ReportFigure(
                "Latency", "Share of the ticks in which each took at most so long.", latency_figure(record)
            )
        ),
        figure(
            ReportFigure(
                "Actions",
                "Grey: as the policy gave it. Blue: after the limits. Shaded: somebody or something intervened. "
                "Numbers that never change are left out.",
                actions_figure(record),
            )
        ),
        section("Interventions", _interventions(record), "A tick may have several reasons."),
        section("Episodes", _episodes(record)),
        section("Events", _events(record), _events_note(record)),
    ]
    return page(f"Live run {name}", _lead(record), parts)


def _lead(record: LiveRecord) -> str:
    seconds = float(record.time_s[-1])
    episodes = int(record.episode.max())
    damaged = (
        f" {record.damaged_lines} damaged line(s) of the log are left out." if record.damaged_lines else ""
    )
    return (
        f"{record.num_ticks} ticks in {number(seconds)} s, {episodes} episode{'s' if episodes != 1 else ''}; "
        f"commands were sent in {int(record.is_sent.sum())} of the ticks.{damaged}"
    )


def _cards(record: LiveRecord) -> list[tuple[str, str, str]]:
    statistics = record.summary["statistics"]
    late, command = statistics.get("late_ms"), statistics.get("sensor_to_command_ms")
    intervened, memory = sum(kind is not None for kind in record.intervention), statistics.get(MEMORY)
    return [
        ("missed ticks", f"{100 * record.missed_share:.2f} %", f"{int(record.missed.sum())} of the run's"),
        ("tick jitter, p99", _ms(late, "p99"), f"p50 {_ms(late, 'p50')}, largest {_ms(late, 'max')}"),
        ("sensor to command, p50", _ms(command, "p50"), f"p99 {_ms(command, 'p99')}"),
        ("ticks with interventions", str(intervened), f"of {record.num_ticks}"),
        *(
            []
            if memory is None
            else [("memory, largest", f"{memory['max']:.0f} MB", f"mean {memory['mean']:.0f} MB")]
        ),
    ]


def _ms(statistics: Mapping[str, float] | None, name: str) -> str:
    return f"{number(None if statistics is None else statistics[name])} ms"


def _timing_names(statistics: Mapping[str, Any]) -> dict[str, str]:
    names = {"late_ms": "how late the tick began", **LATENCIES}
    return {key: label for key, label in names.items() if key in statistics}


def _statistics_table(statistics: Mapping[str, Any], names: Mapping[str, str]) -> str:
    rows = [
        [label, str(statistics[key]["count"]), *(number(statistics[key][name]) for name in _QUANTILES)]
        for key, label in names.items()
    ]
    return table(["", "ticks", *_QUANTILES], rows)


def _interventions(record: LiveRecord) -> str:
    found = record.summary["interventions"]
    if not found:
        return "<p>None.</p>"
    share = {reason: ticks / record.num_ticks for reason, ticks in found.items()}
    return table(
        ["reason", "ticks", "share"],
        [[reason, str(ticks), f"{100 * share[reason]:.1f} %"] for reason, ticks in found.items()],
    )


def _episodes(record: LiveRecord) -> str:
    rows = []
    for episode, ticks in record.by_episode().items():
        if episode == 0:
            continue
        times = record.time_s[ticks]
        intervened = sum(
            kind is not None for kind, own in zip(record.intervention, ticks, strict=True) if own
        )
        missed = int(record.missed[ticks].sum())
        rows.append(
            [
                str(episode),
                number(float(times[-1] - times[0])),
                str(int(ticks.sum())),
                Cell(str(missed), "bad" if missed else ""),
                str(intervened),
                str(int(record.is_sent[ticks].sum())),
            ]
        )
    return table(["episode", "seconds", "ticks", "missed before", "with interventions", "sent"], rows)


def _events(record: LiveRecord) -> str:
    rows = [
        [f"{moment:.1f} s", Cell(event, "text"), Cell(text, "text")]
        for moment, event, text in record.events[:MAX_EVENTS]
    ]
    return table(["time", "event", ""], rows)


def _events_note(record: LiveRecord) -> str:
    left_out = len(record.events) - MAX_EVENTS
    return f"{left_out} more are in the log." if left_out > 0 else ""
