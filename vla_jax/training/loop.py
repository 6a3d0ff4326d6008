"""The training run from its first batch to its last checkpoint."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.data import BatchLoader, FeatureTable, PackedDataset
from vla_jax.errors import UserError
from vla_jax.normalisation import Normaliser, feature_moments, make_normaliser
from vla_jax.progress import progress_bar
from vla_jax.training.checkpoint import (
    CHECKPOINTS,
    CheckpointWriter,
    RunIdentity,
    checkpoint_steps,
    restore_state,
)
from vla_jax.training.config import TrainConfig
from vla_jax.training.metric_writer import MetricWriter
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.preemption import stop_requested
from vla_jax.training.run_directory import locked, write_config
from vla_jax.training.sharding import Mesh, put_batch, replicated
from vla_jax.training.state import abstract_state, initialise_state, network_structure
from vla_jax.training.step import train_step, validation_step
from vla_jax.training.validation import validation_metrics

logger = logging.getLogger(__name__)

# Enough to estimate the moments of every feature dimension within about 2 %.
MAX_MOMENT_RECORDS = 4096


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. step: updates done. interrupted: stopped by SIGTERM or Ctrl-C after saving.
    metrics: of the last validation."""

    step: int
    interrupted: bool
    metrics: dict[str, float]


def train(
    config: TrainConfig,
    dataset: PackedDataset,
    features: FeatureTable,
    run: Path,
    *,
    mesh: Mesh,
    resume: bool = False,
) -> TrainResult:
    """Trains a policy on the data set's training episodes and writes RUN.

    Writes RUN/config.json, RUN/metrics.jsonl, RUN/tensorboard and RUN/checkpoints. With `resume` it continues
    from RUN's newest checkpoint, bit for bit on a CPU, or starts RUN when there is none.

    Raises:
        UserError: RUN holds a run and `resume` is False; another process writes RUN; no training samples; batch
            size and devices do not fit; the loss stopped being finite.
    """
    check_batch_size(config, mesh)
    with locked(run):
        steps_done = checkpoint_steps(run)
        if steps_done and not resume:
            raise UserError(f"{run} already holds a run; continue it with --resume or choose another --out")
        write_config(config, run)
        return _train(config, dataset, features, run, mesh, steps_done[-1] if steps_done else None)


def _train(
    config: TrainConfig,
    dataset: PackedDataset,
    features: FeatureTable,
    run: Path,
    mesh: Mesh,
    resume_step: int | None,
) -> TrainResult:
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(config, optimizer, mesh)
    everywhere = replicated(mesh)
    batches = iter(
        BatchLoader(dataset, features, split="train", batch_size=config.batch_size, seed=config.seed)
    )
    metrics: dict[str, float] = {}
    if resume_step is None:
        state = initialise_state(config, optimizer, abstract)
        normaliser = fit_normaliser(config, dataset, features)
    else:
        state, normaliser, metadata = restore_state(run / CHECKPOINTS / str(resume_step), abstract)
        batches.set_state(metadata["data_position"])
        metrics = metadata["metrics"]
        logger.info("resuming %s at step %d of %d", run, resume_step, config.steps)
    normaliser = jax.device_put(normaliser, everywhere)

    structure = network_structure(config)
    update = jax.jit(
        functools.partial(train_step, config, structure, optimizer),
        donate_argnums=1,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), everywhere),
    )
    validate = jax.jit(functools.partial(validation_step, config, structure), out_shardings=everywhere)
    root_key = jax.device_put(jax.random.key(config.seed), everywhere)
    seen = {f"{split}_samples": len(features.sample_ticks(split)) for split in ("train", "val")}
    identity = RunIdentity(features=features.provenance, data=dataset.describe() | seen)

    first = resume_step or 0
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requested())
        writer = stack.enter_context(MetricWriter(run, resume_step=first))
        checkpoints = stack.enter_context(contextlib.closing(CheckpointWriter(run)))
        stack.enter_context(contextlib.closing(batches))  # A reader left open can hang the process's exit.
        bar = stack.enter_context(
            progress_bar(total=config.steps, initial=first, desc="train", unit="step", smoothing=0.1)
        )
        window = _Window(config)
        step = first
        for step, batch, position in prefetched(batches, mesh, first, config.steps, window):
            state, scalars = update(normaliser, state, batch, root_key)
            window.add(scalars)
            bar.update()
            last = step == config.steps
            if step % config.log_every == 0 or last:
                logged = window.summarise(step)
                writer.write(step, logged)
                bar.set_postfix_str(_postfix(logged), refresh=False)
            validated = {}
            if step % config.validate_every == 0 or last:
                validated = validation_metrics(
                    validate, config, dataset, features, normaliser, state, mesh, root_key
                )
                if validated:
                    metrics = validated
                    writer.write(step, validated)
                window.restart()
            if step % config.checkpoint_every == 0 or last or stop.is_set:
                window.check_finite(step)
                checkpoints.save(
                    state,
                    step=step,
                    config=config,
                    normaliser=normaliser,
                    identity=identity,
                    data_position=position,
                    metrics=validated,
                )
                window.restart()
            if stop.is_set:
                break
    return TrainResult(step=step, interrupted=step < config.steps, metrics=metrics)


