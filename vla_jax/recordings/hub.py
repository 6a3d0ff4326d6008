"""Data sets of the model hub, by name: `hub:USER/NAME`, or `hub:USER/NAME@REVISION`."""

import re
from pathlib import Path

from vla_jax.errors import UserError

PREFIX = "hub:"


def fetch(source: str) -> Path:
    """Downloads a data set, unless the hub's cache has it, and returns its folder there.

    The folder bears the name of the commit, and so do its episodes: another revision is another data set.

    Raises:
        UserError: the name is none, the library is not installed, or the hub does not give it.
    """
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or not re.fullmatch(r"[\w./-]*", revision):
        raise UserError(f"{source}: is not {PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UserError(
            f"{source}: needs huggingface_hub; install the extra: pip install 'vla-jax[lerobot]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision or None)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: cannot be fetched from the hub ({reason})") from error
    return Path(folder)
