"""Run by a Python that has the lerobot package: what the package returns for a data set, and that it can train on it.

`LEROBOT_PYTHON=VENV/bin/python make test-slow`, after `python -m venv VENV && VENV/bin/pip install lerobot`.
"""

import sys

import numpy as np


def main(root: str, out: str) -> None:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("made/up", root=root, video_backend="pyav")
    items = [dataset[i] for i in range(len(dataset))]
    found = {"task": np.array([item["task"] for item in items])}
    for key, value in items[0].items():
        if not hasattr(value, "shape"):
            continue
        values = torch.stack([item[key] for item in items])
        is_picture = key in dataset.meta.camera_keys
        found[key] = (
            (values.permute(0, 2, 3, 1) * 255).round().to(torch.uint8) if is_picture else values
        ).numpy()
    chunks = LeRobotDataset(
        "made/up",
        root=root,
        video_backend="pyav",
        delta_timestamps={"action": [i / dataset.fps for i in range(4)]},
    )
    batches = list(torch.utils.data.DataLoader(chunks, batch_size=8, shuffle=True))
    found["loaded"] = np.sort(np.concatenate([batch["index"].numpy() for batch in batches]))
    found["chunk_shape"] = np.array(batches[0]["action"].shape)
    found["stats"] = np.array(sorted(dataset.meta.stats))
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
