"""Writes live streams as `windows` episodes while they come in; the streams never wait for files."""

import logging
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from vla_jax.dataset.alignment import MIN_GAP_SECONDS
from vla_jax.live.episode_files import EpisodeFiles
from vla_jax.live.row_order import RowOrder
from vla_jax.live.streams import Picture, SensorBatch, State
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import check_picture
from vla_jax.recordings.lab import NUM_CHANNELS, SENSOR_HZ
from vla_jax.storage.replacing import why_not_written, writing_to

logger = logging.getLogger(__name__)

MAX_WAITING = 3000
"""Messages that wait to be written, about 20 s of the lab's streams; more are dropped and counted."""
SYNC_S, HOLD_S = 0.25, 0.2
"""Between two times at which everything is brought to the disk, and for how long rows wait for late ones."""
BEFORE_S = 1.0
"""What came so long before an episode's first state belongs to it: its first ticks see that."""
POSE_VALUES = 6


@dataclass(frozen=True)
class _Command:
    action: Sequence[float]
    time: float


class _End:
    """The episode ends."""


class _Close:
    """The recorder ends."""


class EpisodeRecorder:
    """A `StreamSink` that writes episodes into `folder / task`.

    An episode begins with the first state, and ends when `episode_end` or `close` is called, or no state has come for
    half a second. Once it cannot write
    (`failure`), it drops what comes. counts: episodes, states, rows and pictures written; dropped, messages that came
    while too many waited; damaged pictures; repeated pictures; late rows and states, which had missed their place;
    unfit, rows and states of another number of values than the format has.

    prompt: what the episodes are about. on_finished: told of each episode's folder and its seconds, on the writing
    thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prompt: str,
        task: str | None = None,
        on_finished: Callable[[Path, float], None] | None = None,
    ) -> None:
        """Raises UserError: nothing can be written there."""
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self.folder = folder / (task or task_of(prompt))
        self._prompt, self._on_finished = prompt, on_finished
        self._queue: queue.Queue = queue.Queue(MAX_WAITING)
        self._before: deque[SensorBatch | Picture] = deque()
        self._episode: _Episode | None = None
        with writing_to(folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def state(self, state: State) -> None:
        """Takes the arm's state."""
        self._put(state)

    def picture(self, picture: Picture) -> None:
        """Takes a picture."""
        self._put(picture)

    def sensor(self, batch: SensorBatch) -> None:
        """Takes sensor rows."""
        self._put(batch)

    def command(self, action: Sequence[float], time: float) -> None:
        """Takes an action that was sent to the arm."""
        self._put(_Command(action, time))

    def episode_end(self, received: float) -> None:
        """Ends the episode; the next state begins another."""
        self._put(_End())

    def close(self) -> None:
        """Ends the episode and waits until everything is written."""
        self._queue.put(_Close())
        self._thread.join()

    @property
    def is_recording(self) -> bool:
        """Whether an episode has begun."""
        return self._episode is not None

    def _put(self, message: object) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self.counts["dropped"] += 1

    def _run(self) -> None:
        sync_at = time.monotonic() + SYNC_S
        while True:
            try:
                message = self._queue.get(timeout=max(sync_at - time.monotonic(), 0.0))
            except queue.Empty:
                message = None
            try:
                if message is not None and self.failure is None:
                    self._take(message)
                if time.monotonic() >= sync_at:
                    if self._episode is not None:
                        self._episode.write()
                    sync_at = time.monotonic() + SYNC_S
            except OSError as error:
                self._give_up(f"cannot record in {self.folder}: {why_not_written(error) or error}")
            except Exception as error:  # Whatever it is, streams and arm go on, and it is told.
                self._give_up(f"recording has ended: {type(error).__name__}: {error}")
            if isinstance(message, _Close):
                return

    def _give_up(self, why: str) -> None:
        logger.exception(why)
        self.failure = why
        if self._episode is not None:
            self._episode.files.abandon()
            self._episode = None

    def _take(self, message: object) -> None:
        if isinstance(message, _End | _Close):
            self._finish()
        elif isinstance(message, State):
            if len(message.pose) != POSE_VALUES or len(message.joints) != POSE_VALUES:
                self.counts["unfit"] += 1
                return
            if self._episode is not None and message.time - self._episode.last > MIN_GAP_SECONDS:
                self._finish()  # `prepare` takes no episode whose poses stop for so long.
            if self._episode is None:
                self._episode = self._begin(message.time)
            self._episode.take(message)
        elif self._episode is not None:
            self._episode.take(message)
        elif isinstance(message, SensorBatch | Picture):
            self._before.append(message)
            while self._before[0].received < message.received - BEFORE_S:
                self._before.popleft()

    def _begin(self, start: float) -> "_Episode":
        began = datetime.fromtimestamp(start, UTC)
        name = f"episode_{began:%Y%m%d_%H%M%S}_{began.microsecond // 1000:03d}"
        metadata = {
            "episode_name": name,
            "instruction": self._prompt,
            "start_time": start,
            "sensor_hz": SENSOR_HZ,
            "robot_hz": 100,
            "sensor_window_size": 1,
        }
        episode = _Episode(EpisodeFiles(_free(self.folder / name), metadata), self.counts, start)
        for message in self._before:
            episode.take(message)
        self._before.clear()
        return episode

    def _finish(self) -> None:
        episode = self._episode
        if episode is None:
            return
        episode.write(everything=True)
        episode.files.finish(end_time=episode.last)
        self._episode = None
        self.counts["episodes"] += 1
        if self._on_finished is not None:
            self._on_finished(episode.files.folder, episode.last - episode.start)


