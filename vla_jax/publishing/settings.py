"""What a published data set is told to be."""

from dataclasses import dataclass
from typing import Literal, get_args

from vla_jax.errors import UserError

Codec = Literal["h264", "av1"]
CODECS: tuple[Codec, ...] = get_args(Codec)
ENCODERS: dict[Codec, str] = {"h264": "libx264", "av1": "libsvtav1"}


@dataclass(frozen=True)
class PublishOptions:
    """Settings of a LeRobot data set. The docstrings are what `to-lerobot --help` says of these options."""

    codec: Codec = "h264"
    """Video codec. h264 is decoded everywhere; av1 is smaller, and what LeRobot itself writes."""
    crf: int | None = None
    """Quality of the video: lower is better and larger; 23 for h264 and 30 for av1 by default."""
    keyframe_every: int = 2
    """Frames from one keyframe to the next; few make random access quick."""
    data_mb: int = 100
    """Size of a parquet file above which the next is begun, in MB."""
    video_mb: int = 200
    """Likewise of a video file."""
    robot_type: str | None = None
    """Name of the robot, for meta/info.json."""
    license: str | None = None
    """Licence of the data, for the data card: apache-2.0, cc-by-4.0, …"""

    def __post_init__(self) -> None:
        for name in ("keyframe_every", "data_mb", "video_mb"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is impossible; give at least 1"
                )
        if not 0 <= self.quality <= 63:
            raise UserError(f"--crf {self.quality} is impossible; give a number from 0 to 63")

    @property
    def quality(self) -> int:
        """The constant rate factor."""
        return self.crf if self.crf is not None else {"h264": 23, "av1": 30}[self.codec]
