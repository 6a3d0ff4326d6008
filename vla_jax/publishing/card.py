"""The data card of a published data set: what is known of it, for people and for the model hub."""

import json
from collections.abc import Sequence
from typing import Any

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.publishing.settings import PublishOptions


def data_card(
    dataset: PackedDataset, info: dict[str, Any], prompts: Sequence[str], options: PublishOptions
) -> str:
    """Returns the README.md of a data set that `info` describes."""
    seconds = info["total_frames"] / info["fps"]
    heading = ["---", *([f"license: {options.license}"] if options.license else [])]
    heading += ["task_categories:", "- robotics", "tags:", "- LeRobot", "configs:", "- config_name: default"]
    heading += ["  data_files: data/*/*.parquet", "---", ""]
    features = [
        f"| `{key}` | {value['dtype']} | {'×'.join(map(str, value['shape']))} | {_names(value)} |"
        for key, value in info["features"].items()
    ]
    kinds = sorted({entry.format for entry in dataset.episodes})
    lines = [
        *heading,
        f"# {options.robot_type or 'Robot'} recordings",
        "",
        f"{info['total_episodes']} episodes, {info['total_frames']} rows at {info['fps']} a second ({seconds / 60:.1f} "
        f"minutes), in LeRobot's format {info['codebase_version']}. Written by `vla-jax to-lerobot` "
        f"from {_listed(kinds)} recordings.",
        "",
        "| feature | type | shape | names and units |",
        "| --- | --- | --- | --- |",
        *features,
        "",
        f"- Pictures and sensor rows are paired with rows by {dataset.meta.alignment}: the newest at or before each.",
        "- An episode begins with the first row at which every camera has a picture.",
    ]
    if "observation.sensor" in info["features"]:
        lines += [
            f"- `observation.sensor` holds the newest rows, {dataset.meta.sensor_hz:g} a second, stored before as "
            f"{dataset.meta.sensor_dtype}; channel 0 is the force, the others are depth bins. Zeros where "
            "`observation.has_sensor` is false. There are no statistics of it.",
        ]
    lines += ["", "## Tasks", "", *(f"- {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts), ""]
    return "\n".join(lines)


def _names(feature: dict[str, Any]) -> str:
    names, units = feature.get("names") or [], feature.get("info", {}).get("units") or []
    if len(names) == len(units):
        return ", ".join(
            f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)
        )
    return ", ".join(map(str, names))


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)
