"""What a data set remembers of the sides its episodes were on, so that none moves when `prepare` is run again.

The side of an episode that is there stands in its entry, that of one that has left the set in `dataset.json`, under
"left". A data set in a new folder, or one that cannot be opened, remembers nothing; neither does one that is prepared
with another fraction or seed: its split starts anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_jax.recordings.discovery import episode_identity


class SplitMemory:
    """The side of each episode ever prepared into a data set, by its absolute path."""

    def __init__(self, sides: Mapping[str, str]) -> None:
        self._sides = dict(sides)
        self._by_identity: dict[str, str] = {}
        for path, side in self._sides.items():
            identity = episode_identity(Path(path))
            # Of namesakes one side counts: nothing that may have been held out is trained on.
            if self._by_identity.get(identity) != "val":
                self._by_identity[identity] = side

    @classmethod
    def of(cls, index: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> "SplitMemory":
        """Reads it from what a data set's JSON files hold; what is no side is passed over."""
        left = index.get("left")
        sides = dict(left) if isinstance(left, dict) else {}
        sides |= {entry["absolute_path"]: entry["split"] for entry in entries}
        return cls({path: side for path, side in sides.items() if side in ("train", "val")})

    def sides(self, paths: Sequence[Path]) -> list[str | None]:
        """Returns the side of the episodes at absolute paths, None for new ones.

        One at a path of its own may be an old one that was moved: then the namesakes' side holds.
        """
        return [self._sides.get(str(path)) or self._by_identity.get(episode_identity(path)) for path in paths]

    def without(self, paths: Iterable[Path]) -> dict[str, str]:
        """Returns the sides of the other episodes: those that have left the set."""
        present = set(map(str, paths))
        return {path: side for path, side in sorted(self._sides.items()) if path not in present}