class _Episode:
    """An episode that is being written."""

    def __init__(self, files: EpisodeFiles, counts: Counter[str], start: float) -> None:
        self.files, self.start, self.last = files, start, start
        self._counts = counts
        self._states, self._rows = RowOrder(HOLD_S), RowOrder(HOLD_S)

    def take(self, message: object) -> None:
        """Takes what came, to write it at the next `write`; pictures at once."""
        if isinstance(message, State):
            values = (message.origin_time, message.send_time, *message.joints, *message.pose)
            if not self._states.is_of(message.epoch):
                self._write_states(everything=True)
            self._states.add(np.array([message.time]), np.array([values]), message.offset, message.epoch)
            self.last = max(self.last, message.time)
        elif isinstance(message, SensorBatch):
            if message.rows.shape[1] != NUM_CHANNELS:
                self._counts["unfit"] += 1
                return
            if not self._rows.is_of(message.epoch):
                self._write_rows(everything=True)
            self._rows.add(message.times, message.rows, message.offset, message.epoch)
        elif isinstance(message, Picture):
            self._take_picture(message)
        elif isinstance(message, _Command):
            self.files.add_command(message.time, message.action)

    def write(self, *, everything: bool = False) -> None:
        """Writes what is held back no longer, or everything, and brings it to the disk."""
        self._write_states(everything=everything)
        self._write_rows(everything=everything)
        self.files.sync()

    def _write_states(self, *, everything: bool) -> None:
        before = self._states.dropped
        times, states = self._states.take(everything=everything)
        self.files.add_states(times, states)
        self._counts["states"] += len(times)
        self._counts["late"] += self._states.dropped - before

    def _write_rows(self, *, everything: bool) -> None:
        before = self._rows.dropped
        times, rows = self._rows.take(everything=everything)
        self.files.add_rows(times, rows)
        self._counts["rows"] += len(times)
        self._counts["late"] += self._rows.dropped - before

    def _take_picture(self, picture: Picture) -> None:
        try:
            # A damaged one would make the whole episode unusable.
            check_picture("picture", picture.jpeg, ("JPEG",))
        except EpisodeError:
            self._counts["damaged"] += 1
            return
        is_new = self.files.add_picture(picture.view, picture.time, picture.jpeg)
        self._counts["pictures" if is_new else "repeated"] += 1


def task_of(prompt: str) -> str:
    """Returns a folder's name for a prompt."""
    return re.sub(r"[^A-Za-z0-9]+", "_", prompt).strip("_")[:60] or "Recorded"


def _free(path: Path) -> Path:
    """Returns the path, or one with a number behind it where there is something."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
