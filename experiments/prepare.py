"""`python -m experiments.prepare`: checks recorded episodes and packs them into a data set."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from experiments import cli
from experiments.console import make_console, print_table
from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import FaultyEpisodesError, PrepareResult, prepare
from vla_jax.dataset.units import AngleUnits, PoseUnits
from vla_jax.errors import UserError
from vla_jax.recordings.capture import CaptureOptions
from vla_jax.recordings.findings import Finding
from vla_jax.recordings.legacy import LegacyOptions

NUM_ROWS_SHOWN = 40


def _num_cpus() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, usable)


@dataclass(frozen=True)
class Arguments:
    """Options of `prepare`."""

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE [SOURCE …]")]
    """Folders or glob patterns; episodes of any format are found in them and below."""
    out: str
    """Folder of the packed data set; an existing data set there is replaced."""
    action_hz: float = 10.0
    """Rate of the actions in Hz; at most the rate of the recorded poses, and that of recorded actions."""
    horizon: int = LAB_ACTIONS.horizon
    """Actions that a policy predicts at once."""
    alignment: Literal["timestamp", "index"] = "timestamp"
    """timestamp: each tick sees the newest picture and sensor rows; index: pairs by position, as the reference."""
    strict: bool = False
    """Refuse the whole set when an episode is faulty, instead of leaving that episode out."""
    val_fraction: float = 0.2
    """Share of the episodes held out for validation, chosen by a hash of their names. Episodes of a data set that is
    there keep their side; another share or seed chooses anew."""
    seed: int = 0
    """Seed of that choice."""
    weight: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=NUMBER")] = ()
    """How often training draws the samples of a source, of a folder in it, or of a format (legacy, windows, capture),
    relative to the others (1)."""
    prompt: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=TEXT")] = ()
    """Prompt of a source, of a folder in it, or of a format, in place of the recorded one."""
    instruction: str | None = None
    """Prompt of all other episodes in place of their own. Without: that in metadata.json or data.pkl, else a
    sentence with the task folder's name."""
    views: Annotated[tuple[str, ...] | None, arg(metavar="VIEW [VIEW …]")] = None
    """Camera views to keep; all by default."""
    sensor: bool = True
    """Whether to read the sensor; --no-sensor packs every episode as one without."""
    allow_external_images: bool = False
    """Read pictures outside an episode's folder where a legacy data.pkl names them."""
    max_image_age: float = 2.0
    """Seconds after which a picture is too old to be seen (by the robot's clock); ticks with such a picture are left
    out."""
    pose_units: PoseUnits | None = None
    """Unit of recorded positions; without, mm, and a question where the numbers look like metres."""
    angle_units: AngleUnits | None = None
    """Unit of recorded angles; without, degrees."""
    match_limit_ms: float = 10.0
    """Drop a capture's picture that is further than this from every pose, in milliseconds."""
    vlm_reuse_count: int = 3
    """Control ticks that share one picture's features."""
    sensor_window_size: int = 65
    """Sensor rows that a sample sees."""
    sensor_dtype: Literal["float16", "float32"] = "float16"
    """Storage type of the sensor stream; float16 costs at most 0.05 % of a value."""
    workers: int = 0
    """Processes that read episodes; 0 takes one per processor."""


def main(arguments: Arguments) -> None:
    """Packs the sources and prints what is in the data set and what was found wrong."""
    options = PrepareOptions(
        episode=EpisodeOptions(
            action_hz=arguments.action_hz,
            alignment=arguments.alignment,
            sensor_dtype=arguments.sensor_dtype,
            views=None if arguments.views is None else tuple(sorted(set(arguments.views))),
            sensor=arguments.sensor,
            max_image_age=arguments.max_image_age,
            pose_units=arguments.pose_units,
            angle_units=arguments.angle_units,
            readers={
                "legacy": LegacyOptions(arguments.allow_external_images),
                "capture": CaptureOptions(arguments.match_limit_ms / 1000),
            },
        ),
        horizon=arguments.horizon,
        instruction=arguments.instruction,
        prompts=_by_name("prompt", arguments.prompt),
        weights={name: _number(name, text) for name, text in _by_name("weight", arguments.weight).items()},
        strict=arguments.strict,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        vlm_reuse_count=arguments.vlm_reuse_count,
        sensor_window_size=arguments.sensor_window_size,
        num_workers=arguments.workers or _num_cpus(),
    )
    console = make_console()
    try:
        result = prepare(arguments.sources, arguments.out, options)
    except FaultyEpisodesError as error:
        _print_findings(console, error.findings)
        raise
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
