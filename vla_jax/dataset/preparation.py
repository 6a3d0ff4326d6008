"""Packs recorded episodes into a data set: parts made in parallel, joined, and put in place atomically.

Everything is built in DATA/.building: the parts, then the folder of joined arrays. Putting that folder in place and
replacing `dataset.json` are the only steps that others can see, so that a killed run leaves the old data set, or
none, and the next run goes on with the parts that are complete. Episodes whose files have not changed are taken
from the data set that is already there.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vla_jax.dataset.packed_dataset import FORMAT_VERSION, INDEX_FILE, PackedDataset
from vla_jax.dataset.packed_episode import (
    HORIZON,
    PART_VERSION,
    Part,
    PartOptions,
    fingerprint,
    load_part,
    make_part,
    part_key,
)
from vla_jax.dataset.split import assign_splits
from vla_jax.dataset.statistics import (
    NUM_BINS,
    SensorMoments,
    action_statistics,
    merge_moments,
    sensor_statistics,
    statistics_to_json,
)
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar
from vla_jax.recordings.discovery import EpisodeFolder, choose_by_label, find_episodes
from vla_jax.recordings.recording import NUM_CHANNELS, Finding
from vla_jax.recordings.windows import DEFAULT_SENSOR_HZ
from vla_jax.storage.locks import LOCK_FILE, locked
from vla_jax.storage.replacing import (
    is_temporary,
    remove_leftovers,
    replace_folder,
    replace_text,
    temporary_folder,
)
from vla_jax.storage.worker_processes import run_jobs

BUILDING = ".building"
COPY_BYTES = 8 << 20
PART_ARRAYS = ("time", "pose", "delta", "sensor_begin", "sensor_end", "sensor_time", "instant", "is_sample")


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of a data set. val_fraction: share of episodes held out; seed: of the split.

    instruction: prompt of all episodes, in place of their own; prompts, weights: prompt and sampling weight by the
    name of a source or of a folder in it (`vla_jax.recordings.discovery.EpisodeFolder.labels`).
    """

    part: PartOptions = field(default_factory=PartOptions)
    instruction: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False
    val_fraction: float = 0.2
    seed: int = 0
    vlm_reuse_count: int = 3
    sensor_window_size: int = 65
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.part.action_hz <= 1000:
            raise UserError(f"--action-hz {self.part.action_hz:g} is impossible; give a rate in Hz above 0")
        if not 0 <= self.val_fraction < 1:
            raise UserError(
                f"--val-fraction {self.val_fraction:g} is impossible; give a share from 0 to below 1"
            )
        for name in ("vlm_reuse_count", "sensor_window_size", "num_workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is impossible; give at least 1")
        if self.part.sensor_dtype not in ("float16", "float32"):
            raise UserError(f"sensor dtype {self.part.sensor_dtype!r} is unknown; choose float16 or float32")
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"--weight {name}={weight:g} is impossible; give a number above 0")
        for prompt in (self.instruction, *self.prompts.values()):
            if prompt is not None and not prompt.strip():
                raise UserError("a prompt is empty; give the text that the policy is told")


class FaultyEpisodesError(UserError):
    """Faults refuse the data set; `findings` holds them all."""

    def __init__(self, message: str, findings: Sequence[Finding]) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


@dataclass(frozen=True)
class PrepareResult:
    """A finished data set. findings: faults of the episodes left out, notes on the others.

    num_read: episodes read in this run; the others were taken from the data set that was there.
    """

    dataset: PackedDataset
    findings: tuple[Finding, ...]
    num_read: int

    @property
    def faulty(self) -> list[str]:
        """Episodes left out."""
        return sorted({finding.episode for finding in self.findings if finding.is_fault})


@dataclass(frozen=True)
class Given:
    """What the user says of an episode. prompt: None leaves the recorded one."""

    prompt: str | None
    weight: float


@dataclass(frozen=True)
class Member:
    """An episode of the data set to be written."""

    episode: EpisodeFolder
    part: Part
    given: Given


