"""How a person asks for a run to begin. The docstrings are what `train --help` says of these options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vla_jax.contracts.checks import Count, Positive, Range, check
from vla_jax.training.config import RecipeName


@dataclass(frozen=True)
class Request:
    """What a run trains on, where it is written, and what it begins from; `vla_jax.training.beginning` decides."""

    cache: Path
    """Feature cache, written by `python -m experiments.export`."""
    out: Path
    """Run directory to write: configuration, checkpoints and logs."""
    recipe: RecipeName | None = None
    """frozen (the default): full-size heads for features of a frozen backbone. small: heads that train in minutes on
    a CPU. reference: full-size, with every deviation from the PyTorch reference switched off. small_reference: the
    same at the sizes of small. debug: tiny, for tests. A resumed run keeps the configuration it started with."""
    config: Path | None = None
    """JSON configuration to start from instead of a recipe, for instance another run's config.json."""
    init_from: Path | None = None
    """Run, checkpoint or imported reference whose weights and normalisation a new run begins with. Its network is
    kept, and the recipe says how to train it."""
    model_type: str | None = None
    """Kind of action head. regression (the default): one pass predicts the chunk. diffusion: the chunk is denoised in
    several steps. flow: noise is carried to the chunk along a learned velocity, in a few steps or one.
    minimal_iterative: two passes of regression, the second from the first one's answer."""
    head: tuple[str, ...] = ()
    """NAME=VALUE of fields of the head's configuration, as RUN/config.json names them below policy.head; for instance
    prefix_max=2."""
    sensor_encoder: tuple[str, ...] = ()
    """NAME=VALUE of fields of the sensor encoder's configuration, as RUN/config.json names them below policy.sensor;
    for instance readout=flatten averaged_rows=5."""
    diffusion_timesteps: Count | None = None
    """Steps of the noise schedule, for heads that have one; the recipe's by default."""
    sensor: bool = True
    """Whether the policy reads the sensor; --no-sensor is the same as --fusion-strategy none."""
    state_enabled: bool = False
    """Whether the policy reads the arm's own orientation (the lab's three angles; where the recorded state is another
    arm's, all of it)."""
    state_window: Annotated[int, Range(low=2, high=1000)] | None = None
    """How many of the arm's last poses (or whatever state was recorded) the policy reads, relative to the newest one,
    which counts."""
    state_window_every: Annotated[int, Range(low=1, high=1000)] | None = None
    """Control ticks from one of them to the next (1 by default)."""
    feature_age: tuple[str, ...] = ()
    """How old the features are that training shows, and tells the policy: one age in seconds for all samples; two to
    draw between; or a live run's log, or the directory it is in, whose ages they are drawn from. Without, they are
    the newest, and nothing is told."""
    epochs: Positive | None = None
    """Passes over the training samples, instead of --steps."""
    sched_on: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes with every update or once an epoch."""
    resume: bool = False
    """Continue RUN from its newest checkpoint, or start it when there is none."""
    other_data: bool = False
    """With --resume: go on with another data set than the run was trained on so far. Its held-out episodes are judged
    anew first."""
    rewarm: bool = False
    """With --resume: warm up again, from the rate at which the run stopped to the peak, over the updates left."""
    vlm_reuse_count: int | None = None
    """Control ticks that share one camera instant; the data set fixes it, and another number is refused."""
    features: str | None = None
    """Which features of the cache to use, when it holds several kinds; `export` prints the name."""
    allow_missing: bool = False
    """Train on the samples whose features the cache has, and say how many that leaves."""

    def __post_init__(self) -> None:
        check(self)
