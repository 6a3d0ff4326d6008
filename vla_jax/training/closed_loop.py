"""Judging a run in closed loop while it trains, where an environment is at hand.

Held-out errors do not rank policies: of two with the same error one may succeed twice as often. Where roll-outs are to
be had they decide which checkpoint is the best, and when a run has no more to gain. Training does not change by them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from vla_jax.contracts.metric_names import CLOSED_LOOP, best_score
from vla_jax.contracts.specs import DataSpec, FeatureSpec
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.policy.metadata import PolicyMetadata
from vla_jax.policy.network import abstract_network
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.training.config import TrainConfig
from vla_jax.training.state import TrainState


@dataclass(frozen=True)
class ClosedLoop:
    """Who judges, and how often."""

    judge: Callable[[PolicyArtifact], Mapping[str, float]]
    """A policy → `failure_rate`, the share of the episodes that failed, and `error`, which tells policies apart that
    fail equally often; smaller is better. Other names are logged too."""
    every: int
    """Updates from one judgement to the next; the last update is judged in any case."""
    patience: int | None = None
    """Judgements without improvement after which the run ends; None: it never ends early."""

    def __post_init__(self) -> None:
        if self.every < 1 or (self.patience is not None and self.patience < 1):
            raise UserError("updates between roll-outs and the patience must be at least 1")
        if jax.process_count() > 1:
            raise UserError("roll-outs while training are for one process; judge the checkpoints afterwards")

    def is_due(self, step: int, config: TrainConfig) -> bool:
        """Whether the policy is judged after this update."""
        return step == config.steps or step % self.every == 0


class Judgements:
    """The judgements of one run."""

    def __init__(self, closed_loop: ClosedLoop) -> None:
        self._closed_loop = closed_loop
        self._best: tuple[float, ...] = (math.inf,)
        self._in_vain = 0

    def judge(
        self,
        config: TrainConfig,
        state: TrainState,
        normaliser: Normaliser,
        data: DataSpec,
        features: FeatureSpec,
        checkpoint: Path,
    ) -> dict[str, float]:
        """Returns what is found of the weights that acting uses, under names of the group `closed_loop`.

        checkpoint: where they will lie.
        """
        params = state.ema_params if config.ema_decay > 0 else state.params
        structure = nnx.graphdef(abstract_network(config.policy))
        metadata = PolicyMetadata(config.policy, data, features, config.normalisation, step=int(state.step))
        # Copies: the next update donates the state.
        network = nnx.merge(structure, *jax.tree.map(jnp.copy, (params, state.statistics)))
        artifact = PolicyArtifact(network, normaliser, metadata, checkpoint)
        found = {f"{CLOSED_LOOP}/{name}": value for name, value in self._closed_loop.judge(artifact).items()}
        score = best_score(found)
        assert score is not None, "a judgement tells the failure rate"
        self._in_vain = 0 if score < self._best else self._in_vain + 1
        self._best = min(self._best, score)
        return found

    @property
    def is_enough(self) -> bool:
        """Whether the run has no more to gain."""
        patience = self._closed_loop.patience
        return patience is not None and self._in_vain >= patience
