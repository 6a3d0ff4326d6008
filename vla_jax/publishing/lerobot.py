"""Publishes a packed data set in LeRobot's format, v3.0.

Everything is built in `.OUT.building/` beside OUT: first each episode by itself, in parallel, then the files that many
share. OUT appears by one rename. Killed, the next run goes on with the episodes that are complete.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar
from vla_jax.publishing.card import data_card
from vla_jax.publishing.episode import ROWS_FILE, STATS_FILE, visible_ticks, whole_fps, write_episode
from vla_jax.publishing.feature_statistics import joined
from vla_jax.publishing.features import BOOKKEEPING, camera_key, number_features
from vla_jax.publishing.settings import PublishOptions
from vla_jax.publishing.video import describe_video, join_videos
from vla_jax.recordings.lerobot.tables import require_libraries
from vla_jax.storage.locks import locked
from vla_jax.storage.replacing import put_in_place, remove_leftovers, temporary_folder
from vla_jax.storage.worker_processes import run_jobs

FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class Published:
    """A finished data set. left_out: one line for each episode that is not in it."""

    path: Path
    num_episodes: int
    num_rows: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """members: packed episodes in order; first_rows, lengths, tasks: of each; prompts: of each task."""

    members: tuple[int, ...]
    first_rows: tuple[int, ...]
    lengths: tuple[int, ...]
    tasks: tuple[int, ...]
    prompts: tuple[str, ...]


def publish(dataset: PackedDataset, out: Path, options: PublishOptions, num_workers: int = 1) -> Published:
    """Writes the data set `out`.

    Raises:
        UserError: something is there already, no episode can be published, the rate is no whole number, or a picture
            cannot be read.
    """
    require_libraries()
    whole_fps(dataset)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists; choose a new folder for --out")
    plan, left_out = _plan(dataset)
    building = out.parent / f".{out.name}.building"
    with locked(building, busy=f"{out}: another to-lerobot is writing this data set; wait for it"):
        _begin(building, dataset, plan, options)
        folders = [building / f"episode_{place:06d}" for place in range(len(plan.members))]
        jobs = [
            (dataset.path, plan.members, place, plan.first_rows[place], plan.tasks[place], folder, options)
            for place, folder in enumerate(folders)
            if not (folder / STATS_FILE).is_file()
        ]
        killed = "a process that encodes episodes was killed, perhaps for want of memory; try --workers 1"
        with progress_bar(total=len(jobs), desc="to-lerobot", unit="episode", disable=not jobs) as bar:
            for _ in run_jobs(write_episode, jobs, num_workers, killed=killed):
                bar.update()
        with temporary_folder(out, within=building) as folder:
            _assemble(folder, dataset, plan, folders, options)
            if out.is_dir():
                out.rmdir()
            put_in_place(folder, out)
        for entry in building.glob("episode_*"):
            shutil.rmtree(entry)
        (building / "plan.json").unlink()
    return Published(out, len(plan.members), sum(plan.lengths), tuple(left_out))


def _plan(dataset: PackedDataset) -> tuple[_Plan, list[str]]:
    members, lengths, tasks, left_out = [], [], [], []
    prompts: dict[str, int] = {}
    for i, entry in enumerate(dataset.episodes):
        num_rows = len(visible_ticks(dataset, i))
        if entry.tick_start == entry.tick_stop:
            left_out.append(f"{entry.path}: has no actions")
        elif not num_rows:
            left_out.append(
                f"{entry.path}: never shows all of the views {', '.join(dataset.meta.views)} at once"
            )
        else:
            members.append(i)
            lengths.append(num_rows)
            tasks.append(prompts.setdefault(entry.instruction, len(prompts)))
    if not members:
        raise UserError(f"{dataset.path}: no episode can be published; the first: {left_out[0]}")
    first_rows = tuple(sum(lengths[:i]) for i in range(len(lengths)))
    return _Plan(tuple(members), first_rows, tuple(lengths), tuple(tasks), tuple(prompts)), left_out


def _begin(building: Path, dataset: PackedDataset, plan: _Plan, options: PublishOptions) -> None:
    """Removes what a run with other episodes or settings has left."""
    made_of = [asdict(options), asdict(plan), dataset.index["meta"], dataset.index["episode_options"]]
    made_of.append([dataset.episodes[i].fingerprint for i in plan.members])
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    file = building / "plan.json"
    if not file.is_file() or file.read_text(encoding="utf-8") != digest:
        for entry in building.glob("episode_*"):
            shutil.rmtree(entry)
        file.write_text(digest, encoding="utf-8")
    remove_leftovers(building)


def _assemble(
    folder: Path, dataset: PackedDataset, plan: _Plan, parts: Sequence[Path], options: PublishOptions
) -> None:
    """Writes the files of the data set from those of the episodes."""
    fps = whole_fps(dataset)
    statistics = [json.loads((part / STATS_FILE).read_text(encoding="utf-8")) for part in parts]
    rows: list[dict[str, Any]] = [
        {
            "episode_index": place,
            "tasks": [plan.prompts[plan.tasks[place]]],
            "length": length,
            "dataset_from_index": plan.first_rows[place],
            "dataset_to_index": plan.first_rows[place] + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for place, length in enumerate(plan.lengths)
    ]
    for number, group in _grouped([part / ROWS_FILE for part in parts], options.data_mb):
        _join_rows(_made(folder, DATA_PATH, number), [parts[i] / ROWS_FILE for i in group])
        for i in group:
            rows[i] |= {f"data/{name}": value for name, value in number.items()}
    described = {}
    for view in dataset.meta.views:
        key, files = camera_key(view), [part / f"{view}.mp4" for part in parts]
        for number, group in _grouped(files, options.video_mb):
            target = _made(folder, VIDEO_PATH, number, video_key=key)
            join_videos(target, [(files[i], plan.lengths[i]) for i in group], fps)
            before = 0
            for i in group:
                rows[i] |= {f"videos/{key}/{name}": value for name, value in number.items()}
                rows[i][f"videos/{key}/from_timestamp"] = before / fps
                before += plan.lengths[i]
                rows[i][f"videos/{key}/to_timestamp"] = before / fps
        video = describe_video(files[0], fps)
        described[key] = {
            "dtype": "video",
            "shape": [video["video.height"], video["video.width"], 3],
            "names": ["height", "width", "channels"],
            "info": video,
        }
    for row, found in zip(rows, statistics, strict=True):
        row |= {f"stats/{key}/{name}": value for key, of in found.items() for name, value in of.items()}
    features = number_features(dataset, plan.members) | described
    features |= {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in BOOKKEEPING.items()}
    info = _info(dataset, plan, features, options)
    _write_meta(folder, info, plan, rows, statistics)
    (folder / "README.md").write_text(data_card(dataset, info, plan.prompts, options), encoding="utf-8")


def _grouped(files: Sequence[Path], max_mb: int) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Yields which of the files go into one, and that one's number: as many as stay below the size, at least one."""
    group, size, number = [], 0, 0
    for i, file in enumerate(files):
        own = file.stat().st_size
        if group and size + own > max_mb * 1_000_000:
            yield _file_number(number), group
            group, size, number = [], 0, number + 1
        group.append(i)
        size += own
    yield _file_number(number), group


