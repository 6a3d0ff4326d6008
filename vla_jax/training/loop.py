"""The training run from its first batch to its last checkpoint. How its configuration is decided: `beginning.py`."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from vla_jax.dataset.batches import BatchLoader
from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps
from vla_jax.policy.metadata import RunIdentity
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.storage.replacing import writing_to
from vla_jax.storage.stop_signals import stop_requested
from vla_jax.training.announcements import (
    describe_closed_loop,
    describe_devices,
    describe_memory,
    describe_metrics,
    describe_samples,
    describe_slowness,
    describe_state,
    peak_memory,
)
from vla_jax.training.checkpoint import CheckpointWriter
from vla_jax.training.closed_loop import ClosedLoop, Judgements
from vla_jax.training.compilation import compile_update, make_validation
from vla_jax.training.config import FeedMode, TrainConfig
from vla_jax.training.feeding import make_feed, prefetched
from vla_jax.training.log_window import NonFiniteLossError
from vla_jax.training.memory import refuse_beyond_memory, refuse_update_beyond_memory
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.pace import Pace
from vla_jax.training.processes import any_process, is_main_process, process_share
from vla_jax.training.run_directory import locked, save_bad_batch, write_config
from vla_jax.training.run_log import open_log
from vla_jax.training.sharding import Mesh, replicated
from vla_jax.training.starting_point import new_start, resumed_start
from vla_jax.training.state import abstract_state

logger = logging.getLogger(__name__)


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
    other_data: bool = False,
    initial: PolicyArtifact | None = None,
    feed: FeedMode = "auto",
    wandb: bool = False,
    closed_loop: ClosedLoop | None = None,
    announce: Callable[[str], None] = logger.info,
) -> TrainResult:
    """Trains a policy on the data set's training episodes and writes RUN.

    Writes RUN/config.json, RUN/metrics.jsonl, RUN/tensorboard and RUN/checkpoints. With `resume` it continues
    from RUN's newest checkpoint, bit for bit on a CPU, or starts RUN when there is none. Several processes call
    this together (`vla_jax.training.processes`).

    other_data: whether the run that is resumed was trained on another data set; it is validated on this one first.
    initial: a policy whose weights and normalisation a new run begins with; `config.policy` must describe it.
    feed: how batches reach the devices, see `vla_jax.training.feeding`.
    wandb: whether to send the metrics to Weights & Biases too.
    closed_loop: judges the run by roll-outs, beside the held-out errors; the best checkpoint is then theirs.
    announce: is told, line by line, what the run is about to do.

    Raises:
        UserError: RUN holds a run and `resume` is False; another process writes RUN; no training samples; batch
            size and devices do not fit; the loss stopped being finite.
    """
    check_batch_size(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(config, optimizer, mesh)
    refuse_beyond_memory(config, dataset, features, abstract, mesh)
    with run_lock(run), writing_to(run):
        steps_done = checkpoint_steps(run)
        if steps_done and not resume:
            raise UserError(f"{run} already holds a run; continue it with --resume or choose another --out")
        if is_main_process():
            write_config(config, run)

        # What the run holds before its first update.
        if steps_done:
            start = resumed_start(run / CHECKPOINTS / str(steps_done[-1]), abstract, mesh)
            announce(f"resuming at step {start.step} of {config.steps}")
        else:
            start = new_start(config, optimizer, abstract, dataset, features, initial, mesh)
        announce(describe_devices(mesh))
        announce(describe_state(start.state))

        # What it sees.
        for line in (*describe_slowness(start.state, mesh), *describe_samples(config, dataset, features)):
            announce(line)
        fed = make_feed(feed, dataset, features, mesh)
        announce(fed.describe())
        loader = BatchLoader(
            dataset,
            features,
            split="train",
            batch_size=config.batch_size,
            seed=config.seed,
            aged=AgedFeatures.of(dataset, features, config.feature_age, config.seed),
            state_window=config.policy.last_states,
            share=process_share(),
            resident=fed.resident.names,
        )

        # What it computes. The key is made inside: one process's key could not be given to a mesh of several.
        root_key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
        preprocessor = Preprocessor(start.normaliser, config.policy.sensor.num_averages)
        announce("compiling the update …")
        began = time.perf_counter()
        update = compile_update(config, optimizer, fed, preprocessor, start.state, loader.batch(0), root_key)
        took = time.perf_counter() - began
        refuse_update_beyond_memory(peak_memory(update.compiled), mesh)
        announce(f"update compiled in {took:.1f} s; {describe_memory(update.compiled)}")
        validate = make_validation(config, dataset, features, fed, preprocessor, root_key)

        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_requested())
            # A reader left open can hang the process's exit.
            batches = stack.enter_context(contextlib.closing(iter(loader)))
            if start.data_position is not None:
                batches.set_state(start.data_position)
            log = stack.enter_context(open_log(run, config, start, wandb=wandb, announce=announce))
            pace = Pace(start.step, config.steps, log.say)
            checkpoints = stack.enter_context(contextlib.closing(CheckpointWriter(run)))
            save = functools.partial(
                checkpoints.save,
                config=config,
                normaliser=start.normaliser,
                data=dataset.spec,
                features=features.spec,
                identity=_identity(dataset, features),
            )
            stack.enter_context(_keeping_bad_batches(run, loader, batches.index - start.step))
            judgements = None if closed_loop is None else Judgements(closed_loop)
            leaves, step, metrics, stopping = jax.tree.leaves(start.state), start.step, start.metrics, False
            if other_data:
                metrics = validate(start.state)
                log.say(f"on the other data at step {step}: {describe_metrics(metrics)}")
            for step, batch, position in prefetched(
                batches, mesh, start.step, config.steps, log.window.waited
            ):
                leaves, scalars = update(preprocessor, leaves, fed.resident, batch, root_key)
                log.add(scalars)
                pace.updated(step, scalars)
                logs, validates, saves = (
                    step == config.steps or step % every == 0
                    for every in (config.log_every, config.validate_every, config.checkpoint_every)
                )
                validated: dict[str, float] = {}
                if logs:
                    log.write_window(step)
                if validates:
                    validated = validate(update.state(leaves))
                    metrics = validated or metrics
                    if validated:
                        log.say(f"step {step}: {describe_metrics(validated)}")
                    log.write(step, validated)
                    log.window.restart()
                if closed_loop is not None and judgements is not None and closed_loop.is_due(step, config):
                    checkpoint, saves = run / CHECKPOINTS / str(step), True
                    judged = judgements.judge(
                        config,
                        update.state(leaves),
                        start.normaliser,
                        dataset.spec,
                        features.spec,
                        checkpoint,
                    )
                    validated, metrics = validated | judged, metrics | judged
                    log.say(f"step {step}: {describe_closed_loop(judged)}")
                    log.write(step, judged)
                    log.window.restart()
                # Several processes must stop after the same update; asking each other takes a moment.
                if jax.process_count() == 1 or logs or saves:
                    stopping = any_process(stop.is_set)
                if saves or stopping:
                    unlogged = log.window.fetch(step)
                    state = update.state(leaves)
                    save(state, step=step, data_position=position, metrics=validated, unlogged=unlogged)
                    log.window.restart()
                if stopping or (judgements is not None and judgements.is_enough):
                    break
        return TrainResult(step=step, interrupted=stopping and step < config.steps, metrics=metrics)


def check_batch_size(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses batches that do not split evenly over devices and accumulation parts."""
    devices = mesh.size
    if (config.batch_size // config.grad_accum_steps) % devices:
        raise UserError(
            f"batch-size {config.batch_size} in {config.grad_accum_steps} part(s) does not split over {devices} "
            f"devices; use a multiple of {devices * config.grad_accum_steps}"
        )


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


def _identity(dataset: PackedDataset, features: FeatureTable) -> RunIdentity:
    seen = {f"{split}_samples": len(features.sample_ticks(split)) for split in ("train", "val")}
    return RunIdentity(features=features.provenance, data=dataset.describe() | seen)


@contextlib.contextmanager
def _keeping_bad_batches(run: Path, loader: BatchLoader, offset: int) -> Iterator[None]:
    """Saves the batch of an update whose loss was not finite. offset: of the batches' numbers over the updates done.

    Raises:
        UserError: says where it is.
    """
    try:
        yield
    except NonFiniteLossError as error:
        batch = loader.batch(offset + error.step - 1, resident=())
        saved = save_bad_batch(run, error.step, batch, error.history)
        raise UserError(
            f"{error}; its batch and the losses before it are saved in {saved}: look at them, or start again "
            "with a lower --lr"
        ) from error
