"""Where a data set's files are: names made from its templates, which come from other machines."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from vla_jax.recordings.findings import EpisodeError

_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
MAX_NAME = 1000


def fill_template(template: object, values: Mapping[str, int | str], what: str) -> str:
    """Returns a path template with its fields filled in: `{name}` and `{name:03d}`, and nothing else that
    `str.format` would do. what: names the template in errors.

    Raises:
        EpisodeError: it is no text, asks for something else, or leads out of the data set's folder.
    """
    if not isinstance(template, str):
        raise EpisodeError(f"meta/info.json: {what} is no text")

    def fill(found: re.Match[str]) -> str:
        name, width = found[1], found[2]
        if name not in values:
            raise EpisodeError(f"meta/info.json: {what} asks for {name!r}; known are {', '.join(values)}")
        return str(values[name]).zfill(int(width or 0))

    path = _FIELD.sub(fill, template)
    if "{" in path or "}" in path:
        raise EpisodeError(
            f"meta/info.json: {what} {template[:100]!r} is no template of names like {{name:03d}}"
        )
    return checked_name(path, f"meta/info.json: {what}")


def checked_name(path: str, what: str) -> str:
    """Returns a relative path that stays below its folder. Raises EpisodeError for any other; what: names it."""
    parts = PurePosixPath(path).parts
    if (
        not parts
        or ".." in parts
        or path.startswith("/")
        or "\\" in path
        or "\0" in path
        or len(path) > MAX_NAME
    ):
        raise EpisodeError(f"{what} leads to {path[:100]!r}, out of the data set's folder")
    return path


def file_in(folder: Path, name: str) -> Path:
    """Returns the path of a data set's file. Links are followed within the folder, and from a snapshot of the model
    hub's cache to the blobs beside it.

    Raises:
        EpisodeError: it is missing, or a link leads elsewhere.
    """
    path = folder / checked_name(name, "a file's name")
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{name}: is missing") from error
    root = Path(os.path.realpath(folder))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise EpisodeError(f"{name}: is a link that leads out of the data set's folder")
    return path