def prepare(sources: Sequence[str], out: str | Path, options: PrepareOptions) -> PrepareResult:
    """Packs all episodes under `sources` into the data set `out`.

    Raises:
        UserError: no episodes; `out` holds something else, or another run writes it.
        FaultyEpisodesError: no episode is usable, or `options.strict` and one is not.
    """
    out = Path(out)
    episodes = find_episodes(sources)
    given = _given(episodes, options)
    _check_out(out)
    with _held(out):
        for folder in (out, out / BUILDING):
            remove_leftovers(folder)
        fingerprints = [fingerprint(episode.path) for episode in episodes]
        current = _open_current(out)
        known = _known_parts(current, options.part)
        keys = [part_key(digest, options.part) for digest in fingerprints]
        jobs = [
            (episode, options.part, out / BUILDING / key, digest)
            for episode, key, digest in zip(episodes, keys, fingerprints, strict=True)
            if digest not in known and not (out / BUILDING / key / "part.json").is_file()
        ]
        findings = _run_jobs(jobs, options.num_workers)
        parts = [
            _part(digest, out / BUILDING / key, known) for digest, key in zip(fingerprints, keys, strict=True)
        ]
        read = {finding.episode for finding in findings}
        for episode, part in zip(episodes, parts, strict=True):
            if part is not None and str(episode.path) not in read:
                findings += [Finding(str(episode.path), note, False) for note in part.info["notes"]]
        _refuse_faults(findings, len(episodes), options.strict)
        members = [
            Member(episode, part, settings)
            for episode, part, settings in zip(episodes, parts, given, strict=True)
            if part is not None
        ]
        _join(out, members, options, current.index["content"] if current else None)
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    order = {str(episode.path): i for i, episode in enumerate(episodes)}
    findings.sort(key=lambda finding: order[finding.episode])
    return PrepareResult(PackedDataset.open(out), tuple(findings), len(jobs))


