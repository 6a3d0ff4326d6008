"""Which record of a packed data set a file of the PyTorch reference's feature cache belongs to.

The reference names a file `<episode>_vlm<index>.pt`. The index counts the action (legacy) or the pose (windows) at
which the features were refreshed, and the reference takes the pictures of that same index: of each view picture
number `index`, or its last one where the view has fewer. So the file holds the features of these pictures, whatever
the time they were taken at, and belongs to the record that shows exactly these. A data set aligned by `index` has
all such records; one aligned by `timestamp` has only those where the cameras happen to agree with the reference.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from feature_cache.keys import record_key
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.feature_table import record_keys
from vla_jax.dataset.packed_dataset import PackedDataset

_FILE_NAME = re.compile(r"(?P<episode>.+)_vlm(?P<index>[0-9]{1,9})\.pt")

WRONG_NAME = "not named <episode>_vlm<index>.pt"
NO_EPISODE = "of no episode of the data set"
AMBIGUOUS_EPISODE = "of a name that several episodes share"
CAPTURE_EPISODE = "of a capture episode, which the reference does not read"
NO_PICTURES = "of an index at which the episode has no pictures"
UNUSED_PICTURES = "of pictures that no record of the data set shows together"
SAME_PICTURES = "of the same prompt and pictures as a file of another index"


@dataclass(frozen=True)
class MatchedFile:
    """A file's name and the record that it belongs to."""

    name: str
    key: str
    prompt: str


@dataclass(frozen=True)
class ReferenceMatch:
    """What belongs together. unmatched: reason → names of files; absent: required records that no file is for."""

    files: tuple[MatchedFile, ...]
    unmatched: dict[str, list[str]]


def match_reference_files(
    dataset: PackedDataset, provenance: Provenance, names: Iterable[str]
) -> ReferenceMatch:
    """Finds the record of each file of a reference cache, by name alone; no file is read.

    The prompt is taken to be the episode's: the files do not say with which one they were made.
    """
    wanted = set(record_keys(dataset, dataset.required_records(), provenance))
    finder = _PictureFinder(dataset)
    files: dict[str, MatchedFile] = {}
    unmatched: dict[str, list[str]] = {}
    for name, found in sorted(((name, _FILE_NAME.fullmatch(name)) for name in names), key=_order):
        content = WRONG_NAME if found is None else finder.content(found["episode"], int(found["index"]))
        if isinstance(content, str):
            unmatched.setdefault(content, []).append(name)
            continue
        prompt, digests = content
        key = record_key(provenance.digest(), prompt, digests)
        if key not in wanted or key in files:
            reason = SAME_PICTURES if key in files else UNUSED_PICTURES
            unmatched.setdefault(reason, []).append(name)
            continue
        files[key] = MatchedFile(name, key, prompt)
    return ReferenceMatch(tuple(files.values()), unmatched)


def _order(entry: tuple[str, re.Match | None]) -> tuple[str, int, str]:
    name, found = entry
    return ("", 0, name) if found is None else (found["episode"], int(found["index"]), name)


class _PictureFinder:
    """Prompt and pictures of the reference's (episode, index), from the packed arrays alone."""

    def __init__(self, dataset: PackedDataset) -> None:
        self._dataset = dataset
        self._instant_images = dataset.array("instant_images")
        self._digests = dataset.array("image_digest")
        self._names = Counter(entry.name for entry in dataset.episodes)
        self._episodes = {entry.name: i for i, entry in enumerate(dataset.episodes)}
        self._view_rows = lru_cache(maxsize=64)(self._view_rows_of)

    def content(self, name: str, index: int) -> tuple[str, list[str]] | str:
        """Returns (prompt, image digests in view order), or in words why there is none."""
        if name not in self._episodes:
            return NO_EPISODE
        if self._names[name] > 1:
            return AMBIGUOUS_EPISODE
        episode = self._episodes[name]
        entry = self._dataset.episodes[episode]
        if entry.format == "capture":
            return CAPTURE_EPISODE
        rows = (self._legacy_rows if entry.format == "legacy" else self._windows_rows)(episode, index)
        if not rows:
            return NO_PICTURES
        return entry.instruction, [self._digests[row].tobytes().hex() for row in rows]

    def _legacy_rows(self, episode: int, index: int) -> list[int]:
        """A legacy tick is an action, and shows the pictures of its own index under either alignment."""
        entry = self._dataset.episodes[episode]
        instant = -1
        if index < entry.tick_stop - entry.tick_start:
            instant = int(self._dataset.ticks.instant[entry.tick_start + index])
        return [row for row in self._instant_images[instant].tolist() if row >= 0] if instant >= 0 else []

    def _windows_rows(self, episode: int, index: int) -> list[int]:
        return [rows[min(index, len(rows) - 1)] for rows in self._view_rows(episode)]

    def _view_rows_of(self, episode: int) -> list[range]:
        """Returns the image rows of each view of a `windows` episode, views and pictures in their order."""
        raw = self._dataset.raw_episodes[episode]
        bounds = itertools.accumulate(raw["images_per_view"], initial=raw["image_start"])
        return [range(start, stop) for start, stop in itertools.pairwise(bounds)]
