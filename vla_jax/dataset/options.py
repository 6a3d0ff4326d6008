"""What `prepare` is told: settings that decide a packed episode, and those of the whole data set."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_jax.contracts.checks import LARGEST_INT
from vla_jax.contracts.specs import LAB_ACTIONS, Alignment
from vla_jax.dataset.schema import Column
from vla_jax.dataset.units import AngleUnits, PoseUnits
from vla_jax.errors import UserError
from vla_jax.recordings.registry import reader_of

# Raise it when the same files and options begin to give other packed episodes.
EPISODE_VERSION = 4


@dataclass(frozen=True)
class EpisodeOptions:
    """What decides a packed episode, beside the episode's files.

    views: names of the camera views to keep; None keeps all.
    sensor: False packs every episode as one without sensor.
    max_image_age: seconds after which a picture is too old to be seen; ticks with such a picture are left out.
    pose_units, angle_units: of recorded poses; None takes mm and degrees, and asks where the numbers look otherwise.
    readers: format → the options that only its reader has (`EpisodeReader.options`); defaults where it is absent.
    """

    action_hz: float = 10.0
    alignment: Alignment = "timestamp"
    sensor_dtype: str = "float16"
    views: tuple[str, ...] | None = None
    sensor: bool = True
    max_image_age: float = 2.0
    pose_units: PoseUnits | None = None
    angle_units: AngleUnits | None = None
    readers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that are equal exactly where the same files give the same packed episode."""
        given = {kind: chosen for kind, chosen in self.readers.items() if chosen != reader_of(kind).options()}
        return {
            **vars(self),
            "pose_units": self.pose_units or "mm",
            "angle_units": self.angle_units or "deg",
            "views": None if self.views is None else list(self.views),
            "readers": {kind: asdict(chosen) for kind, chosen in given.items()},
            "version": EPISODE_VERSION,
        }

    def name_of(self, fingerprint: str, columns: Sequence[Column]) -> str:
        """Returns the name of an episode that is packed with these options and registered columns."""
        text = json.dumps(
            [fingerprint, self.to_json(), [column.to_json() for column in columns]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of a data set. val_fraction: share of episodes held out; seed: of the split.

    horizon: actions in a chunk. vlm_reuse_count: ticks that share one camera instant's features.
    instruction: prompt of all episodes, in place of their own; prompts, weights: prompt and sampling weight by the
    name of a source, of a folder in it or of a format (`vla_jax.recordings.discovery.EpisodeFolder.labels`).
    """

    episode: EpisodeOptions = field(default_factory=EpisodeOptions)
    horizon: int = LAB_ACTIONS.horizon
    instruction: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False
    val_fraction: float = 0.2
    seed: int = 0
    vlm_reuse_count: int = 3
    sensor_window_size: int = 65
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.episode.action_hz <= 1000:
            raise UserError(
                f"--action-hz {self.episode.action_hz:g} is impossible; give a rate in Hz above 0"
            )
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
