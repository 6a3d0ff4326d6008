"""The training run from its first batch to its last checkpoint."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.contracts.metric_names import GRADIENT_NORM, LEARNING_RATE, LOSS, RATE, WAITING
from vla_jax.dataset.batches import BatchLoader, sequential_batches
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps
from vla_jax.policy.metadata import RunIdentity
from vla_jax.preprocessing.normaliser import Normaliser, feature_moments, make_normaliser
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.progress import progress_bar
from vla_jax.storage.stop_signals import stop_requested
from vla_jax.training.announcements import describe_devices, describe_memory, describe_samples, describe_state
from vla_jax.training.checkpoint import CheckpointWriter, restore_training
from vla_jax.training.config import TrainConfig
from vla_jax.training.feeding import Feed, FeedMode, ResidentArrays, make_feed, prefetched
from vla_jax.training.log_window import LogWindow, NonFiniteLossError
from vla_jax.training.metric_writer import MetricWriter
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.processes import any_process, is_main_process, process_share
from vla_jax.training.run_directory import locked, save_bad_batch, write_config
from vla_jax.training.sharding import Mesh, put_batch, replicated
from vla_jax.training.state import TrainState, abstract_state, initialise_state, network_structure
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
    initial: PolicyArtifact | None = None,
    feed: FeedMode = "auto",
    wandb: bool = False,
    announce: Callable[[str], None] = logger.info,
) -> TrainResult:
    """Trains a policy on the data set's training episodes and writes RUN.

    Writes RUN/config.json, RUN/metrics.jsonl, RUN/tensorboard and RUN/checkpoints. With `resume` it continues
    from RUN's newest checkpoint, bit for bit on a CPU, or starts RUN when there is none. Several processes call
    this together (`vla_jax.training.processes`).

    initial: a policy whose weights and normalisation a new run begins with; `config.policy` must describe it.
    feed: how batches reach the devices, see `vla_jax.training.feeding`.
    wandb: whether to send the metrics to Weights & Biases too.
    announce: is told, line by line, what the run is about to do.

    Raises:
        UserError: RUN holds a run and `resume` is False; another process writes RUN; no training samples; batch
            size and devices do not fit; the loss stopped being finite.
    """
    check_batch_size(config, mesh)
    with run_lock(run):
        steps_done = checkpoint_steps(run)
        if steps_done and not resume:
            raise UserError(f"{run} already holds a run; continue it with --resume or choose another --out")
        if is_main_process():
            write_config(config, run)
        session = _Session(config, dataset, features, run, mesh, feed, wandb, announce)
        return session.train(steps_done[-1] if steps_done else None, initial)


class _Session:
    """One process's part in one run: what stays the same from the first update to the last."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: PackedDataset,
        features: FeatureTable,
        run: Path,
        mesh: Mesh,
        feed: FeedMode,
        wandb: bool,
        announce: Callable[[str], None],
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.features = features
        self.run = run
        self.mesh = mesh
        self.feed_mode: FeedMode = feed
        self.wandb = wandb
        self.announce = announce
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.abstract = abstract_state(config, self.optimizer, mesh)
        seen = {f"{split}_samples": len(features.sample_ticks(split)) for split in ("train", "val")}
        self.identity = RunIdentity(features=features.provenance, data=dataset.describe() | seen)
        everywhere = replicated(mesh)
        self.root_key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=everywhere)()

    def train(self, resume_step: int | None, initial: PolicyArtifact | None) -> TrainResult:
        config, announce = self.config, self.announce
        metrics: dict[str, float] = {}
        position, unlogged = None, []
        if resume_step is not None:
            directory = self.run / CHECKPOINTS / str(resume_step)
            restored = restore_training(directory, self.abstract)
            state, normaliser = restored.state, restored.normaliser
            position, metrics, unlogged = restored.data_position, restored.metrics, restored.unlogged
            announce(f"resuming at step {resume_step} of {config.steps}")
        else:
            network = None if initial is None else initial.network
            state = initialise_state(config, self.optimizer, self.abstract, network)
            normaliser = (
                fit_normaliser(config, self.dataset, self.features) if initial is None else initial.normaliser
            )
        # From the host: what one process holds on its own device cannot be placed on a mesh of several.
        normaliser = jax.device_put(jax.tree.map(np.asarray, normaliser), replicated(self.mesh))
        announce(describe_devices(self.mesh))
        announce(describe_state(state))
        for line in describe_samples(config, self.dataset, self.features):
            announce(line)
        feed = make_feed(self.feed_mode, self.dataset, self.features, self.mesh)
        announce(feed.describe())
        loader = BatchLoader(
            self.dataset,
            self.features,
            split="train",
            batch_size=config.batch_size,
            seed=config.seed,
            share=process_share(),
            resident=feed.resident.names,
        )
        preprocessor = Preprocessor(normaliser)
        update, validate = self._compile(feed, loader, state, preprocessor)

        first = resume_step or 0
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_requested())
            # A reader left open can hang the process's exit.
            batches = stack.enter_context(contextlib.closing(iter(loader)))
            if position is not None:
                batches.set_state(position)
            first_batch = batches.index
            # The numbers are the same in every process.
            writer = None
            if is_main_process():
                sent = config if self.wandb else None
                writer = stack.enter_context(MetricWriter(self.run, resume_step=first, wandb=sent))
            checkpoints = stack.enter_context(contextlib.closing(CheckpointWriter(self.run)))
            bar = stack.enter_context(
                progress_bar(
                    total=config.steps,
                    initial=first,
                    desc="train",
                    unit="step",
                    smoothing=0.1,
                    disable=not is_main_process() or None,
                )
            )
            window = LogWindow(config.batch_size, unlogged)
            step, stopping = first, False
            try:
                for step, batch, position in prefetched(
                    batches, self.mesh, first, config.steps, window.waited
                ):
                    state, scalars = update(preprocessor, state, feed.resident, batch, self.root_key)
                    window.add(scalars)
                    bar.update()
                    last = step == config.steps
                    logs, validates, saves = (
                        last or step % every == 0
                        for every in (config.log_every, config.validate_every, config.checkpoint_every)
                    )
                    if logs:
                        logged = window.summarise(step)
                        if writer:
                            writer.write(step, logged)
                        bar.set_postfix_str(_postfix(logged), refresh=False)
                    validated = {}
                    if validates:
                        validated = validate(state)
                        metrics = validated or metrics
                        if writer and validated:
                            writer.write(step, validated)
                        window.restart()
                    # Several processes must stop after the same update; asking each other takes a moment.
                    if jax.process_count() == 1 or logs or saves:
                        stopping = any_process(stop.is_set)
                    if saves or stopping:
                        checkpoints.save(
                            state,
                            step=step,
                            config=config,
                            normaliser=normaliser,
                            data=self.dataset.spec,
                            features=self.features.spec,
                            identity=self.identity,
                            data_position=position,
                            metrics=validated,
                            unlogged=window.fetch(step),
                        )
                        window.restart()
                    if stopping:
                        break
            except NonFiniteLossError as error:
                batch = loader.batch(first_batch + error.step - first - 1, resident=())
                saved = save_bad_batch(self.run, error.step, batch, error.history)
                raise UserError(
                    f"{error}; its batch and the losses before it are saved in {saved}: look at them, or start again "
                    "with a lower --lr"
                ) from error
        return TrainResult(step=step, interrupted=step < config.steps, metrics=metrics)

    def _compile(
        self, feed: Feed, loader: BatchLoader, state: TrainState, preprocessor: Preprocessor
    ) -> tuple[Any, Callable[[TrainState], dict[str, float]]]:
        """Compiles the update ahead of time, so that nothing can be compiled again later, and says what it needs."""
        config, everywhere = self.config, replicated(self.mesh)
        structure = network_structure(config)

        def update(preprocessor, state, resident: ResidentArrays, batch, root_key):
            batch = feed.complete(resident, batch)
            return train_step(config, structure, self.optimizer, preprocessor, state, batch, root_key)

        def evaluate(preprocessor, params, statistics, resident: ResidentArrays, batch, root_key, index):
            batch = feed.complete(resident, batch)
            return validation_step(
                config, structure, preprocessor, params, statistics, batch, root_key, index
            )

        started = time.perf_counter()
        compiled = (
            jax.jit(
                update,
                donate_argnums=1,
                out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, self.abstract), everywhere),
            )
            .lower(preprocessor, state, feed.resident, put_batch(self.mesh, loader.batch(0)), self.root_key)
            .compile()
        )
        took = time.perf_counter() - started
        self.announce(f"update compiled in {took:.1f} s; {describe_memory(compiled)}")
        evaluate = jax.jit(evaluate, out_shardings=everywhere)

        def validate(state: TrainState) -> dict[str, float]:
            batches = sequential_batches(
                self.dataset,
                self.features,
                "val",
                config.batch_size,
                share=process_share(),
                resident=feed.resident.names,
            )
            return validation_metrics(
                lambda params, statistics, batch, index: evaluate(
                    preprocessor, params, statistics, feed.resident, batch, self.root_key, np.int32(index)
                ),
                config,
                state,
                # Placed here, once for all the weights that are judged on a batch.
                (put_batch(self.mesh, batch) for batch in batches),
            )

        return compiled, validate


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Process 0 holds RUN's lock for all of them; where it cannot, all of them stop."""
    with contextlib.ExitStack() as stack:
        failure = None
        if is_main_process():
            try:
                stack.enter_context(locked(run))
            except UserError as error:
                failure = error
        if any_process(failure is not None):
            raise failure or UserError(f"process 0 cannot write {run}; its own message says why")
        yield


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
    moments = feature_moments(values, mask, per_slot=features.spec.has_fixed_slots)
    return make_normaliser(config.normalisation, dataset.statistics, *moments)


def check_batch_size(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses batches that do not split evenly over devices and accumulation parts."""
    devices = mesh.size
    if (config.batch_size // config.grad_accum_steps) % devices:
        raise UserError(
            f"batch-size {config.batch_size} in {config.grad_accum_steps} part(s) does not split over {devices} "
            f"devices; use a multiple of {devices * config.grad_accum_steps}"
        )


def _postfix(logged: dict[str, float]) -> str:
    parts = [
        f"loss {logged[LOSS]:.4f}",
        f"lr {logged[LEARNING_RATE]:.1e}",
        f"gradient {logged[GRADIENT_NORM]:.2g}",
    ]
    if RATE in logged:
        parts += [
            f"{logged[RATE]:.0f} samples/s",
            f"data {100 * logged[WAITING]:.0f}%",
        ]
    return ", ".join(parts)
