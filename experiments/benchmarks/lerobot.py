"""`python -m experiments.benchmarks.lerobot`: how fast videos are read, beside the lerobot package's reader."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.machine import conditions, processors
from experiments.benchmarks.timing import Timing, clock
from feature_cache.worklist import WorkItem, read_images
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import prepare
from vla_jax.publishing.lerobot import publish
from vla_jax.publishing.settings import CODECS, Codec, PublishOptions

DESCRIPTION = """Writes a LeRobot data set of moving pictures, once as h264 and once as av1, with a keyframe each two
frames as LeRobot writes them. Times `prepare`, which decodes and hashes every frame, and the reading of all frames
again as `export` does before its model, with threads; and the lerobot package's reader, in another Python
(--lerobot-python), which goes through the same frames in order by a DataLoader with as many processes."""

RATE_HZ = 30
NOISE = 6.0

READER = """
import json, sys, time
from torch.utils.data import DataLoader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, backend, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
dataset = LeRobotDataset("made/up", root=root, video_backend=backend)
dataset[0]
start = time.perf_counter()
rows = sum(len(batch["index"]) for batch in DataLoader(dataset, batch_size=8, num_workers=workers))
print(json.dumps({"seconds": time.perf_counter() - start, "rows": rows}))
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    rounds: int = 3
    """How often each is timed, in turn; the table shows medians."""
    episodes: int = 4
    """Episodes in the set."""
    rows: int = 100
    """Rows of an episode."""
    cameras: int = 2
    """Cameras."""
    size: tuple[int, int] = (480, 640)
    """Height and width of the pictures."""
    lerobot_python: Path | None = None
    """Python that has the lerobot package; without, only our side is timed."""
    video_backend: str = "pyav"
    """Decoder of the package: pyav or torchcodec."""
    scratch: Path | None = None
    """Where to write the sets; a temporary folder by default."""


def main(arguments: Arguments) -> None:
    """Times all sides and prints the table."""
    require_positive(arguments, "episodes", "rounds", "rows", "cameras", "size")
    workers = processors()
    frame = Frame(arguments, {**conditions("numpy", "av", "pyarrow"), "workers": workers})
    timings: list[Timing] = []
    with scratch_folder(arguments.scratch) as scratch:
        for codec in CODECS:
            frame.say(f"writing {arguments.episodes} episodes as {codec} …")
            root = write_set(scratch / codec, codec, arguments)
            timings += measure(codec, root, scratch / f"{codec} data", arguments, workers)
    frame.finish(timings, timing_table(timings))


def write_set(folder: Path, codec: Codec, arguments: Arguments) -> Path:
    """Writes recorded episodes with pictures, and publishes them; returns the published folder."""
    rng = np.random.default_rng(0)
    texture = rng.normal(0, NOISE, (*arguments.size, 3))
    x = np.linspace(0, 6 * np.pi, arguments.size[1])
    for number in range(arguments.episodes):
        episode = folder / "recorded" / f"episode_{number}"
        times = 1.7e9 + np.arange(arguments.rows + 1) / RATE_HZ
        for camera in range(arguments.cameras):
            (episode / "images" / f"camera{camera}").mkdir(parents=True)
            for row, time in enumerate(times[:-1]):
                wave = 128 + 70 * np.sin(x + 0.2 * row + camera + number)[None, :, None]
                pixels = np.clip(wave + np.roll(texture, 3 * row, axis=1), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(
                    episode / "images" / f"camera{camera}" / f"{time:.6f}.jpg", quality=95
                )
        poses = np.cumsum(rng.normal(0, 0.1, (len(times), 6)), axis=0)
        header = "recv_timestamp," + ",".join(f"pose_{axis}" for axis in "xyzabr")
        lines = [
            ",".join(f"{value:.6f}" for value in (time, *pose))
            for time, pose in zip(times, poses, strict=True)
        ]
        (episode / "robot_states.csv").write_text("\n".join([header, *lines]) + "\n")
        (episode / "metadata.json").write_text(json.dumps({"instruction": "go", "robot_hz": RATE_HZ}))
    options = PrepareOptions(episode=EpisodeOptions(action_hz=RATE_HZ))
    dataset = prepare([str(folder / "recorded")], folder / "data", options).dataset
    return publish(dataset, folder / "published", PublishOptions(codec=codec), processors()).path


def measure(case: str, root: Path, out: Path, arguments: Arguments, workers: int) -> list[Timing]:
    """Times the lerobot package, `prepare`, and the reading of all frames as `export` does, in turn."""
    seconds: dict[str, list[float]] = {}
    num_frames = 0
    for number in range(arguments.rounds):
        if arguments.lerobot_python is not None:
            seconds.setdefault(f"lerobot package, {arguments.video_backend}", []).append(
                _package_seconds(arguments, root, workers)
            )
        # A folder of its own each time, so that every episode is read.
        own = out.with_name(f"{out.name} {number}")
        options = PrepareOptions(vlm_reuse_count=1, num_workers=workers)
        packing, result = clock(lambda own=own, options=options: prepare([str(root)], own, options))
        reading, num_frames = clock(lambda dataset=result.dataset: read_all(dataset, workers))
        seconds.setdefault("prepare", []).append(packing)
        seconds.setdefault("export's input", []).append(reading)
        seconds.setdefault("prepare and export's input", []).append(packing + reading)
    return [
        Timing(case=case, side=side, seconds=tuple(values), amount=num_frames, unit="frames")
        for side, values in seconds.items()
    ]


def read_all(dataset: PackedDataset, workers: int) -> int:
    """Reads every record's pictures as the exporter's threads do; returns how many there were."""
    records = [dataset.records[i] for i in dataset.required_records()]
    items = [WorkItem("", record.prompt, record.images) for record in records]
    with ThreadPoolExecutor(workers) as threads:
        return sum(len(images) for images in threads.map(read_images, items))


def _package_seconds(arguments: Arguments, root: Path, workers: int) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(arguments.lerobot_python), "-c", READER, str(root), arguments.video_backend, str(workers)],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["rows"] == arguments.episodes * arguments.rows, "every row is read"
    return told["seconds"]


COMMAND = cli.Command("benchmarks.lerobot", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
