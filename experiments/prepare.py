"""`python -m experiments.prepare`: checks recorded episodes and packs them into a data set."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from experiments import cli
from experiments.config_options import given, help_of, options_for
from experiments.console import make_console, print_table
from experiments.data import num_processors
from experiments.option_groups import given_in_groups, group_of, grouped_options, in_groups
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import FaultyEpisodesError, PrepareResult, prepare
from vla_jax.errors import UserError
from vla_jax.recordings.findings import Finding
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.registry import readers
from vla_jax.training.settings import replaced

NUM_ROWS_SHOWN = 40


SETTINGS = {
    "sample": {
        "action_hz": "episode.action_hz",
        "horizon": "horizon",
        "alignment": "episode.alignment",
        "max_image_age": "episode.max_image_age",
        "vlm_reuse_count": "vlm_reuse_count",
    },
    "camera and sensor": {
        "views": "episode.views",
        "sensor": "episode.sensor",
        "sensor_window_size": "sensor_window_size",
        "sensor_dtype": "episode.sensor_dtype",
    },
    "unit": {
        "pose_units": "episode.pose_units",
        "angle_units": "episode.angle_units",
    },
    "episode": {
        "strict": "strict",
        "val_fraction": "val_fraction",
        "seed": "seed",
        "instruction": "instruction",
    },
}
"""Group of options in help → option → the field of `PrepareOptions` that it sets."""
SettingOptions = grouped_options(PrepareOptions, SETTINGS, values={"views": "VIEW [VIEW …]"})


def _names(reader: EpisodeReader) -> dict[str, str]:
    """Option → field of the reader's options: the same name."""
    return {entry.name: entry.name for entry in dataclasses.fields(reader.options)}


# Those of other programs are registered before this module is imported.
READERS = {reader.kind: reader for reader in readers() if dataclasses.fields(reader.options)}
"""Those that have options of their own, by the formats that are the titles of these in help."""
ReaderOptions = in_groups(
    {kind: options_for(reader.options, _names(reader)) for kind, reader in READERS.items()}
)


@dataclass(frozen=True)
class BySource:
    """What is said of single sources."""

    weight: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="NAME=NUMBER", help=help_of(PrepareOptions, "weights"))
    ] = ()
    prompt: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="NAME=TEXT", help=help_of(PrepareOptions, "prompts"))
    ] = ()


@dataclass(frozen=True)
class Arguments:
    """Options of `prepare`."""

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE [SOURCE …]")]
    """Folders or glob patterns; episodes of any format are found in them and below. hub:USER/NAME or
    hub:USER/NAME@REVISION is a data set of the model hub."""
    out: str
    """Folder of the packed data set; an existing data set there is replaced."""
    settings: Annotated[object, arg(name="", constructor=SettingOptions)] = field(
        default_factory=SettingOptions
    )
    by_source: Annotated[BySource, OmitArgPrefixes, arg(name="source")] = field(default_factory=BySource)
    readers: Annotated[object, arg(name="", constructor=ReaderOptions)] = field(default_factory=ReaderOptions)
    workers: int = 0
    """Processes that read episodes; 0 takes one per processor."""


def main(arguments: Arguments) -> None:
    """Packs the sources and prints what is in the data set and what was found wrong."""
    named = arguments.by_source
    weights = {name: _number(name, text) for name, text in _by_name("weight", named.weight).items()}
    own = {
        kind: reader.options(**given(group_of(arguments.readers, kind), _names(reader)))
        for kind, reader in READERS.items()
    }
    settings = {
        **given_in_groups(arguments.settings, SETTINGS),
        "episode.readers": own,
        "prompts": _by_name("prompt", named.prompt),
        "weights": weights,
        "num_workers": arguments.workers or num_processors(),
    }
    options = replaced(PrepareOptions(), settings)
    console = make_console()
    try:
        result = prepare(arguments.sources, arguments.out, options)
    except FaultyEpisodesError as error:
        _print_findings(console, error.findings)
        raise
    _print_choices(console, result)
    _print_summary(console, result.dataset)
    _print_findings(console, result.findings)
    _print_result(console, result)


def _by_name(option: str, given: tuple[str, ...]) -> dict[str, str]:
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(
                f"--{option} {text!r} is not NAME=VALUE, with the name of a source or of a folder in it"
            )
        if name in values:
            raise UserError(f"--{option} {name} is given twice")
        values[name] = value
    return values


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--weight {name}={text} is no number") from error