def _given(episodes: Sequence[EpisodeFolder], options: PrepareOptions) -> list[Given]:
    prompts = choose_by_label(episodes, options.prompts, "prompt")
    weights = choose_by_label(episodes, options.weights, "weight")
    return [
        Given(prompt or options.instruction, 1.0 if weight is None else weight)
        for prompt, weight in zip(prompts, weights, strict=True)
    ]


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the data set")
    if out.is_dir() and not (out / INDEX_FILE).is_file():
        others = [
            path
            for path in out.iterdir()
            if path.name not in (BUILDING, LOCK_FILE) and not is_temporary(path)
        ]
        # A folder of a first run that was killed between its last two steps holds one content folder.
        if any(not (path / "episodes.json").is_file() for path in others):
            raise UserError(f"{out}: exists and is no data set; choose a new folder for --out")


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Holds the folder against a second `prepare`; leaves nothing behind where nothing was made."""
    with locked(out, busy=f"{out}: another prepare is writing this data set; wait for it"):
        (out / BUILDING).mkdir(exist_ok=True)
        try:
            yield
        finally:
            with suppress(OSError):
                (out / BUILDING).rmdir()


def _run_jobs(jobs: Sequence[tuple[Any, ...]], num_workers: int) -> list[Finding]:
    findings: list[Finding] = []
    with progress_bar(total=len(jobs), desc="prepare", unit="episode", disable=not jobs) as bar:
        # Starting processes takes longer than reading a few episodes.
        num_workers = num_workers if len(jobs) >= 4 else 1
        killed = "a process that reads episodes was killed, perhaps for want of memory; try --workers 1"
        for found in run_jobs(make_part, jobs, num_workers, killed=killed):
            findings += found
            bar.update()
    return findings


def _refuse_faults(findings: Sequence[Finding], num_episodes: int, strict: bool) -> None:
    faults = [finding for finding in findings if finding.is_fault]
    faulty = sorted({finding.episode for finding in faults})
    if not faulty or (len(faulty) < num_episodes and not strict):
        return
    first = min(faults, key=lambda finding: finding.episode)
    what = "no episode is usable" if len(faulty) == num_episodes else "--strict refuses faulty episodes"
    raise FaultyEpisodesError(
        f"{what}: {len(faulty)} of {num_episodes} have faults; the first: {first.episode}: {first.reason}",
        findings,
    )


def _open_current(out: Path) -> PackedDataset | None:
    try:
        return PackedDataset.open(out)
    except UserError:
        # Missing or unreadable: everything is read anew, and what is there is replaced.
        return None


def _known_parts(current: PackedDataset | None, options: PartOptions) -> dict[str, Part]:
    """Returns the parts of the data set that is there, by fingerprint, if they were made under the same options."""
    if current is None or current.index["part_options"] != _options_json(options):
        return {}
    return {entry.fingerprint: _part_of(current, i) for i, entry in enumerate(current.episodes)}


def _options_json(options: PartOptions) -> dict[str, Any]:
    views = None if options.views is None else list(options.views)
    return {**vars(options), "views": views, "version": PART_VERSION}


def _part(digest: str, directory: Path, known: dict[str, Part]) -> Part | None:
    if digest in known:
        return known[digest]
    return load_part(directory) if (directory / "part.json").is_file() else None


def _part_of(dataset: PackedDataset, index: int) -> Part:
    """Cuts one episode's part back out of a data set."""
    raw = dataset.raw_episodes[index]
    entry = dataset.episodes[index]
    ticks = slice(entry.tick_start, entry.tick_stop)
    instants = slice(raw["instant_start"], raw["instant_stop"])
    images = slice(raw["image_start"], raw["image_stop"])
    arrays = {name: np.array(dataset.array(name)[ticks]) for name in PART_ARRAYS}
    for name, offset in (
        ("sensor_begin", entry.sensor_start),
        ("sensor_end", entry.sensor_start),
        ("instant", instants.start),
    ):
        arrays[name] = _shifted(arrays[name], -offset)
    columns = [dataset.meta.views.index(view) for view in raw["views"]]
    arrays["instant_images"] = _shifted(dataset.array("instant_images")[instants][:, columns], -images.start)
    for name in ("image_digest", "image_time"):
        arrays[name] = np.array(dataset.array(name)[images])
    bins = dataset.array("histogram_start")[index : index + 2]
    for name in ("histogram_bin", "histogram_count"):
        arrays[name] = np.array(dataset.array(name)[bins[0] : bins[1]])
    for name in ("moments", "centred"):
        arrays[name] = np.array(dataset.array(name)[index])
    starts = dataset.array("image_start")[images.start : images.stop + 1]
    text = dataset.array("image_path")[starts[0] : starts[-1]].tobytes()
    bounds = (starts - starts[0]).tolist()
    paths = [text[a:b].decode() for a, b in itertools.pairwise(bounds)]
    info = {name: raw[name] for name in INFO_KEYS} | {"images": paths, "instruction": raw["recorded_prompt"]}
    sensor_file = dataset.content / "sensor.npy"
    header = sensor_file.stat().st_size - dataset.sensor.nbytes
    offset = header + entry.sensor_start * NUM_CHANNELS * dataset.sensor.dtype.itemsize
    return Part(info, arrays, sensor_file if raw["sensor_rows"] else None, offset)


INFO_KEYS = (
    "name",
    "format",
    "instruction",
    "confidence",
    "segments",
    "views",
    "images_per_view",
    "sensor_rows",
    "sensor_hz",
    "pose_hz",
    "fingerprint",
    "notes",
)


def _shifted(rows: np.ndarray, offset: int) -> np.ndarray:
    """Adds an offset to row numbers; −1 (none) stays."""
    return np.where(rows >= 0, rows + offset, -1).astype(rows.dtype)


