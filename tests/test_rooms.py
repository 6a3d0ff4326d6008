"""Who may import whom: the rooms in order, each of which imports only from itself and from those before it."""

import ast
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

# The order of docs/architecture.md. A module belongs to the longest name here that begins its own.
ROOMS = (
    "vla_jax.lazy_names",
    "vla_jax.errors",
    "vla_jax.progress",
    "vla_jax.optional_torch",
    "vla_jax.contracts",
    "vla_jax.storage",
    "feature_cache",
    "vla_jax.timing",
    "vla_jax.recordings",
    "vla_jax.dataset",
    "vla_jax.publishing",
    "vla_jax.diffusion",
    "vla_jax.models",
    "vla_jax.heads",
    "vla_jax.preprocessing",
    "vla_jax.policy",
    "vla_jax.bundle",
    "vla_jax.serving",
    "vla_jax.client",
    "vla_jax.training",
    "vla_jax.evaluation",
    "vla_jax.live",
    "vla_jax.reporting",
    "vla_jax.reference",
    # Where users find names by their old places; nothing inside imports these.
    "vla_jax.data",
    "vla_jax.interop",
    "vla_jax",
    "experiments",
)


def room_of(module: str) -> str | None:
    """Returns the room a module belongs to; None for modules of other projects."""
    fitting = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def modules() -> list[Path]:
    """Returns the files of all modules in rooms."""
    return sorted(
        path.relative_to(REPOSITORY)
        for package in ("vla_jax", "feature_cache", "experiments")
        for path in (REPOSITORY / package).rglob("*.py")
    )


def imports_of(path: Path) -> set[str]:
    """Returns the full names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            # `from package import module` names a module too.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_room_imports_only_from_rooms_before_it(path):
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    own = room_of(module)
    assert own is not None, f"{module} is in no room"
    upwards = [
        name
        for name in imports_of(path)
        if (room := room_of(name)) is not None and ROOMS.index(room) > ROOMS.index(own)
    ]
    assert not upwards, f"{module} imports upwards: {', '.join(sorted(upwards))}"


def test_every_room_is_there():
    for room in ROOMS:
        place = REPOSITORY / room.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), room
