"""What can be wrong with an episode, and how it is told."""

from dataclasses import dataclass


class EpisodeError(Exception):
    """What makes one episode unusable; the message names the file, relative to the episode's folder."""


@dataclass(frozen=True)
class Finding:
    """A remark on one episode: a fault leaves it out of the data set, a note does not."""

    episode: str
    reason: str
    is_fault: bool = True