def _join(out: Path, members: Sequence[Member], options: PrepareOptions, current: str | None) -> None:
    """Writes the content folder of the given episodes and makes it the data set.

    current: name of the content folder of the sound data set that is there, if one is.
    """
    parts = [member.part for member in members]
    splits = assign_splits(
        [member.episode.identity for member in members],
        # The recorded prompt: another one given for a source must not move episodes between the splits.
        [f"{member.episode.source}\0{member.part.info['instruction']}" for member in members],
        options.val_fraction,
        options.seed,
    )
    views = sorted({view for part in parts for view in part.info["views"]})
    rates = [part.info["sensor_hz"] for part in parts if part.info["sensor_hz"]]
    meta = {
        "format_version": FORMAT_VERSION,
        "action_hz": options.part.action_hz,
        "horizon": HORIZON,
        "alignment": options.part.alignment,
        "vlm_reuse_count": options.vlm_reuse_count,
        "sensor_window_size": options.sensor_window_size,
        "sensor_hz": max(rates, key=rates.count) if rates else DEFAULT_SENSOR_HZ,
        "views": views,
        "sensor_dtype": options.part.sensor_dtype,
    }
    entries = _entries(out, members, splits)
    index = {"format_version": FORMAT_VERSION, "meta": meta, "part_options": _options_json(options.part)}
    index["split"] = {"val_fraction": options.val_fraction, "seed": options.seed}
    identity = json.dumps([index, entries], sort_keys=True)
    index["content"] = "content-" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    content = out / index["content"]
    if not (current == index["content"] and content.is_dir()):
        # What may be there was left by a killed run, or cannot be opened.
        with temporary_folder(content, within=out / BUILDING) as folder:
            _write_arrays(folder, parts, entries, views, np.dtype(options.part.sensor_dtype), options)
            _write_statistics(folder, parts, splits)
            (folder / "episodes.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
            replace_folder(folder, content)
    replace_text(out / INDEX_FILE, json.dumps(index, indent=2))
    for old in out.glob("content-*"):
        if old != content:
            shutil.rmtree(old)


def _entries(out: Path, members: Sequence[Member], splits: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    tick = row = instant = image = 0
    for member, split in zip(members, splits, strict=True):
        episode, part = member.episode, member.part
        info = {name: part.info[name] for name in INFO_KEYS}
        num_ticks, num_instants = len(part.arrays["time"]), len(part.arrays["instant_images"])
        entries.append(
            {
                **info,
                "instruction": member.given.prompt or info["instruction"],
                "recorded_prompt": info["instruction"],
                "weight": member.given.weight,
                "source": episode.source,
                "path": str(episode.path),
                "absolute_path": str(episode.path.resolve()),
                "relative_path": os.path.relpath(episode.path.resolve(), out.resolve()),
                "split": split,
                "tick_start": tick,
                "tick_stop": (tick := tick + num_ticks),
                "sensor_start": row,
                "sensor_stop": (row := row + info["sensor_rows"]),
                "instant_start": instant,
                "instant_stop": (instant := instant + num_instants),
                "image_start": image,
                "image_stop": (image := image + len(part.info["images"])),
                "has_sensor": info["sensor_rows"] > 0,
                "has_images": bool(info["views"]),
            }
        )
    return entries


def _write_arrays(
    folder: Path,
    parts: Sequence[Part],
    entries: Sequence[dict[str, Any]],
    views: Sequence[str],
    sensor_dtype: np.dtype,
    options: PrepareOptions,
) -> None:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*PART_ARRAYS, "record", "episode")}
    columns |= {name: [] for name in ("instant_images", "instant_episode", "image_digest", "image_time")}
    paths: list[bytes] = []
    for i, (part, entry) in enumerate(zip(parts, entries, strict=True)):
        arrays = dict(part.arrays)
        arrays["sensor_begin"] = _shifted(arrays["sensor_begin"], entry["sensor_start"])
        arrays["sensor_end"] = _shifted(arrays["sensor_end"], entry["sensor_start"])
        arrays["instant"] = _shifted(arrays["instant"], entry["instant_start"])
        arrays["record"] = arrays["instant"][_refresh_ticks(part, options)]
        arrays["episode"] = np.full(len(arrays["time"]), i, np.int32)
        local = _shifted(arrays["instant_images"], entry["image_start"])
        arrays["instant_images"] = np.full((len(local), len(views)), -1, np.int32)
        arrays["instant_images"][:, [views.index(view) for view in part.info["views"]]] = local
        arrays["instant_episode"] = np.full(len(local), i, np.int32)
        for name, values in columns.items():
            values.append(arrays[name])
        paths += [path.encode() for path in part.info["images"]]
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(values))
    np.save(folder / "image_path.npy", np.frombuffer(b"".join(paths), np.uint8))
    np.save(folder / "image_start.npy", np.cumsum([0, *map(len, paths)], dtype=np.int64))
    for name in ("moments", "centred"):
        np.save(folder / f"{name}.npy", np.stack([part.arrays[name] for part in parts]))
    for name in ("histogram_bin", "histogram_count"):
        np.save(folder / f"{name}.npy", np.concatenate([part.arrays[name] for part in parts]))
    sizes = [len(part.arrays["histogram_bin"]) for part in parts]
    np.save(folder / "histogram_start.npy", np.cumsum([0, *sizes], dtype=np.int64))
    _write_sensor(folder / "sensor.npy", parts, sensor_dtype)


