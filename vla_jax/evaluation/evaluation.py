"""Judging a policy on a data set, from predictions to the files of a report."""

import importlib.metadata
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.data import FeatureTable, PackedDataset
from vla_jax.errors import UserError
from vla_jax.evaluation.drift import Drift
from vla_jax.evaluation.judgement import judge, provenance
from vla_jax.evaluation.metrics import MOTION
from vla_jax.evaluation.plots import Trace, drift_figure, horizon_figure, scatter_figure, trace_figure
from vla_jax.evaluation.prediction import Predictions, predict_split
from vla_jax.evaluation.report import report_html
from vla_jax.inference.latency import measure_latency
from vla_jax.inference.policy import InsertionPolicy
from vla_jax.replacing import replace_file, replace_text
from vla_jax.report_page import ReportFigure, number

PACKAGES = ("vla-jax", "jax", "jaxlib", "flax", "numpy")
MAX_TRACES = 3


@dataclass(frozen=True)
class Evaluation:
    """A judged policy. metrics: the content of `metrics.json`; drifts: of the policy, per stretch of ticks."""

    metrics: dict[str, Any]
    predictions: Predictions
    drifts: list[Drift]


def evaluate(
    policy: InsertionPolicy,
    dataset: PackedDataset,
    features: FeatureTable,
    split: str,
    *,
    batch_size: int,
    seed: int = 0,
) -> Evaluation:
    """Predicts every sample of a split ("train", "val" or "all") and compares with recording and baselines.

    seed: of a diffusion policy's noise.

    Raises:
        UserError: the split has no samples with features.
    """
    num_samples = len(features.sample_ticks(split))
    if not num_samples:
        without = " with features" if features.num_missing else ""
        raise UserError(
            f"{dataset.path} has no samples{without} in split {split!r}; use --split all, or more episodes"
        )
    predictions = predict_split(policy, dataset, features, split, batch_size=batch_size, seed=seed)
    judged, drifts = judge(predictions, dataset)
    judged_on = provenance(policy, dataset, predictions, split, seed)
    judged_on["data"]["samples_without_features"] = len(dataset.sample_ticks(split)) - num_samples
    device = jax.devices()[0]
    metrics = {
        **judged,
        "latency": {**measure_latency(policy), "device": device.device_kind},
        **judged_on,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return Evaluation(metrics, predictions, drifts)


def write_evaluation(evaluation: Evaluation, dataset: PackedDataset, out: Path) -> Path:
    """Writes predictions.npz, report.html and, last, metrics.json into `out`; returns the report's path.

    Each file appears complete or not at all. predictions.npz: tick, episode [n], predicted, target [n, h, a].

    Raises:
        UserError: `out` cannot be written.
    """
    predictions, report = evaluation.predictions, out / "report.html"
    make_report_directory(out)
    page = report_html(evaluation.metrics, report_figures(evaluation, dataset))
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
    drift = metrics["drift"]
    return [
        ReportFigure(
            "Predicted and recorded actions",
            "First action of each chunk, against time; the episodes with the smallest, the median and the largest "
            "motion error. Shades: named segments; those that overlap others are bands at the top.",
            trace_figure(episode_traces(predictions, dataset)),
        ),
        ReportFigure(
            "Error along the horizon",
            "Root mean square length of the error vector at each of the predicted steps.",
            horizon_figure({"policy": metrics, **metrics["baselines"]}),
        ),
        ReportFigure(
            "Open-loop drift",
            "Whole chunks executed one after another from the first pose, while the observations are the recorded "
            f"ones. At the end {number(drift['final_mm'])} mm and "
            f"{number(drift['final_deg'])} degrees on average, {number(drift['worst_mm'])} mm and "
            f"{number(drift['worst_deg'])} degrees at worst.",
            drift_figure(evaluation.drifts, dataset.meta.action_hz),
        ),
        ReportFigure(
            "Predicted against recorded",
            "Every step of every chunk (a random share of them, where there are many); a perfect policy lies on "
            "the diagonal.",
            scatter_figure(predictions.predicted, predictions.target, metrics["r2_per_dim"]),
        ),
    ]


def episode_traces(predictions: Predictions, dataset: PackedDataset) -> list[Trace]:
    """Returns the traces of up to three episodes: smallest, median and largest motion error."""
    error = np.square(predictions.predicted - predictions.target)[..., MOTION].mean(axis=(1, 2))
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
