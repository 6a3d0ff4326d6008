"""What `prepare` is told: settings that decide a packed episode, and those of the whole data set."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vla_jax.contracts.checks import LARGEST_INT
from vla_jax.contracts.specs import LAB_ACTIONS, Alignment
from vla_jax.dataset.schema import Column
from vla_jax.dataset.units import AngleUnits, PoseUnits
from vla_jax.errors import UserError
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.registry import reader_of

# Raise it when the same files and options begin to give other packed episodes.
EPISODE_VERSION = 4
DEFAULT_ACTION_HZ = LAB_ACTIONS.control_hz


@dataclass(frozen=True)
class EpisodeOptions:
    """What decides a packed episode, beside the episode's files."""

    action_hz: float | None = None
    """Rate of the actions in Hz; at most the rate of the recorded poses, and that of recorded actions. By default what
    the episodes' format says of their actions, else 10."""
    alignment: Alignment = "timestamp"
    """timestamp: each tick sees the newest picture and sensor rows; index: pairs by position, as the reference."""
    sensor_dtype: Literal["float16", "float32"] = "float16"
    """Storage type of the sensor stream; float16 costs at most 0.05 % of a value."""
    views: tuple[str, ...] | None = None
    """Camera views to keep; all by default."""
    sensor: bool = True
    """Whether to read the sensor; without, every episode is packed as one that has none."""
    max_image_age: float = 2.0
    """Seconds after which a picture is too old to be seen (by the robot's clock); ticks with such a picture are left
    out."""
    pose_units: PoseUnits | None = None
    """Unit of recorded positions; without, mm, and a question where the numbers look like metres."""
    angle_units: AngleUnits | None = None
    """Unit of recorded angles; without, degrees."""
    readers: Mapping[str, Any] = field(default_factory=dict)
    """Format → the options that only its reader has (`EpisodeReader.options`); defaults where it is absent."""

    def __post_init__(self) -> None:
        if self.views is not None:
            object.__setattr__(self, "views", tuple(sorted(set(self.views))))

    @property
    def rate_hz(self) -> float:
        """Rate of the actions; `prepare` has put in what the episodes say."""
        return DEFAULT_ACTION_HZ if self.action_hz is None else self.action_hz

    def own(self, reader: EpisodeReader) -> Any:
        """Returns the options that only this reader has."""
        return self.readers.get(reader.kind, reader.options())

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that are equal exactly where the same files give the same packed episode."""
        given = {kind: chosen for kind, chosen in self.readers.items() if chosen != reader_of(kind).options()}
        values = {
            **vars(self),
            "action_hz": self.rate_hz,
            "pose_units": self.pose_units or "mm",
            "angle_units": self.angle_units or "deg",
            "readers": {kind: asdict(chosen) for kind, chosen in given.items()},
            "version": EPISODE_VERSION,
        }
        # As it is read again: tuples are lists.
        return json.loads(json.dumps(values))

    def name_of(self, fingerprint: str, columns: Sequence[Column]) -> str:
        """Returns the name of an episode that is packed with these options and registered columns."""
        text = json.dumps(
            [fingerprint, self.to_json(), [column.to_json() for column in columns]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of a data set. The docstrings are what `prepare --help` says of these options.

    Names in `prompts` and `weights` are those of `vla_jax.recordings.discovery.EpisodeFolder.labels`.
    """

    episode: EpisodeOptions = field(default_factory=EpisodeOptions)
    horizon: int = LAB_ACTIONS.horizon
    """Actions that a policy predicts at once."""
    instruction: str | None = None
    """Prompt of all other episodes in place of their own. Without: the recorded one, else a sentence with the task
    folder's name."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt of a source, of a folder in it, or of a format, in place of the recorded one."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often training draws the samples of a source, of a folder in it, or of a format (legacy, windows, capture,
    lerobot), relative to the others (1)."""
    strict: bool = False
    """Refuse the whole set when an episode is faulty, instead of leaving that episode out."""
    val_fraction: float = 0.2
    """Share of the episodes held out for validation, chosen by a hash of their names. Episodes of a data set that is
    there keep their side; another share or seed chooses anew."""
    seed: int = 0
    """Seed of that choice."""
    vlm_reuse_count: int = 3
    """Control ticks that share one picture's features."""
    sensor_window_size: int = 65
    """Sensor rows that a sample sees."""
    num_workers: int = 1
    """Processes that read episodes."""

    def __post_init__(self) -> None:
        if not 0 < self.episode.rate_hz <= 1000:
            raise UserError(f"--action-hz {self.episode.rate_hz:g} is impossible; give a rate in Hz above 0")
        if not 0 <= self.val_fraction < 1:
            raise UserError(
                f"--val-fraction {self.val_fraction:g} is impossible; give a share from 0 to below 1"
            )
        for name in ("horizon", "vlm_reuse_count", "sensor_window_size", "num_workers"):
            if not 1 <= getattr(self, name) <= LARGEST_INT:
                limit = "at least 1" if getattr(self, name) < 1 else f"at most {LARGEST_INT}"
                raise UserError(
                    f"--{name.removeprefix('num_').replace('_', '-')} {getattr(self, name)} is impossible; give {limit}"
                )
        if not 0 < self.episode.max_image_age < math.inf:
            raise UserError(
                f"--max-image-age {self.episode.max_image_age:g} is impossible; give a number of seconds above 0"
            )
        if self.episode.sensor_dtype not in ("float16", "float32"):
            raise UserError(
                f"sensor dtype {self.episode.sensor_dtype!r} is unknown; choose float16 or float32"
            )
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"--weight {name}={weight:g} is impossible; give a number above 0")
        for prompt in (self.instruction, *self.prompts.values()):
            if prompt is not None and not prompt.strip():
                raise UserError("a prompt is empty; give the text that the policy is told")