def _print_choices(console: Console, result: PrepareResult) -> None:
    for folder, rows in result.choices.items():
        table = Table("what", "taken from", title=folder, title_justify="left")
        table.columns[1].overflow = "fold"
        for what, source in rows:
            table.add_row(what, source)
        console.print(table, markup=False)


def _print_summary(console: Console, dataset: PackedDataset) -> None:
    table = Table(title=str(dataset.path))
    for title in ("source", "format", "prompt"):
        table.add_column(title, overflow="fold")
    for title in ("weight", "episodes", "held out", "minutes", "ticks", "samples"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("lacks", no_wrap=True)
    is_sample = Counter(dataset.ticks.episode[dataset.sample_ticks("all")].tolist())
    groups: dict[tuple[str, str, str, float], list[int]] = {}
    for i, entry in enumerate(dataset.episodes):
        groups.setdefault((entry.source, entry.format, entry.instruction, entry.weight), []).append(i)
    for (source, kind, prompt, weight), members in groups.items():
        entries = [dataset.episodes[i] for i in members]
        ticks = sum(entry.tick_stop - entry.tick_start for entry in entries)
        seconds = ticks / dataset.meta.action_hz
        table.add_row(
            source,
            kind,
            prompt,
            f"{weight:g}",
            str(len(entries)),
            str(sum(entry.split == "val" for entry in entries)),
            f"{seconds / 60:.1f}",
            str(ticks),
            str(sum(is_sample[i] for i in members)),
            _lacks(dataset, members),
        )
    print_table(console, table, ("minutes", "format", "weight", "ticks", "lacks", "held out"))


def _lacks(dataset: PackedDataset, members: list[int]) -> str:
    entries = [dataset.episodes[i] for i in members]
    missing = {
        "images": sum(not entry.has_images for entry in entries),
        "sensor": sum(not entry.has_sensor for entry in entries),
        "poses": sum(entry.tick_start == entry.tick_stop for entry in entries),
    }
    return ", ".join(
        name if count == len(entries) else f"{name} ({count} of {len(entries)})"
        for name, count in missing.items()
        if count
    )


def _print_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    for is_fault, title in ((False, "notes"), (True, "faults: these episodes are left out")):
        chosen = [finding for finding in findings if finding.is_fault is is_fault]
        if not chosen:
            continue
        table = Table("episode", "what", title=title, title_justify="left")
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        episodes: dict[str, list[str]] = {}
        for finding in chosen:
            episodes.setdefault(finding.reason, []).append(finding.episode)
        # Faults are all listed; notes of a large set would bury them.
        reasons = list(episodes) if is_fault else list(episodes)[:NUM_ROWS_SHOWN]
        for reason in reasons:
            names = episodes[reason]
            table.add_row(
                f"{len(names)} episodes, the first: {names[0]}" if len(names) > 1 else names[0], reason
            )
        print_table(console, table)
        if len(reasons) < len(episodes):
            console.print(f"… and {len(episodes) - len(reasons)} further notes")


def _print_result(console: Console, result: PrepareResult) -> None:
    dataset = result.dataset
    train, val = (len(dataset.sample_ticks(split)) for split in ("train", "val"))
    reused = len(dataset.episodes) - (result.num_read - len(result.faulty))
    lines = [
        f"{dataset.path}: {len(dataset.episodes)} episodes"
        + (f" ({reused} taken over unread)" if reused > 0 else "")
        + f", {train} training and {val} held-out samples"
    ]
    lines += result.notes
    if result.faulty:
        lines.append(f"{len(result.faulty)} faulty episode(s) left out (see the table above)")
    if train + val:
        lines.append(f"next: {cli.called('export')} {dataset.path} --backbone PATH_OR_ID --cache CACHE")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not train + val:
        reason = "images" if not any(entry.has_images for entry in dataset.episodes) else "poses with images"
        raise UserError(
            f"{dataset.path}: no samples: no episode has {reason}; there is nothing to export or to train on"
        )


COMMAND = cli.Command(
    "prepare",
    Arguments,
    "Validates recorded episodes, aligns them in time and packs them into a data set.",
    main,
)
if __name__ == "__main__":
    COMMAND.run()