def _file_number(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _made(folder: Path, template: str, number: dict[str, int], **values: str) -> Path:
    path = folder / template.format(**number, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _join_rows(path: Path, files: Sequence[Path]) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(
        path, pyarrow.parquet.read_schema(files[0]), compression="snappy"
    ) as writer:
        for file in files:
            with pyarrow.parquet.ParquetFile(file) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group))


def _info(
    dataset: PackedDataset, plan: _Plan, features: dict[str, Any], options: PublishOptions
) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": options.robot_type,
        "total_episodes": len(plan.members),
        "total_frames": sum(plan.lengths),
        "total_tasks": len(plan.prompts),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": options.data_mb,
        "video_files_size_in_mb": options.video_mb,
        "fps": whole_fps(dataset),
        "splits": {"train": f"0:{len(plan.members)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if dataset.meta.views else None,
        "features": features,
    }


def _write_meta(
    folder: Path,
    info: dict[str, Any],
    plan: _Plan,
    rows: list[dict[str, Any]],
    statistics: Sequence[dict[str, Any]],
) -> None:
    import pyarrow
    import pyarrow.parquet

    (folder / EPISODES_FILE).parent.mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
    together = {key: joined([found[key] for found in statistics]) for key in statistics[0]}
    listed = {key: {name: value.tolist() for name, value in of.items()} for key, of in together.items()}
    (folder / "meta/stats.json").write_text(json.dumps(listed, indent=4), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / EPISODES_FILE)
    tasks = pyarrow.table({"task_index": range(len(plan.prompts)), "task": plan.prompts})
    # LeRobot reads this table with pandas, which is told here that the texts are its index.
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    told = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "pandas_version": "2.0.0",
    }
    pyarrow.parquet.write_table(
        tasks.replace_schema_metadata({"pandas": json.dumps(told)}), folder / "meta/tasks.parquet"
    )
