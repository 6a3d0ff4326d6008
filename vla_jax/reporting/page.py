"""What every report is made of: one HTML page that needs nothing else, figures included."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_jax.reporting.drawing import Drawing
from vla_jax.reporting.style import STYLE
from vla_jax.storage.replacing import replace_file, replace_text

NOT_DEFINED = "–"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report. caption: what is to be seen; its title is what is read to those who cannot see it."""

    title: str
    caption: str
    picture: Drawing | bytes
    """A drawing, or the bytes of a PNG."""


@dataclass(frozen=True)
class Cell:
    """A table cell with a style: "good", "bad", "strong" or "text"."""

    text: str
    style: str = ""


def number(value: float | int | None, digits: int = 3) -> str:
    """Returns a value as a person reads it: significant digits, a dash where it is not defined."""
    if value is None:
        return NOT_DEFINED
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e5):
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def page(title: str, lead: str, parts: Sequence[str]) -> str:
    """Returns the whole page. lead: the sentence below the title; parts: HTML, one below the other."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", f"<p class=lead>{html.escape(lead)}</p>", *parts])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Returns the row of main figures: (name, value, note) each."""
    return '<div class="cards">' + "".join(
        f'<div class="card"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note in entries
    ) + "</div>"  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Returns an HTML table; the first column names the row. Everything is escaped."""

    def cell(value: str | Cell, tag: str) -> str:
        value = value if isinstance(value, Cell) else Cell(value)
        style = f' class="{value.style}"' if value.style else ""
        return f"<{tag}{style}>{html.escape(value.text)}</{tag}>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + cell(row[0], "th") + "".join(cell(value, "td") for value in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def section(title: str, content: str, note: str = "") -> str:
    """Returns a titled box around HTML content, with a note below it."""
    note = f"\n<p class=note>{html.escape(note)}</p>" if note else ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}{note}\n</section>"


def figure(content: ReportFigure) -> str:
    """Returns a figure in a box of its own."""
    title, caption = html.escape(content.title), html.escape(content.caption)
    if isinstance(content.picture, Drawing):
        shown = content.picture.inline().replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    else:
        encoded = base64.b64encode(content.picture).decode()
        shown = f'<img alt="{title}" src="data:image/png;base64,{encoded}">'
    return (
        f'<section>\n<h2>{title}</h2>\n<figure><div class="scroll">{shown}</div>'
        f"<figcaption>{caption}</figcaption></figure>\n</section>"
    )


def write_figures(folder: Path, figures: Sequence[ReportFigure]) -> None:
    """Writes each drawing into a folder beside the page, as SVG and as PDF for papers, named by its title.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in figures:
        if isinstance(entry.picture, Drawing):
            name = re.sub(r"\W+", "_", entry.title.lower()).strip("_")
            replace_text(folder / f"{name}.svg", entry.picture.svg())
            data = entry.picture.pdf()
            replace_file(folder / f"{name}.pdf", lambda handle, data=data: handle.write(data))
