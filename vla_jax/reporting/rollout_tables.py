"""The tables of a closed-loop report, and the notes below them, as HTML and text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.evaluation.rollout_summary import CHUNK_JUMP
from vla_jax.evaluation.turning_point import TurningPoint, turning_point
from vla_jax.reporting.page import Cell, number, table
from vla_jax.reporting.rollout_plots import example_of, measure_label

SIGNIFICANT = 0.05
SUCCESS_NOTE = "Interval: Wilson's. To the right of it, episodes by the reason of failure."
MEASURE_NOTE = (
    "Median / 95th percentile / largest, over the episodes in which the measure is defined; in brackets how many "
    f"those are, where not all. {CHUNK_JUMP.replace('_', ' ').capitalize()}, mm: how far the first action of a new "
    "chunk that can be executed lies from what the chunk before had for the same tick, mean of an episode."
)
COMPARISON_NOTE = (
    "First minus second. Only the first, only the second: pairs of episodes that only one of the two passed. p: of "
    "McNemar's exact test that neither passes more often; below 0.05 in bold. In brackets 95 % intervals of the "
    "bootstrap over pairs; where several pairs are compared, one in twenty differs by chance."
)
FAILURE_NOTE = (
    "Medians over the episodes of a reason. Nearest to the stop: how near the tip came to where it should end, "
    "when, and in which layer it mostly was then."
)


def percent(value: float) -> str:
    """Returns a share as a person reads it."""
    return f"{100 * value:.0f} %"


def success_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns success and failures, a row for each run."""
    several = len({run["setting"] for run in runs}) > 1
    reasons = list(dict.fromkeys(reason for run in runs for reason in run["failures"]))
    header = ["", *(["setting"] if several else []), "episodes", "success", "95 % interval"]
    rows = [
        [
            run["name"],
            *([run["setting"]] if several else []),
            str(run["episodes"]),
            Cell(percent(run["success"]["rate"]), "strong"),
            f"{percent(run['success']['low'])} – {percent(run['success']['high'])}",
            *(str(run["failures"].get(reason, 0)) for reason in reasons),
        ]
        for run in runs
    ]
    return table([*header, *(reason.replace("_", " ") for reason in reasons)], rows)


def measures_of(run: Mapping[str, Any]) -> list[str]:
    """Returns the names of a summary's measures that are numbers, in their order."""
    return [name for name, value in run.items() if isinstance(value, Mapping) and "median" in value]


def measure_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the measures, a row for each run."""
    several = len({run["setting"] for run in runs}) > 1
    names = list(dict.fromkeys(name for run in runs for name in measures_of(run)))
    header = ["", *(["setting"] if several else []), *map(measure_label, names)]
    rows = []
    for run in runs:
        cells = [_spread(run[name], run["episodes"]) if name in run else number(None) for name in names]
        rows.append([run["name"], *([run["setting"]] if several else []), *cells])
    return f'<div class="tight">{table(header, rows)}</div>'


def _spread(value: Mapping[str, Any], episodes: int) -> str:
    text = " / ".join(number(value[name], 2) for name in ("median", "p95", "max"))
    return text if value["episodes"] in (0, episodes) else f"{text} ({value['episodes']})"


def comparison_table(content: Mapping[str, Any]) -> str:
    """Returns the comparisons, a row for each pair."""
    comparisons = content["comparisons"]
    measures = list(dict.fromkeys(name for entry in comparisons for name in entry["differences"]))[:2]
    header = ("", "pairs", "only the first", "only the second", "p", *(_difference_name(m) for m in measures))
    rows = []
    for entry in comparisons:
        a, b = entry["a"], entry["b"]
        title = f"{a['name']} – {b['name']}" if a["name"] != b["name"] else f"{a['name']} – {b['setting']}"
        if a["name"] != b["name"] and len({run["setting"] for run in content["runs"]}) > 1:
            title += f" ({a['setting']})"
        rows.append(
            [
                title,
                str(entry["episodes"]),
                str(entry["only_a"]),
                str(entry["only_b"]),
                Cell(number(entry["mcnemar_p"]), "strong" if entry["mcnemar_p"] < SIGNIFICANT else ""),
                *(
                    _difference(entry["differences"].get(name), is_share=name == "success")
                    for name in measures
                ),
            ]
        )
    return table(header, rows)


def _difference_name(measure: str) -> str:
    return "difference of success" if measure == "success" else f"of the median {measure_label(measure)}"


def _difference(value: Mapping[str, Any] | None, *, is_share: bool) -> str:
    if value is None:
        return number(None)
    if is_share:
        return "{:+.0f} % ({:+.0f} to {:+.0f})".format(
            *(100 * value[name] for name in ("value", "low", "high"))
        )
    return "{} ({} to {})".format(*(number(value[name]) for name in ("value", "low", "high")))


def failure_table(reasons: Mapping[str, Sequence[Rollout]]) -> str:
    """Returns where episodes went wrong, a row for each reason of failure."""
    header = ("", "episodes", "example, seed", "nearest to the stop [mm]", "at [s]", "mostly",
              "end, past the stop [mm]", "end, sideways [mm]")  # fmt: skip
    rows = []
    for reason, failed in reasons.items():
        turns = [turn for rollout in failed if (turn := turning_point(rollout)) is not None]
        rows.append(
            [
                reason.replace("_", " "),
                Cell(str(len(failed)), "strong"),
                str(example_of(failed).seed),
                _median(turns, "distance_mm"),
                _median(turns, "time_s"),
                _most_frequent([turn.stage for turn in turns]),
                _median(turns, "end_depth_mm"),
                _median(turns, "end_lateral_mm"),
            ]
        )
    return table(header, rows)


def _median(turns: Sequence[TurningPoint], name: str) -> str:
    return number(float(np.median([getattr(turn, name) for turn in turns])) if turns else None)


def _most_frequent(names: Sequence[str]) -> str:
    return max(dict.fromkeys(names), key=names.count) if names else number(None)


def settings_table(content: Mapping[str, Any]) -> str:
    """Returns the settings, and each policy's identity."""
    rows: list[list[str | Cell]] = [
        [name, Cell(_text(value), "text")] for name, value in content["settings"].items()
    ]
    seen = {run["name"]: run["checkpoint"] for run in content["runs"]}
    rows += [
        [f"{name}: {key}", Cell(_text(value), "text")]
        for name, identity in seen.items()
        for key, value in identity.items()
    ]
    return table(("", ""), rows) if rows else "<p>None.</p>"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return number(None) if value is None else str(value)
