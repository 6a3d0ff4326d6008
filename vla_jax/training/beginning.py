"""How a run begins: new, from a file, from another policy's weights, or where it stopped. `begin` decides it all."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_jax.contracts.specs import StateWindow
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.models.config import FusionStrategy
from vla_jax.policy.artifact import PolicyArtifact, load_policy
from vla_jax.policy.checkpoints import checkpoint_steps, read_metadata, resolve_checkpoint
from vla_jax.storage import config_json
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.config import Rewarm, TrainConfig
from vla_jax.training.feature_age_option import feature_age_quantiles
from vla_jax.training.network_options import network_settings, refuse_other_parameters
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.recipes import make_config
from vla_jax.training.request import Request
from vla_jax.training.settings import differing, flat, replaced
from vla_jax.training.unrestored import unrestored

FUSION = "policy.fusion.strategy"
# What a resumed run may change: how long it goes on and how often it reports.
SCHEDULE = ("steps", "validate_every", "checkpoint_every", "log_every")


@dataclass(frozen=True)
class Beginning:
    """What was decided: all that `vla_jax.training.train` needs to know of how a run begins."""

    config: TrainConfig
    features: FeatureTable
    resumed: Path | None
    """The checkpoint that the run goes on from; None for a new run."""
    initial: PolicyArtifact | None
    """The policy whose weights and normalisation a new run begins with, if any."""
    other_data: bool
    """Whether the run goes on with another data set than it was trained on so far."""
    notes: tuple[str, ...]
    """What was decided without being asked for, in lines to show."""


def begin(request: Request, dataset: PackedDataset, settings: Mapping[str, Any] | None = None) -> Beginning:
    """Decides how a run begins.

    settings: values asked for, under the dotted names of `TrainConfig`'s fields; what is not in it stays as the
        recipe, the file or the resumed run has it.

    Raises:
        UserError: what is asked for contradicts itself, the data, or the run that is resumed.
    """
    settings, notes = dict(settings or {}), []

    # 1. What contradicts itself, or the data, is refused.
    feature_age, state_window = feature_age_quantiles(request.feature_age), _state_window(request)
    fusion = _fusion(request, settings.pop(FUSION, None))
    _refuse_contradictions(request, dataset, settings)

    # 2. The run goes on from its newest checkpoint if it may and has one; else it is new.
    going_on = request.resume and bool(checkpoint_steps(request.out))
    resumed = resolve_checkpoint(request.out) if going_on else None
    others = [] if resumed is None else data_differences(resumed, dataset)
    if others and not request.other_data:
        raise UserError(
            f"--resume continues {request.out}, which was trained on other data: {'; '.join(others)}; give that data "
            "set, start another run, or go on on purpose with --other-data"
        )

    # 3. It sees the features it has seen so far, or those asked for.
    name = request.features if resumed is None else _features_of(resumed, request)
    table = FeatureTable.open(dataset, request.cache, features=name, allow_missing=request.allow_missing)

    # 4. Its configuration is that of the run so far,
    initial = None
    if resumed is not None:
        base = saved_config(resumed)
    # or that of a file,
    elif request.config is not None:
        base = read_config(request.config)
    # or a recipe's, for a network of its own or for the network of the policy whose weights it begins with.
    else:
        if request.init_from is not None:
            initial = load_policy(request.init_from)
        if initial is None and fusion is None and dataset.spec.sensor is None:
            notes.append(f"{dataset.path} has no sensor: fusion none")
            fusion = "none"
        network = None if initial is None else initial.config
        base = make_config(
            request.recipe or "frozen",
            table.spec,
            dataset.spec,
            head=network.head.kind if network else request.model_type or "regression",
            fusion=network.fusion.strategy if network else fusion or "concat",
            noise_steps=request.diffusion_timesteps,
            state=request.state_enabled and network is None,
            state_window=None if network is not None else state_window,
            feature_age=feature_age if network is None else (),
        )
        if request.recipe in ("reference", "small_reference"):
            differs = unrestored(base.policy, table.spec, dataset)
            notes += [] if differs is None else [differs]
        if initial is not None:
            base = _with_network_of(initial, base, anchored_on_target=request.recipe == "reference")

    # 5. The network that this fixes must be the one asked for.
    _refuse_unless_equal("model-type", request.model_type, base.policy.head.kind)
    _refuse_unless_equal("fusion-strategy", fusion, base.policy.fusion.strategy)
    _refuse_unless_equal("diffusion-timesteps", request.diffusion_timesteps, base.policy.head.noise_steps)
    if request.state_enabled and base.policy.state is None:
        raise UserError("--state-enabled contradicts the given configuration, whose network reads no state")
    if state_window is not None:
        fixed = base.policy.state_window
        if fixed is None or fixed.window != state_window:
            has = "no window of the arm's state" if fixed is None else f"{_described(fixed.window)}"
            raise UserError(
                f"{_described(state_window)} contradicts the given configuration, whose network reads {has}"
            )

    # 6. The other settings that were asked for are put in, and the network must fit the data.
    settings |= network_settings(request.head, request.sensor_encoder, base.policy)
    if feature_age:
        settings["feature_age"] = feature_age
        if base.policy.age is None:
            notes.append("the network that is kept is not told how old features are")
    num_samples = len(table.sample_ticks("train"))
    config = _with_settings(base, request, settings, num_samples)
    if misfits := config.policy.misfits(table.spec, dataset.spec):
        raise UserError(f"the configured network does not fit {dataset.path}: {'; '.join(misfits)}")
    if initial is not None:
        refuse_other_parameters(initial, config)
    if (config.feature_age or config.policy.age) and dataset.spec.alignment == "index":
        raise UserError(
            f"{dataset.path} pairs pictures by index, so that features have no age; prepare with --alignment timestamp"
        )

    # 7. A run that goes on changes only how long and how often; its rates may rise once more.
    if resumed is not None:
        if set(differing(config, base)) - set(SCHEDULE):
            raise UserError(
                f"--resume continues {request.out} with its own configuration; only "
                f"{', '.join('--' + name.replace('_', '-') for name in SCHEDULE)} may change"
            )
        _refuse_another_beginning(request, base, settings, num_samples)
        if request.recipe is not None and base.recipe is None:
            notes.append(f"{request.out} does not say which recipe it began with; --recipe changes nothing")
        if request.rewarm:
            config = _rewarmed(config, base, int(resumed.name))
    return Beginning(config, table, resumed, initial, bool(others), tuple(notes))


def _state_window(request: Request) -> StateWindow | None:
    if request.state_window is None:
        if request.state_window_every is not None:
            raise UserError("--state-window-every goes with --state-window N")
        return None
    return StateWindow(request.state_window, request.state_window_every or 1)


def _described(window: StateWindow) -> str:
    every = f" --state-window-every {window.every}" if window.every != 1 else ""
    return f"--state-window {window.rows}{every}"


def data_differences(checkpoint: Path, dataset: PackedDataset) -> list[str]:
    """Returns in what a data set differs from the one that a checkpoint was trained on; [] where it is the same.

    Raises:
        UserError: the checkpoint is damaged.
    """
    identity = read_metadata(checkpoint).identity
    ours = dataset.describe()
    if identity.data_key in (None, ours["samples"], ours["content"]):
        return []
    before, now = flat(identity.data), flat(ours)
    names = {"path": "path", "episodes": "episodes", "train_samples": "training samples"}
    names |= {"val_samples": "held-out samples"}
    names |= {name: name.removeprefix("meta.") for name in now if name.startswith("meta.")}
    found = [
        f"{text} {before[name]}, not {now[name]}"
        for name, text in names.items()
        if name in before and before[name] != now[name]
    ]
    return found or ["other episodes, prompts or weights"]


def read_config(path: Path) -> TrainConfig:
    """Reads a configuration file.

    Raises:
        UserError: there is none, or it does not describe a `TrainConfig`.
    """
    if not path.is_file():
        raise UserError(f"no such configuration file: {path}")
    return config_json.read_json(TrainConfig, path)


def _fusion(request: Request, fusion: FusionStrategy | None) -> FusionStrategy | None:
    if request.sensor:
        return fusion
    if fusion not in (None, "none"):
        raise UserError(
            f"--no-sensor contradicts --fusion-strategy {fusion}; the policy without sensor is none"
        )
    return "none"


def _refuse_contradictions(request: Request, dataset: PackedDataset, settings: Mapping[str, Any]) -> None:
    if "steps" in settings and request.epochs is not None:
        raise UserError("give --steps or --epochs, not both")
    if request.other_data and not request.resume:
        raise UserError("--other-data goes with --resume; a new run trains on whatever data it is given")
    if request.rewarm and not request.resume:
        raise UserError("--rewarm goes with --resume; a new run warms up anyway")
    if request.vlm_reuse_count not in (None, dataset.meta.vlm_reuse_count):
        raise UserError(
            f"{dataset.path} was prepared with --vlm-reuse-count {dataset.meta.vlm_reuse_count}; run prepare again "
            f"with --vlm-reuse-count {request.vlm_reuse_count}"
        )
    if request.config is not None and request.init_from is not None:
        raise UserError("give --config or --init-from, not both; --init-from keeps its own network")
    if request.config is not None and request.recipe is not None:
        raise UserError("give --config or --recipe, not both; a configuration file says everything")


def _features_of(resumed: Path, request: Request) -> str:
    """Returns the name of the features that a run was trained on, and refuses others."""
    digest = read_metadata(resumed).identity.features.get("digest")
    if digest is None:
        raise UserError(f"{resumed} was imported, not trained here: there is no training to resume")
    if request.features is not None and not digest.startswith(request.features):
        raise UserError(
            f"--resume continues {request.out}, which was trained on the features {digest[:16]}, not "
            f"{request.features}; leave --features out or start another run"
        )
    return digest[:16]


def _with_network_of(
    initial: PolicyArtifact, config: TrainConfig, *, anchored_on_target: bool
) -> TrainConfig:
    """Returns a recipe's configuration with the network and the normalisation of a trained policy.

    anchored_on_target: keep training a regression on its own target, as the reference does; nothing is learnt so.
    """
    policy = dataclasses.replace(initial.config, dtype=config.policy.dtype)
    if not anchored_on_target:
        policy = dataclasses.replace(policy, head=policy.head.without_leaks())
    return dataclasses.replace(
        config,
        policy=policy,
        normalisation=initial.metadata.normalisation,
        init_from=str(initial.path),
    )


def _refuse_unless_equal(option: str, given: Any, configured: Any) -> None:
    """Refuses an option that contradicts a network that a file or a resumed run has already fixed."""
    if given is not None and given != configured:
        raise UserError(f"--{option} {given} contradicts the given configuration, which has {configured}")


def _with_settings(
    base: TrainConfig, request: Request, settings: Mapping[str, Any], num_samples: int
) -> TrainConfig:
    """Puts the settings in, those too that are asked for in epochs of `num_samples`."""
    batch_size = settings.get("batch_size", base.batch_size)
    counted = {}
    if request.epochs is not None:
        counted["steps"] = max(1, round(request.epochs * num_samples / batch_size))
    if request.sched_on == "epoch":
        counted["optimizer.schedule_interval"] = max(1, round(num_samples / batch_size))
    return replaced(base, {**settings, **counted})


def _refuse_another_beginning(
    request: Request, base: TrainConfig, settings: Mapping[str, Any], num_samples: int
) -> None:
    """Refuses what a run that goes on cannot begin with; what it did begin with may be said again."""
    if request.recipe is not None and base.recipe not in (None, request.recipe):
        raise UserError(
            f"--recipe {request.recipe} contradicts {request.out}, which began with the recipe {base.recipe}; leave "
            "it out or start another run"
        )
    if request.init_from is not None and not _holds(request.init_from, base.init_from):
        began = "weights of its own" if base.init_from is None else base.init_from
        raise UserError(
            f"--init-from {request.init_from} contradicts {request.out}, which began with {began}; leave it out or "
            "start another run"
        )
    if request.config is not None:
        begun = _with_settings(read_config(request.config), request, settings, num_samples)
        changed = [
            name
            for name in differing(begun, base)
            if name not in SCHEDULE and not name.startswith("optimizer.rewarm")
        ]
        if changed:
            raise UserError(
                f"--config {request.config} contradicts {request.out}, which has another {', '.join(changed)}; leave "
                "it out or start another run"
            )


def _holds(path: Path, checkpoint: str | None) -> bool:
    """Whether a checkpoint is the one meant by a path, or in it."""
    return checkpoint is not None and Path(checkpoint).absolute().is_relative_to(path.absolute())


def _rewarmed(config: TrainConfig, base: TrainConfig, step: int) -> TrainConfig:
    """Returns a resumed run's configuration in which the rates of `base` after `step` updates rise once more."""
    if config.steps <= step:
        raise UserError(f"--rewarm: the run is at step {step} of {config.steps}; give more --steps")
    expert, encoder = (
        float(make_schedule(base.optimizer, group, base.steps)(max(step - 1, 0)))
        for group in ("expert", "encoder")
    )
    again = Rewarm(step=step, lr=expert, sensor_lr=encoder)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, rewarm=again))
