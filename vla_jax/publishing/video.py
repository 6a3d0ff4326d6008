"""Writes videos: one for each episode and camera, which are then joined without encoding them again."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vla_jax.errors import UserError
from vla_jax.publishing.settings import ENCODERS, PublishOptions


def write_video(
    path: Path, pictures: Iterable[UInt8[np.ndarray, "height width 3"]], fps: int, options: PublishOptions
) -> int:
    """Encodes pictures of one size as MP4, one frame each, and returns how many there were.

    Raises:
        UserError: pictures differ in size, or there is no such encoder here.
    """
    import av

    # The encoder would print its configuration for each video.
    os.environ.setdefault("SVT_LOG", "1")
    count, size = 0, None
    settings = {"crf": str(options.quality), "g": str(options.keyframe_every)}
    # Without frames that refer to later ones, decoding order is time's, and files can be put one after another.
    # x264's macroblock tree reads memory that nothing wrote when a keyframe comes this often: in a new process about
    # one video in a hundred differed from the others of the same pictures.
    settings |= (
        {"bf": "0", "preset": "veryfast", "mbtree": "0"} if options.codec == "h264" else {"preset": "10"}
    )
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for pixels in pictures:
            if stream is None:
                size = pixels.shape[:2]
                try:
                    stream = container.add_stream(ENCODERS[options.codec], rate=fps, options=settings)
                    assert isinstance(stream, av.VideoStream), "as the encoder makes"
                except (av.FFmpegError, ValueError) as error:
                    raise UserError(
                        f"--codec {options.codec}: this PyAV has no {ENCODERS[options.codec]}"
                    ) from error
                stream.height, stream.width = size
                # Colour at half the size needs even sides.
                stream.pix_fmt = "yuv420p" if not (size[0] % 2 or size[1] % 2) else "yuv444p"
            if pixels.shape[:2] != size:
                raise UserError(f"pictures of one camera have different sizes, {size} and {pixels.shape[:2]}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = count
            with own_priority():
                packets = stream.encode(frame)
            container.mux(packets)
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count


@contextmanager
def own_priority() -> Iterator[None]:
    """Gives the calling thread back the scheduling that it had.

    libsvtav1 takes real-time priority for it where it may, as root: it would keep that for ever, hand it to the
    processes that it starts, and starve everything else on the machine.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def join_videos(path: Path, parts: Sequence[tuple[Path, int]], fps: int) -> None:
    """Writes videos one after another into one file, as they are.

    parts: files that `write_video` made with equal settings, and how many frames each has.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream, num_before = None, 0
        for part, num_frames in parts:
            with av.open(str(part), format="mp4") as source:
                recorded = source.streams.video[0]
                if stream is None:
                    # Its packets are copied, so that no encoder is asked for.
                    stream = container.add_stream_from_template(recorded, opaque=True)
                assert recorded.time_base is not None, "as every stream of an MP4 has"
                offset = round(num_before / fps / recorded.time_base)
                for packet in source.demux(recorded):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    container.mux(packet)
            num_before += num_frames


def describe_video(path: Path, fps: int) -> dict[str, object]:
    """Returns what `meta/info.json` says of a video: size, codec, pixel format."""
    import av

    with av.open(str(path), format="mp4") as container:
        context = container.streams.video[0].codec_context
        return {
            "video.height": context.height,
            "video.width": context.width,
            "video.codec": {"libdav1d": "av1"}.get(context.name, context.name),
            "video.pix_fmt": context.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
