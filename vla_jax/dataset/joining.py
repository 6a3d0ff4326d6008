"""Joins packed episodes into the arrays of a data set, and cuts them out of one again."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.contracts.specs import SensorSpec
from vla_jax.dataset.alignment import begins_chunk
from vla_jax.dataset.joined_stream import write_joined_stream
from vla_jax.dataset.meaning import spec_to_json
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.packed_dataset import FORMAT_VERSION, INDEX_FILE, PackedDataset
from vla_jax.dataset.packed_episode import EpisodeInfo, PackedEpisode
from vla_jax.dataset.schema import COLUMNS, Column, pack_texts, unpack_texts
from vla_jax.dataset.split import assign_splits
from vla_jax.dataset.split_memory import SplitMemory
from vla_jax.dataset.statistics import SensorMoments, write_statistics
from vla_jax.errors import UserError
from vla_jax.recordings.discovery import EpisodeFolder, without_part
from vla_jax.storage.replacing import replace_folder, replace_text, temporary_folder
from vla_jax.timing import refresh_ticks

MOMENTS = ("moments", "centred", "histogram_bin", "histogram_count")
# What an episode's entry in `episodes.json` takes over from its description.
ENTRY_FIELDS = tuple(field.name for field in dataclasses.fields(EpisodeInfo) if field.name != "images")


@dataclass(frozen=True)
class JoinedEpisode:
    """An episode that is to be in the data set.

    prompt: in place of the recorded one, unless None. weight: how often training draws its samples.
    """

    folder: EpisodeFolder
    packed: PackedEpisode
    prompt: str | None
    weight: float


def join(
    out: Path,
    building: Path,
    members: Sequence[JoinedEpisode],
    options: PrepareOptions,
    columns: Sequence[Column],
    current: PackedDataset | None,
) -> None:
    """Writes the content folder of the given episodes and makes it the data set.

    building: where to put the arrays together, on the same file system. columns: the registered ones.
    current: the sound data set that is there, if one is; its episodes keep their side (`assign_splits`), also those
        that have left it and come back.

    Raises:
        UserError: two episodes have different actions, states or sensors.
    """
    episodes = [member.packed for member in members]
    _check_alike(members)
    chosen_by = {"val_fraction": options.val_fraction, "seed": options.seed}
    memory = SplitMemory({})
    if current is not None and current.index["split"] == chosen_by:
        memory = SplitMemory.of(current.index, current.raw_episodes)
    paths = [member.folder.path.resolve() for member in members]
    splits = assign_splits(
        [member.folder.identity for member in members],
        # The recorded prompt: another one given for a source must not move episodes between the splits.
        [f"{member.folder.source}\0{member.packed.info.instruction}" for member in members],
        options.val_fraction,
        options.seed,
        memory.sides(paths),
        [str(path.with_name(without_part(path.name))) for path in paths],
    )
    meta = _meta(episodes, options)
    entries = _entries(out, members, splits)
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "meta": meta,
        "columns": [column.to_json() for column in columns],
        "episode_options": options.episode.to_json(),
        "split": chosen_by,
    }
    identity = json.dumps([index, entries], sort_keys=True)
    index["content"] = "content-" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    content = out / index["content"]
    if not (current is not None and current.content == content and content.is_dir()):
        # What may be there was left by a killed run, or cannot be opened.
        with temporary_folder(content, within=building) as folder:
            _write_columns(folder, episodes, entries, (*COLUMNS, *columns), meta["views"], options)
            write_joined_stream(folder / "sensor.npy", episodes, np.dtype(options.episode.sensor_dtype))
            train = [
                episode.arrays for episode, split in zip(episodes, splits, strict=True) if split == "train"
            ]
            moments = [SensorMoments.from_bins(*(arrays[name] for name in MOMENTS)) for arrays in train]
            write_statistics(folder / "statistics.json", moments, [arrays["delta"] for arrays in train])
            (folder / "episodes.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
            replace_folder(folder, content)
    statistics = json.loads((content / "statistics.json").read_text(encoding="utf-8"))
    index["spec"] = spec_to_json(meta, entries, statistics)
    index["left"] = memory.without(paths)
    replace_text(out / INDEX_FILE, json.dumps(index, indent=2))
    for old in out.glob("content-*"):
        if old != content:
            shutil.rmtree(old)


def _check_alike(members: Sequence[JoinedEpisode]) -> None:
    """Raises UserError where two episodes cannot be in one data set, naming both and what they have."""
    for what, fields, applies in (
        ("actions", ("action_names", "action_units"), lambda info: True),
        ("states", ("state_names",), lambda info: info.state_names),
        ("sensor channels", ("sensor_channels",), lambda info: info.sensor_rows),
    ):
        first: tuple[JoinedEpisode, list[Any]] | None = None
        for member in members:
            if not applies(member.packed.info):
                continue
            has = [getattr(member.packed.info, field) for field in fields]
            first = first or (member, has)
            if has != first[1]:
                raise UserError(
                    f"{first[0].folder.path} and {member.folder.path} have different {what}, {_listed(first[1])} and "
                    f"{_listed(has)}; prepare them into data sets of their own"
                )


def _listed(values: Sequence[Any]) -> str:
    texts = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    return f"({'; '.join(text.strip() for text in texts)})"


def _meta(episodes: Sequence[PackedEpisode], options: PrepareOptions) -> dict[str, Any]:
    rates = [episode.info.sensor_hz for episode in episodes if episode.info.sensor_hz]
    return {
        "format_version": FORMAT_VERSION,
        "action_hz": options.episode.rate_hz,
        "horizon": options.horizon,
        "alignment": options.episode.alignment,
        "vlm_reuse_count": options.vlm_reuse_count,
        "sensor_window_size": options.sensor_window_size,
        "sensor_hz": max(rates, key=rates.count) if rates else SensorSpec().hz,
        "views": sorted({view for episode in episodes for view in episode.info.views}),
        "sensor_dtype": options.episode.sensor_dtype,
    }


def _entries(out: Path, members: Sequence[JoinedEpisode], splits: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    ends = {"tick": 0, "sensor": 0, "instant": 0, "image": 0}
    for member, split in zip(members, splits, strict=True):
        info, path = member.packed.info, member.folder.path
        sizes = {
            "tick": len(member.packed.arrays["time"]),
            "sensor": info.sensor_rows,
            "instant": len(member.packed.arrays["instant_images"]),
            "image": len(info.images),
        }
        ranges = {}
        for name, size in sizes.items():
            ranges |= {f"{name}_start": ends[name], f"{name}_stop": ends[name] + size}
            ends[name] += size
        entries.append(
            {
                **{name: getattr(info, name) for name in ENTRY_FIELDS},
                "instruction": member.prompt or info.instruction,
                "recorded_prompt": info.instruction,
                "weight": member.weight,
                "source": member.folder.source,
                "path": str(path),
                "absolute_path": str(path.resolve()),
                "relative_path": os.path.relpath(path.resolve(), out.resolve()),
                "split": split,
                **ranges,
                "has_sensor": info.sensor_rows > 0,
                "has_images": bool(info.views),
            }
        )
    return entries


def _write_columns(
    folder: Path,
    episodes: Sequence[PackedEpisode],
    entries: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    views: Sequence[str],
    options: PrepareOptions,
) -> None:
    with_state = [episode for episode in episodes if episode.info.state_names] or episodes
    state_size = max(episode.arrays["pose"].shape[1] for episode in with_state)
    rows: dict[str, list[np.ndarray]] = {column.name: [] for column in columns}
    for number, (episode, entry) in enumerate(zip(episodes, entries, strict=True)):
        arrays = episode.arrays | _made_on_joining(episode, number, views, state_size, options)
        for column in columns:
            values = column.shifted(arrays[column.name], _offsets(entry))
            rows[column.name].append(values[None] if column.per == "episode" else values)
    for column in columns:
        np.save(folder / f"{column.name}.npy", np.concatenate(rows[column.name]))
    sizes = [len(episode.arrays["histogram_bin"]) for episode in episodes]
    np.save(folder / "histogram_start.npy", np.cumsum([0, *sizes], dtype=np.int64))
    text, starts = pack_texts([image for episode in episodes for image in episode.info.images])
    np.save(folder / "image_path.npy", text)
    np.save(folder / "image_start.npy", starts)


def _made_on_joining(
    episode: PackedEpisode, number: int, views: Sequence[str], state_size: int, options: PrepareOptions
) -> dict[str, np.ndarray]:
    """Returns what depends on the other episodes or on the data set's settings, in the episode's own row numbers."""
    info, arrays = episode.info, episode.arrays
    num_ticks, num_instants = len(arrays["time"]), len(arrays["instant_images"])
    images = np.full((num_instants, len(views)), -1, np.int32)
    images[:, [views.index(view) for view in info.views]] = arrays["instant_images"]
    made = {
        "record": arrays["instant"][refresh_ticks(num_ticks, options.vlm_reuse_count)],
        "episode": np.full(num_ticks, number, np.int32),
        "instant_images": images,
        "instant_episode": np.full(num_instants, number, np.int32),
    }
    if arrays["pose"].shape[1] != state_size:
        made["pose"] = np.full((num_ticks, state_size), np.nan)
    if info.in_whole_chunks and options.episode.alignment == "index":
        # As the reference does: a chunk has the pictures of its own first action.
        made |= {"record": arrays["instant"], "is_sample": begins_chunk(num_ticks, options.horizon)}
    return made


def _offsets(entry: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry[f"{name}_start"] for name in ("sensor", "instant", "image")}


def cut_out(dataset: PackedDataset, number: int) -> PackedEpisode:
    """Returns one episode of a data set as it was before it was joined."""
    entry = dataset.raw_episodes[number]
    bins = dataset.array("histogram_start")
    rows: dict[str, slice | int] = {
        name: slice(entry[f"{name}_start"], entry[f"{name}_stop"]) for name in ("tick", "instant", "image")
    }
    rows |= {"bin": slice(bins[number], bins[number + 1]), "episode": number}
    arrays = {
        column.name: column.shifted(
            np.array(dataset.array(column.name)[rows[column.per]]), _offsets(entry), -1
        )
        for column in (*COLUMNS, *dataset.columns)
        if not column.on_joining
    }
    views = [dataset.meta.views.index(view) for view in entry["views"]]
    arrays["instant_images"] = arrays["instant_images"][:, views]
    texts = dataset.array("image_path"), dataset.array("image_start")
    images = unpack_texts(*texts, entry["image_start"], entry["image_stop"])
    fields = {name: entry[name] for name in ENTRY_FIELDS} | {"instruction": entry["recorded_prompt"]}
    info = EpisodeInfo(**fields, images=images)
    if not info.sensor_rows:
        return PackedEpisode(info, arrays)
    file = dataset.content / "sensor.npy"
    header = file.stat().st_size - dataset.sensor.nbytes
    return PackedEpisode(info, arrays, file, header + entry["sensor_start"] * dataset.sensor[:1].nbytes)
