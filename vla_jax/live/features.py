"""The newest pictures become features beside the control loop, in a process of their own.

The backbone is torch's, which would hold this process's interpreter while a tick is due. The loop never waits for it:
it takes the features that are there.
"""

import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.contracts.feature_encoder import FeatureEncoder
from vla_jax.errors import UserError
from vla_jax.live.buffers import PictureBuffer
from vla_jax.live.clock import LocalClock
from vla_jax.live.streams import Picture
from vla_jax.storage.worker_processes import begin_worker
from vla_jax.timing import TIME_RESOLUTION

logger = logging.getLogger(__name__)

MAX_PICTURE_AGE_S = 2.0
"""A set with a picture older than this is not encoded, as `prepare` leaves out the ticks that have one."""
MAX_DEATHS = 3
"""After so many in a minute the backbone is given up."""
DEATHS_WITHIN_S = 60.0
ENCODING_TIMEOUT_S = 30.0
OPENING_TIMEOUT_S = 600.0
MAX_PIXELS = 8_000_000
_NICENESS = 5
_POLL_S = 0.01


@dataclass(frozen=True)
class Features:
    """What the backbone made of one set of pictures."""

    number: int
    """Sets so far."""
    vl: Float[np.ndarray, "s v"]
    vl_mask: Bool[np.ndarray, " s"]
    picture_times: Mapping[str, float]
    """View → when its picture was taken, our clock."""
    encoding_s: float

    @property
    def oldest(self) -> float:
        """When the oldest of the pictures was taken."""
        return min(self.picture_times.values())


class FeatureProcess:
    """Keeps the newest features of a buffer's pictures.

    make_encoder: called in the new process, so that it can be pickled. period_s: from one set of pictures to the next,
    at least.

    Attributes:
        newest: the newest features; None before the first. count: sets encoded so far.
        deaths: how often the process has died and was started anew.
        damaged: pictures that could not be decoded.
        failure: why there will be no more features; None while there may be.
    """

    def __init__(
        self,
        make_encoder: Callable[[], FeatureEncoder],
        prompt: str,
        pictures: PictureBuffer,
        clock: LocalClock,
        *,
        period_s: float,
        timeout_s: float = ENCODING_TIMEOUT_S,
    ) -> None:
        self.newest: Features | None = None
        self.deaths = 0
        self.damaged = 0
        self.failure: str | None = None
        self._make_encoder = make_encoder
        self._prompt = prompt
        self._pictures = pictures
        self._clock = clock
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._died_at: list[float] = []
        self.count = 0
        self._closing = threading.Event()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._thread = threading.Thread(target=self._keep_newest, name="features", daemon=True)

    def start(self) -> None:
        """Starts the process; `wait_until_open` before there are features."""
        self._spawn()

    def wait_until_open(self, watch: Callable[[], None] = lambda: None) -> None:
        """Waits until the backbone is loaded, and begins. watch: called meanwhile.

        Raises:
            UserError: the backbone does not fit or cannot be loaded.
        """
        try:
            self._take_opening(watch)
        except (EOFError, TimeoutError) as error:
            raise UserError(f"the backbone's process died while it loaded ({error})") from error
        self._thread.start()

    def close(self) -> None:
        """Ends the process."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._timeout_s)
        self._end_process()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_encode_forever, args=(theirs, self._make_encoder), name="backbone", daemon=True
        )
        self._process.start()
        theirs.close()

    def _take_opening(self, watch: Callable[[], None] = lambda: None) -> None:
        kind, content = self._answer(OPENING_TIMEOUT_S, watch)
        if kind == "refused":
            raise UserError(content)

    def _keep_newest(self) -> None:
        encoded: Mapping[str, float] = {}
        next_at = 0.0
        while not self._closing.is_set():
            chosen = self._choose(encoded)
            if chosen is None or time.monotonic() < next_at:
                self._closing.wait(_POLL_S)
                continue
            next_at = time.monotonic() + self._period_s
            encoded = {view: picture.time for view, picture in chosen.items()}
            try:
                self._encode(chosen)
            except (EOFError, OSError, TimeoutError) as error:
                if not self._closing.is_set():
                    self._restart(error)

    def _choose(self, encoded: Mapping[str, float]) -> Mapping[str, Picture] | None:
        """Returns the newest pictures; None where they are encoded already, or one is too old to be shown."""
        now = self._clock.now()
        newest = self._pictures.newest(now)
        if not newest or {view: picture.time for view, picture in newest.items()} == encoded:
            return None
        oldest = min(picture.time for picture in newest.values())
        return newest if now - oldest <= MAX_PICTURE_AGE_S + TIME_RESOLUTION else None

    def _encode(self, chosen: Mapping[str, Picture]) -> None:
        assert self._pipe is not None
        begun = time.monotonic()
        self._pipe.send((self._prompt, {view: picture.jpeg for view, picture in chosen.items()}))
        kind, content = self._answer(self._timeout_s)
        if kind == "refused":
            if not self.damaged:
                logger.warning("pictures were left out: %s", content)
            self.damaged += 1
            return
        vl, vl_mask = content
        self.count += 1
        times = {view: picture.time for view, picture in chosen.items()}
        self.newest = Features(self.count, vl, vl_mask, times, time.monotonic() - begun)

    def _answer(self, timeout_s: float, watch: Callable[[], None] = lambda: None) -> tuple[str, Any]:
        """Returns what the process says; raises TimeoutError, or EOFError where it has died."""
        assert self._pipe is not None
        until = time.monotonic() + timeout_s
        while not self._pipe.poll(0.1):
            watch()
            if self._closing.is_set():
                raise EOFError("closing")
            if time.monotonic() > until:
                raise TimeoutError(f"no answer for {timeout_s:g} s")
        return self._pipe.recv()

    def _restart(self, error: Exception) -> None:
        self._end_process()
        self.deaths += 1
        now = time.monotonic()
        self._died_at = [at for at in self._died_at if now - at < DEATHS_WITHIN_S] + [now]
        why = str(error) or "it died"
        logger.warning("the backbone's process is started anew (%s)", why)
        if len(self._died_at) > MAX_DEATHS:
            self.failure = f"the backbone's process died {len(self._died_at)} times within a minute ({why})"
            self._closing.set()
            return
        try:
            self._spawn()
            self._take_opening()
        except (EOFError, OSError, TimeoutError) as again:
            if not self._closing.is_set():
                self._restart(again)
        except UserError as refusal:
            self.failure = f"the backbone could not be loaded again: {refusal}"
            self._closing.set()

    def _end_process(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _encode_forever(pipe: Connection, make_encoder: Callable[[], FeatureEncoder]) -> None:
    """The process: answers ("open", None), then each (prompt, view → JPEG) with ("features", (vl, mask)); ("refused",
    text) where it cannot."""
    begin_worker()
    os.nice(_NICENESS)  # A tick goes before a picture.
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        encoder = make_encoder()
    except UserError as error:
        pipe.send(("refused", str(error)))
        return
    pipe.send(("open", None))
    while True:
        try:
            prompt, pictures = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("features", encoder.encode(prompt, pictures))
        except Exception as error:  # Whatever a picture does to its decoder; the next one may be sound.
            answer = ("refused", f"{type(error).__name__}: {error}")
        pipe.send(answer)
