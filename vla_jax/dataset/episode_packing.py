"""Packs recorded episodes, each by itself: reads and checks it, places it on the control ticks, and writes it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.contracts.specs import SensorSpec
from vla_jax.dataset.alignment import make_grid, no_ticks
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.packed_episode import SENSOR_FILE, EpisodeInfo, write_packed
from vla_jax.dataset.pictures import camera_instants, check_pictures
from vla_jax.dataset.schema import Column
from vla_jax.dataset.sensor_stream import write_stream
from vla_jax.dataset.statistics import SensorMoments
from vla_jax.dataset.tick_columns import tick_columns
from vla_jax.dataset.units import convert
from vla_jax.progress import progress_bar
from vla_jax.recordings.discovery import EpisodeFolder
from vla_jax.recordings.findings import EpisodeError, Finding
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.untrusted_files import check_name, printable
from vla_jax.storage.replacing import replace_folder, temporary_folder
from vla_jax.storage.worker_processes import run_jobs


def pack_episodes(jobs: Sequence[tuple[Any, ...]], num_workers: int) -> list[Finding]:
    """Calls `pack_episode` with the arguments of each job and returns all findings.

    Raises:
        UserError: a process was killed.
    """
    findings: list[Finding] = []
    with progress_bar(total=len(jobs), desc="prepare", unit="episode", disable=not jobs) as bar:
        # Starting processes takes longer than reading a few episodes.
        num_workers = num_workers if len(jobs) >= 4 else 1
        killed = "a process that reads episodes was killed, perhaps for want of memory; try --workers 1"
        for found in run_jobs(pack_episode, jobs, num_workers, killed=killed):
            findings += found
            bar.update()
    return findings


def pack_episode(
    episode: EpisodeFolder,
    options: EpisodeOptions,
    directory: Path,
    fingerprint: str,
    columns: Sequence[Column] = (),
) -> list[Finding]:
    """Reads and checks one episode and packs it into `directory`, unless it has a fault.

    columns: the registered ones. Returns all that was found about the episode; the packed episode exists exactly if
    none of it is a fault.
    """
    name = printable(str(episode.path))
    try:
        check_name(str(episode.path))
        reader = episode.reader
        recording = reader.read(episode.path, options.own(reader), with_sensor=options.sensor)
        convert(recording, options.pose_units, options.angle_units)
    except EpisodeError as error:
        return [Finding(name, str(error))]
    except OSError as error:
        return [Finding(name, f"cannot be read ({error})")]
    with temporary_folder(directory) as folder:
        info, arrays = _pack(recording, options, folder / SENSOR_FILE, fingerprint, columns)
        findings = [Finding(name, fault) for fault in recording.faults]
        findings += [Finding(name, note, is_fault=False) for note in recording.notes]
        if recording.faults:
            return findings
        write_packed(folder, info, arrays)
        replace_folder(folder, directory)
    return findings


def _pack(
    recording: Recording,
    options: EpisodeOptions,
    sensor_path: Path,
    fingerprint: str,
    registered: Sequence[Column],
) -> tuple[EpisodeInfo, dict[str, np.ndarray]]:
    """Returns what is written; it means something only where the recording has no faults after it."""
    with recording.collecting():
        _select_views(recording, options.views)
    views = sorted(recording.views)
    pictures = check_pictures(recording.views)
    recording.faults += pictures.faults
    stream = None
    if recording.sensor is not None:
        with recording.collecting():
            stream = write_stream(recording.sensor, sensor_path, np.dtype(options.sensor_dtype))
            recording.notes.extend(stream.notes)
    grid, arrays = no_ticks(recording), {}
    if recording.times is None:
        if not recording.faults:  # Which may be why there are none.
            recording.notes.append("no poses: no actions, no samples")
    else:
        with recording.collecting():
            grid = make_grid(recording, options)
    with recording.collecting():
        arrays |= tick_columns(recording, grid, options, stream, registered)
        arrays["instant"], arrays["instant_images"] = camera_instants(
            recording, pictures, grid, None if options.alignment == "index" else options.max_image_age
        )
    if recording.times is not None and not views:
        recording.notes.append("no images: nothing to export, no samples")
    moments = stream.moments if stream else SensorMoments.empty()
    used = np.flatnonzero(moments.histogram.ravel())
    arrays |= {
        "image_digest": pictures.digests,
        "image_time": pictures.times,
        "moments": moments.moments,
        "centred": moments.centred,
        "histogram_bin": used.astype(np.uint16),
        "histogram_count": moments.histogram.ravel()[used],
    }
    info = EpisodeInfo(
        name=recording.name,
        format=recording.format,
        instruction=recording.instruction,
        confidence=recording.confidence,
        segments=[asdict(segment) for segment in recording.segments],
        views=views,
        images=list(pictures.locators),
        images_per_view=[int((pictures.rows[view] >= 0).sum()) for view in views],
        sensor_rows=len(stream.row_times) if stream else 0,
        sensor_channels=recording.sensor.rows.channels
        if recording.sensor and stream
        else SensorSpec().channels,
        sensor_hz=recording.sensor.hz if recording.sensor else None,
        pose_hz=grid.state_hz,
        state_names=list(recording.state_names) if recording.state is not None else [],
        action_names=list(recording.action_names),
        action_units=list(recording.action_units),
        in_whole_chunks=recording.in_whole_chunks,
        fingerprint=fingerprint,
        notes=recording.notes,
    )
    return info, arrays


def _select_views(recording: Recording, wanted: tuple[str, ...] | None) -> None:
    if wanted is None or not recording.views:
        return
    if not set(wanted) & set(recording.views):
        raise EpisodeError(
            f"none of the views {', '.join(wanted)} is there, only {', '.join(sorted(recording.views))}"
        )
    recording.views = {view: recording.views[view] for view in wanted if view in recording.views}
