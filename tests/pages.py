"""The pages, and the code in them."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import REPOSITORY

PAGES = sorted(path for folder in (REPOSITORY, REPOSITORY / "docs") for path in folder.glob("*.md"))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    section: str
    """The heading above it."""
    line: int
    """Of its first line in the page, from 1."""
    text: str
    file: str | None
    """The module that it is, where the line above it names one (`name.py`)."""


def fenced_blocks(page: Path, language: str) -> list[Block]:
    """Returns the page's fenced blocks of a language, in order."""
    blocks: list[Block] = []
    fence, start, section, above = None, 0, "", ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("```"):
            if fence is None:
                fence, start = line.removeprefix("```").strip(), number + 1
                continue
            if fence == language:
                file = re.search(r"`(\w+\.py)`", above)
                text = "\n".join(lines[start - 1 : number - 1])
                blocks.append(Block(page, section, start, text, file and file[1]))
            fence, above = None, ""
        elif fence is None:
            section = line.lstrip("# ") if line.startswith("#") else section
            above = line or above
    assert fence is None, f"{page}: a block is not closed"
    return blocks


def run_blocks(blocks: Iterable[Block], folder: Path) -> dict[str, Any]:
    """Runs python blocks one after another in `folder`, as a reader would, and returns what they defined.

    Blocks that are modules are written there, to be imported by the others.
    """
    defined: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks:
            if block.file is not None:
                Path(block.file).write_text(block.text + "\n", encoding="utf-8")
                continue
            defined["__name__"] = block.page.stem
            # The lines before it are blank, so that an error's line is the page's.
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), defined)
    finally:
        os.chdir(before)
    return defined
