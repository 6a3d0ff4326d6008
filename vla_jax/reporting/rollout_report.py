"""The files of a closed-loop report: rollouts.npz, report.html and rollout.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.contracts.environment import STOP
from vla_jax.contracts.specs import ActionSpec
from vla_jax.errors import UserError
from vla_jax.evaluation.rollout_summary import Trial, rollout_json
from vla_jax.reporting.film import Film
from vla_jax.reporting.rollout_page import rollout_html
from vla_jax.storage.replacing import replace_file, replace_text


def write_rollouts(
    out: Path,
    trials: Sequence[Trial],
    actions: ActionSpec,
    settings: Mapping[str, Any],
    films: Mapping[str, Sequence[Film]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes rollouts.npz, report.html and, last, rollout.json into `out`, a directory; returns the latter's content.

    Each file appears complete or not at all.

    trials: each with at least one episode. settings: what was asked for, as JSON. films: by the name of the run, of its
        first trial (`vla_jax.reporting.film.make_films`). seed: of the bootstrap.

    Raises:
        UserError: `out` cannot be written.
    """
    content = rollout_json(trials, actions, settings, seed=seed)
    text = json.dumps(content, indent=2, allow_nan=False)
    page = rollout_html(content, trials, films)
    arrays = rollout_arrays(trials)
    try:
        replace_file(out / "rollouts.npz", lambda handle: np.savez_compressed(handle, **arrays))
        replace_text(out / "report.html", page)
        replace_text(out / "rollout.json", text + "\n")
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror or error}") from error
    return content


def rollout_arrays(trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns what was done, as arrays: episodes by trial and seed, their ticks one after another.

    Of each trial: run, setting. Of each episode: trial (row of the former), seed, success, failure ("" on success),
    measure_NAME for each measure (NaN where it is not defined; 0 and 1 for no and yes), stop_mm (how deep the tip
    should stop; NaN where the environment does not say), tick_begin, tick_end (rows of the ticks; of its actions the
    last is one before). Of each tick: time_s, pose, action (NaN at an episode's last
    tick), tip_mm [., 3] and force_n (NaN where the environment shows no scene). Of each decision: decision_episode,
    decision_tick, image_time_s.
    """
    episodes = [
        (index, rollout)
        for index, trial in enumerate(trials)
        for rollout in sorted(trial.rollouts, key=lambda rollout: rollout.seed)
    ]
    rollouts = [rollout for _, rollout in episodes]
    lengths = np.array([len(rollout.time_s) for rollout in rollouts])
    ends = np.cumsum(lengths)
    outcomes = [rollout.outcome for rollout in rollouts]
    tips, forces, stops = [], [], []
    for rollout in rollouts:
        scene, num_ticks = rollout.outcome.scene, len(rollout.time_s)
        tips.append(np.full((num_ticks, 3), np.nan) if scene is None else scene.tip_mm)
        forces.append(np.full(num_ticks, np.nan) if scene is None else scene.force_n)
        stops.append(np.nan if scene is None else scene.layers_mm.get(STOP, np.nan))
    measures = {
        f"measure_{name}": np.array(
            [
                np.nan if (value := outcome.measures.get(name)) is None else float(value)
                for outcome in outcomes
            ]
        )
        for name in dict.fromkeys(name for outcome in outcomes for name in outcome.measures)
    }
    return {
        "run": np.array([trial.name for trial in trials]),
        "setting": np.array([trial.setting for trial in trials]),
        "trial": np.array([index for index, _ in episodes]),
        "seed": np.array([rollout.seed for rollout in rollouts]),
        "success": np.array([outcome.success for outcome in outcomes]),
        "failure": np.array([outcome.failure or "" for outcome in outcomes]),
        **measures,
        "stop_mm": np.array(stops),
        "tick_begin": ends - lengths,
        "tick_end": ends,
        "time_s": np.concatenate([rollout.time_s for rollout in rollouts]),
        "pose": np.concatenate([rollout.pose for rollout in rollouts]),
        "action": np.concatenate(
            [np.pad(rollout.actions, ((0, 1), (0, 0)), constant_values=np.nan) for rollout in rollouts]
        ),
        "tip_mm": np.concatenate(tips),
        "force_n": np.concatenate(forces),
        "decision_episode": np.repeat(
            np.arange(len(rollouts)), [len(rollout.decision_tick) for rollout in rollouts]
        ),
        "decision_tick": np.concatenate([rollout.decision_tick for rollout in rollouts]),
        "image_time_s": np.concatenate([rollout.image_time_s for rollout in rollouts]),
    }