def _refresh_ticks(part: Part, options: PrepareOptions) -> np.ndarray:
    """Returns, per tick of an episode, the tick whose pictures its features come from."""
    ticks = np.arange(len(part.arrays["time"]))
    if part.info["format"] == "legacy" and options.part.alignment == "index":
        return ticks
    return ticks // options.vlm_reuse_count * options.vlm_reuse_count


def _write_sensor(path: Path, parts: Iterable[Part], dtype: np.dtype) -> None:
    parts = list(parts)
    num_rows = sum(part.info["sensor_rows"] for part in parts)
    row_bytes = NUM_CHANNELS * dtype.itemsize
    unchanged = _unchanged_stream(parts, row_bytes)
    if unchanged is not None:
        with suppress(OSError):  # A file system without hard links: it is copied below.
            os.link(unchanged, path)
            return
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (num_rows, NUM_CHANNELS)})
        for part in parts:
            if part.sensor_file is not None:
                with open(part.sensor_file, "rb") as source:
                    source.seek(part.sensor_offset)
                    _copy(source, file, part.info["sensor_rows"] * row_bytes)


def _unchanged_stream(parts: Sequence[Part], row_bytes: int) -> Path | None:
    """Returns the stream of the data set that is there, if it is exactly these parts in this order."""
    parts = [part for part in parts if part.sensor_file is not None]
    # Only a joined stream has a header before its first row, and that is shorter than a row.
    if not parts or not 0 < parts[0].sensor_offset < row_bytes:
        return None
    file, end = parts[0].sensor_file, parts[0].sensor_offset
    for part in parts:
        if (part.sensor_file, part.sensor_offset) != (file, end):
            return None
        end += part.info["sensor_rows"] * row_bytes
    return file if file.stat().st_size == end else None


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    while num_bytes:
        data = source.read(min(num_bytes, COPY_BYTES))
        if not data:
            raise OSError(f"{source.name} ends too early")
        target.write(data)
        num_bytes -= len(data)


def _write_statistics(folder: Path, parts: Sequence[Part], splits: Sequence[str]) -> None:
    train = [part for part, split in zip(parts, splits, strict=True) if split == "train"]
    statistics = sensor_statistics(merge_moments(map(_moments, train)))
    actions = np.concatenate([np.empty((0, 7), np.float32), *(part.arrays["delta"] for part in train)])
    if len(actions):
        statistics["actions"] = action_statistics(actions)
    text = json.dumps(statistics_to_json(statistics), indent=1)
    (folder / "statistics.json").write_text(text, encoding="utf-8")


def _moments(part: Part) -> SensorMoments:
    histogram = np.zeros(2 * NUM_BINS, np.int64)
    histogram[part.arrays["histogram_bin"]] = part.arrays["histogram_count"]
    return SensorMoments(part.arrays["moments"], part.arrays["centred"], histogram.reshape(2, NUM_BINS))
