"""One recorded episode in memory, whatever format it was read from."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame
from vla_jax.recordings.sensor_rows import SensorRecording


@dataclass(frozen=True)
class Segment:
    """A named stretch of an episode, in unix seconds, both ends included."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Stream:
    """Values of a per-tick column as they were recorded (`vla_jax.dataset.schema.register_column`)."""

    times: Float[np.ndarray, " m"]
    """Unix seconds, ascending."""
    values: Shaped[np.ndarray, "m ..."]


@dataclass
class Recording:
    """One episode as recorded. Readers fill in what there is; all times are unix seconds on one clock."""

    name: str
    format: str
    folder: Path
    instruction: str
    times: Float[np.ndarray, " n"] | None = None
    """Of the rows of `state` and `actions`, ascending; None when nothing moved."""
    state: Float[np.ndarray, "n p"] | None = None
    """Recorded pose (mm and degrees) or joint values; None where only actions were recorded."""
    state_names: tuple[str, ...] = ()
    """One for each of the p values."""
    actions: Float[np.ndarray, "n a"] | None = None
    """Recorded actions, each of one control tick. None: they are the deltas of the pose between ticks."""
    action_names: tuple[str, ...] = LAB_ACTIONS.names
    action_units: tuple[str, ...] = LAB_ACTIONS.units
    corrections: Stream | None = None
    """What should have been done at control ticks, (m, a): the actions to learn. A tick without one is no sample. None:
    what was done is what should have been."""
    rate_hz: float = 100.0
    """Nominal rate of `times`: recorded actions must have that of the data set's; for poses only the reference's
    pairing by index uses it."""
    in_whole_chunks: bool = False
    """Whether the reference, when it pairs by index, shows whole action chunks only, with pictures of their own."""
    views: Mapping[str, Sequence[Frame]] = field(default_factory=dict)
    """Each camera's pictures by ascending time."""
    sensor: SensorRecording | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    """What fills registered per-tick columns, by the column's name; others are not used."""
    segments: tuple[Segment, ...] = ()
    confidence: float = 1.0
    """Weight of its samples in training."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Generator[None, None, None]:
        """Notes an `EpisodeError` of its block as a fault and goes on, so that all faults of an episode are found."""
        try:
            yield
        except EpisodeError as error:
            self.faults.append(str(error))
