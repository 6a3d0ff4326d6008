"""The report of policies in closed loop, as an HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax.evaluation.rollout_summary import NOMINAL, Trial
from vla_jax.evaluation.turning_point import turning_point
from vla_jax.reporting import film_player
from vla_jax.reporting.film import Film
from vla_jax.reporting.page import ReportFigure, cards, figure, page, section
from vla_jax.reporting.rollout_plots import (
    distribution_figure,
    failure_reasons,
    failures_figure,
    latency_figure,
    measure_label,
    paths_figure,
    setting_figure,
)
from vla_jax.reporting.rollout_tables import (
    COMPARISON_NOTE,
    FAILURE_NOTE,
    MEASURE_NOTE,
    SUCCESS_NOTE,
    comparison_table,
    failure_table,
    measure_table,
    percent,
    settings_table,
    success_table,
)

FILM_NOTE = (
    "Pictures and A-scans are a replay of the episode's actions. An A-scan looks ahead from the tip: it is drawn at "
    "the depth where its light was scattered, faint to bright. At 1× time passes as it did for the robot."
)
MAX_CARDS = 4
STYLE = """\
.tight table { font-size: 12.5px; }
.tight :is(th, td) { padding: 6px 5px; }
@media (max-width: 640px) { figure { overflow-x: auto; } figure img { min-width: 600px; } }
"""


def rollout_html(
    content: Mapping[str, Any], trials: Sequence[Trial], films: Mapping[str, Sequence[Film]]
) -> str:
    """Builds the page from the content of rollout.json (`rollout_json`), what it was made of, and films by the name of
    the run, of its first setting."""
    runs = content["runs"]
    by_name: dict[str, Trial] = {}
    for trial in trials:
        by_name.setdefault(trial.name, trial)
    firsts = list(by_name.values())
    parts = [
        f"<style>\n{STYLE}{film_player.STYLE}</style>",
        cards([_card(run) for run in runs]) if len(runs) <= MAX_CARDS else "",
        section("Success", success_table(runs), SUCCESS_NOTE),
        section("Measures", measure_table(runs), MEASURE_NOTE),
    ]
    parts += [figure(entry) for entry in _figures(runs, firsts)]
    if content["comparisons"]:
        parts.append(section("Compared on the same seeds", comparison_table(content), COMPARISON_NOTE))
    for trial in firsts:
        parts += _trial_parts(trial, films.get(trial.name, ()))
    parts.append(section("Settings and policies", settings_table(content)))
    parts.append(f"<script>\n{film_player.SCRIPT}</script>")
    return page("Policies in closed loop", _lead(runs), [part for part in parts if part])


def _lead(runs: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(run["name"] for run in runs))
    settings = len({run["setting"] for run in runs})
    episodes = sum(run["episodes"] for run in runs)
    return (
        f"{episodes} episode{'s' if episodes != 1 else ''} of {', '.join(names)}"
        f"{f', under {settings} settings' if settings > 1 else ''}. Each policy acts on what it sees, and the "
        "environment judges what came of it."
    )


def _card(run: Mapping[str, Any]) -> tuple[str, str, str]:
    success = run["success"]
    interval = f"{percent(success['low'])} to {percent(success['high'])}, {run['episodes']} episodes"
    name = run["name"] if run["setting"] == NOMINAL else f"{run['name']}, {run['setting']}"
    return name, percent(success["rate"]), interval


def _figures(runs: Sequence[Mapping[str, Any]], firsts: Sequence[Trial]) -> list[ReportFigure]:
    """Draws what compares policies and settings."""
    figures = []
    by_latency = [run for run in runs if run["shift"] is None]
    if len({run["feature_latency_s"] for run in by_latency}) > 1:
        figures.append(
            ReportFigure(
                "Success against the age of features",
                "How much later than at once features reached the policy; without a shift. Bars: 95 % intervals.",
                latency_figure(by_latency),
            )
        )
    latency = {trial.name: trial.feature_latency_s for trial in firsts}
    by_shift = [run for run in runs if run["feature_latency_s"] == latency[run["name"]]]
    if len({run["shift"] for run in by_shift}) > 1:
        figures.append(
            ReportFigure(
                "Success by shift",
                "In what the world differed from the training's. Bars: 95 % intervals.",
                setting_figure(by_shift),
            )
        )
    measure = next((name for trial in firsts for name in trial.rollouts[0].outcome.measures), None)
    if measure is not None:
        figures.append(
            ReportFigure(
                f"Distribution of {measure_label(measure)}",
                "Share of the episodes in which it is at most so large. A line that ends below 100 % has episodes in "
                "which it is not defined.",
                distribution_figure(firsts, measure),
            )
        )
    return figures


def _trial_parts(trial: Trial, films: Sequence[Film]) -> list[str]:
    """Returns what is shown of one policy: paths, failures, films."""
    parts = []
    with_scene = [rollout for rollout in trial.rollouts if rollout.outcome.scene is not None]
    if with_scene:
        parts.append(
            figure(
                ReportFigure(
                    f"{trial.name}: paths of the tip",
                    f"{len(with_scene)} episodes, {trial.setting}. From two sides, a dot at the end; shades and dashed "
                    "lines: where the layers lie in these episodes, and their median. Right: depth from the stop over "
                    "time.",
                    paths_figure(with_scene),
                )
            )
        )
    reasons = failure_reasons(trial.rollouts)
    if reasons:
        parts.append(section(f"{trial.name}: why it failed", failure_table(reasons), FAILURE_NOTE))
    if any(turning_point(rollout) for failed in reasons.values() for rollout in failed):
        parts.append(
            figure(
                ReportFigure(
                    f"{trial.name}: where it went wrong",
                    "Red: the example of the table. Grey: successes. Dots: nearest to the stop; what came after led "
                    "away from it, or nowhere. Right: the same from above, the goal a cross.",
                    failures_figure(with_scene),
                )
            )
        )
    if films:
        shown = "\n".join(film_player.film_html(film) for film in films)
        parts.append(section(f"{trial.name}: the worst, the median and the best episode", shown, FILM_NOTE))
    return parts
