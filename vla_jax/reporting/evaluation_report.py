"""The files of an open-loop evaluation: metrics.json, report.html, its figures, and predictions.npz."""

import json
import tempfile
from pathlib import Path

import numpy as np

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.evaluation.metrics import MotionDims
from vla_jax.evaluation.open_loop import Evaluation
from vla_jax.evaluation.prediction import Predictions
from vla_jax.reporting.evaluation_page import report_html
from vla_jax.reporting.evaluation_plots import (
    Trace,
    age_figure,
    drift_figure,
    horizon_figure,
    scatter_figure,
    trace_figure,
)
from vla_jax.reporting.page import ReportFigure, number, write_figures
from vla_jax.storage.replacing import replace_file, replace_text

MAX_TRACES = 3


def write_evaluation(evaluation: Evaluation, dataset: PackedDataset, out: Path) -> Path:
    """Writes predictions.npz, report.html and, last, metrics.json into `out`; returns the report's path.

    Each file appears complete or not at all. predictions.npz: tick, episode [n], predicted, target [n, h, a].

    Raises:
        UserError: `out` cannot be written.
    """
    predictions, report = evaluation.predictions, out / "report.html"
    make_report_directory(out)
    figures = report_figures(evaluation, dataset)
    page = report_html(evaluation.metrics, figures, dataset.spec.actions)
    try:
        replace_file(
            out / "predictions.npz",
            lambda handle: np.savez_compressed(
                handle,
                tick=predictions.tick,
                episode=predictions.episode,
                predicted=predictions.predicted,
                target=predictions.target,
            ),
        )
        replace_text(report, page)
        write_figures(out / "figures", figures)
        text = json.dumps(evaluation.metrics, indent=2, allow_nan=False)
        replace_text(out / "metrics.json", text + "\n")
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror or error}") from error
    return report


def make_report_directory(out: Path) -> None:
    """Makes `out`, so that a place that cannot be written to is known before the work is done.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror or error}") from error


def report_figures(evaluation: Evaluation, dataset: PackedDataset) -> list[ReportFigure]:
    """Draws the figures of the report."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    actions = dataset.spec.actions
    return [
        ReportFigure(
            "Predicted and recorded actions",
            "First action of each chunk, against time; the episodes with the smallest, the median and the largest "
            "motion error. Shades: named segments; those that overlap others are bands at the top.",
            trace_figure(episode_traces(predictions, dataset), actions),
        ),
        ReportFigure(
            "Error along the horizon",
            "Root mean square length of the error vector at each of the predicted steps; where no action is in mm or "
            "degrees, root mean square error of all dimensions.",
            horizon_figure({"policy": metrics, **metrics["baselines"]}),
        ),
        *_age_figures(evaluation, dataset),
        *_drift_figures(evaluation, dataset),
        ReportFigure(
            "Predicted against recorded",
            "Every step of every chunk (a random share of them, where there are many); a perfect policy lies on "
            "the diagonal.",
            scatter_figure(predictions.predicted, predictions.target, metrics["r2_per_dim"], actions),
        ),
    ]


def _age_figures(evaluation: Evaluation, dataset: PackedDataset) -> list[ReportFigure]:
    """Draws the errors by the age of the features; where pictures have no history, there are none."""
    by_age = evaluation.metrics.get("by_feature_age")
    if not by_age:
        return []
    return [
        ReportFigure(
            "Error by the age of the features",
            "Root mean square length of the error vector, whole horizon, of the same samples with the features of "
            "older pictures.",
            age_figure(by_age, dataset.spec.actions),
        )
    ]


def _drift_figures(evaluation: Evaluation, dataset: PackedDataset) -> list[ReportFigure]:
    """Draws the drift; where no action is in mm or degrees, there is none."""
    drift, actions = evaluation.metrics["drift"], dataset.spec.actions
    if not actions.dims("mm") and not actions.dims("deg"):
        return []
    return [
        ReportFigure(
            "Open-loop drift",
            "Whole chunks executed one after another from the first pose, while the observations are the recorded "
            f"ones. At the end {number(drift['final_mm'])} mm and "
            f"{number(drift['final_deg'])} degrees on average, {number(drift['worst_mm'])} mm and "
            f"{number(drift['worst_deg'])} degrees at worst.",
            drift_figure(evaluation.drifts, dataset.meta.action_hz),
        )
    ]


def episode_traces(predictions: Predictions, dataset: PackedDataset) -> list[Trace]:
    """Returns the traces of up to three episodes: smallest, median and largest motion error."""
    squared = np.square(predictions.predicted - predictions.target)
    moving = squared[..., MotionDims.of(dataset.spec.actions).motion]
    error = (moving if moving.size else squared).mean(axis=(1, 2))
    episodes = np.unique(predictions.episode)
    errors = np.array([error[predictions.episode == episode].mean() for episode in episodes])
    order = np.argsort(errors, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(MAX_TRACES, len(order))).round().astype(int))
    traces = []
    for place in places:
        index = int(episodes[order[place]])
        entry, rows = dataset.episodes[index], np.flatnonzero(predictions.episode == index)
        time = np.asarray(dataset.ticks.time[predictions.tick[rows]], np.float64)
        traces.append(
            Trace(
                title=f"{entry.name}\nmotion MSE {number(float(errors[order[place]]))}, "
                f"{'with' if entry.has_sensor else 'without'} sensor",
                time=time - time[0],
                predicted=predictions.predicted[rows, 0],
                recorded=predictions.target[rows, 0],
                segments=tuple((s.name, s.start - time[0], s.end - time[0]) for s in entry.segments),
            )
        )
    return traces