def fit_normaliser(config: TrainConfig, dataset: PackedDataset, features: FeatureTable) -> Normaliser:
    """Makes the normaliser from the training episodes' statistics and features.

    Raises:
        UserError: the data set has no training samples.
    """
    ticks = features.sample_ticks("train")
    if not len(ticks):
        raise UserError(f"{dataset.path} has no training samples; look at what prepare said of its episodes")
    records = np.unique(dataset.record_index(ticks))
    if len(records) > MAX_MOMENT_RECORDS:
        records = np.random.default_rng(0).choice(records, MAX_MOMENT_RECORDS, replace=False)
    values, mask = features.gather(np.sort(records))
    moments = feature_moments(values, mask, per_slot=features.has_fixed_slots)
    return make_normaliser(config.normalisation, dataset.statistics, *moments)


def prefetched(
    batches: Any, mesh: Mesh, first: int, last: int, window: "_Window"
) -> Iterator[tuple[int, dict[str, jax.Array], dict[str, Any]]]:
    """Yields (step, batch on the devices, data position after that batch), one transfer ahead of the computation.

    The position belongs to the batch given out, not to the one in flight: a run resumed there repeats nothing.
    """

    def fetch() -> tuple[dict[str, jax.Array], dict[str, Any]]:
        started = time.perf_counter()
        batch = next(batches)
        position = batches.get_state()
        window.waited += time.perf_counter() - started
        return put_batch(mesh, batch), position

    ahead = fetch() if first < last else None
    for step in range(first + 1, last + 1):
        batch, position = ahead
        if step < last:
            ahead = fetch()
        yield step, batch, position


def check_batch_size(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses batches that do not split evenly over devices and accumulation parts."""
    devices = mesh.size
    if (config.batch_size // config.grad_accum_steps) % devices:
        raise UserError(
            f"batch-size {config.batch_size} in {config.grad_accum_steps} part(s) does not split over {devices} "
            f"devices; use a multiple of {devices * config.grad_accum_steps}"
        )


class _Window:
    """Collects device scalars between two log lines, without waiting for the device."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._scalars: list[Mapping[str, jax.Array]] = []
        self.waited = 0.0
        self._started = time.perf_counter()
        self._steps = 0

    def add(self, scalars: Mapping[str, jax.Array]) -> None:
        self._scalars.append(scalars)
        self._steps += 1

    def restart(self) -> None:
        """Leaves validation and saving out of the rates."""
        self._started, self._steps, self.waited = time.perf_counter(), 0, 0.0

    def check_finite(self, step: int) -> None:
        """Refuses to go on, or to save, after a loss that is not finite.

        Raises:
            UserError: names the first such step; `step` is the newest one.
        """
        losses = [float(scalars["train/loss"]) for scalars in jax.device_get(self._scalars)]
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} at step {step - len(losses) + index + 1}; start again with a lower "
                    "--lr, or look at that step's data with --seed unchanged"
                )

    def summarise(self, step: int) -> dict[str, float]:
        """Returns the window's means and rates, and begins the next window.

        Raises:
            UserError: a loss in the window is not finite.
        """
        self.check_finite(step)
        fetched = jax.device_get(self._scalars)
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        summary = {name: float(np.mean([scalars[name] for scalars in fetched])) for name in fetched[0]}
        if self._steps:
            summary["time/samples_per_second"] = self._steps * self._config.batch_size / elapsed
            summary["time/data_wait_share"] = min(self.waited / elapsed, 1.0)
        self._scalars = []
        self.restart()
        return summary


def _postfix(logged: Mapping[str, float]) -> str:
    parts = [f"loss {logged['train/loss']:.4f}", f"lr {logged['train/learning_rate']:.1e}"]
    if "time/samples_per_second" in logged:
        parts += [
            f"{logged['time/samples_per_second']:.0f} samples/s",
            f"data {100 * logged['time/data_wait_share']:.0f}%",
        ]
    return ", ".join(parts)
