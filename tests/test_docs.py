"""What the pages show runs, what they name is there, and what they say of a format holds."""

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.commands import COMMANDS
from feature_cache.keys import record_key
from feature_cache.store import ShardWriter
from tests.commands import REPOSITORY, run_command
from tests.pages import PAGES, fenced_blocks, run_blocks
from tests.test_rooms import ROOMS
from tests.vla_jax.evaluation.rollouts import lower
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.evaluation.rollout_summary import Trial
from vla_jax.reporting.rollout_report import rollout_arrays

FORMATS = fenced_blocks(REPOSITORY / "docs" / "formats.md", "python")


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """What docs/formats.md wrote and defined: (folder, names)."""
    folder = tmp_path_factory.mktemp("formats")
    return folder, run_blocks(FORMATS, folder)


@pytest.fixture(scope="module")
def written(formats):
    """The episode of docs/formats.md, prepared."""
    folder, _ = formats
    run_command("prepare", folder / "recorded", "--out", folder / "data", "--strict")
    return PackedDataset.open(folder / "data")


def test_the_page_s_writer_is_short():
    assert sum(bool(line.strip()) for line in FORMATS[0].text.splitlines()) <= 40


def test_the_page_s_episode_has_the_actions_that_it_says(written):
    (entry,) = written.episodes
    assert (entry.format, entry.instruction, entry.notes) == (
        "windows",
        "Insert the needle at the blue point",
        (),
    )
    ticks = written.sample_ticks("all")
    assert len(ticks) == 79
    delta = written.ticks.delta[ticks]
    np.testing.assert_allclose(delta[:, 0], 0.01, atol=1e-5)
    # 0.05 degrees a tick, through 180.
    np.testing.assert_allclose(delta[:, 5], 0.05, atol=1e-5)
    np.testing.assert_allclose(delta[:, 2].sum(), -4.0, atol=0.01)


def test_the_page_s_sensor_windows_end_at_their_ticks(formats, written):
    _, names = formats
    ticks = written.sample_ticks("all")
    assert written.has_sensor(ticks).all()
    np.testing.assert_allclose(written.ticks.time[ticks] - written.ticks.sensor_time[ticks], 0.0, atol=1e-5)
    # Every row says how deep the needle was when it was taken.
    ages = np.arange(-64, 1) / 650.0
    since_start = written.ticks.time[ticks][:, None] - names["start"] + ages
    force = written.sensor_windows(ticks)[:, :, 0].astype(np.float32)
    np.testing.assert_allclose(force, 0.1 * names["depth_mm"](since_start), rtol=1e-3, atol=1e-6)


def test_the_page_s_pictures_are_the_newest_at_each_refresh(formats, written):
    _, names = formats
    ticks = written.sample_ticks("all")
    for tick in ticks:
        record = written.records[int(written.record_index(np.array([tick]))[0])]
        assert [image.view for image in record.images] == ["View1", "View2"]
        refresh = written.ticks.time[tick // 3 * 3] - names["start"]
        for image in record.images:
            taken = float(image.path.stem) - names["start"]
            # At 5 Hz, the newest is 0 or 0.1 s old.
            assert -1e-5 < refresh - taken < 0.1 + 1e-5


def test_the_page_s_writer_works_without_what_it_calls_optional(tmp_path):
    """Of the keys none is required, of the files only metadata.json and the poses; samples need a picture."""
    names = run_blocks(FORMATS, tmp_path)
    episode = tmp_path / names["folder"]
    (episode / "metadata.json").write_text("{}")
    (episode / "sensor_data.npz").unlink()
    run_command("prepare", tmp_path / "recorded", "--out", tmp_path / "data", "--strict")
    bare = PackedDataset.open(tmp_path / "data")
    assert bare.episodes[0].instruction == "Perform Blue point insertion task."
    assert bare.meta.views == ("View1", "View2")
    ticks = bare.sample_ticks("all")
    assert len(ticks) == 79
    assert not bare.has_sensor(ticks).any()


def test_an_episode_is_drawn_beside_its_predictions(written, tmp_path):
    ticks = written.sample_ticks("all")
    report = {
        "tick": ticks,
        "episode": written.ticks.episode[ticks],
        "target": written.actions(ticks),
        "predicted": written.actions(ticks) + 0.01,
    }
    np.savez(tmp_path / "predictions.npz", **report)
    pixels = run_drawing("draw_episode.py", written.path, tmp_path / "drawn.png", f"policy={tmp_path}")
    # The policy's blue and the needles' are there.
    for colour in ((0x25, 0x63, 0xEB), (20, 60, 160)):
        assert count(pixels, colour) > 100, colour


def test_insertions_are_drawn_from_a_rollout_s_report(tmp_path):
    trials = [Trial("sees", [lower(seed, steps=20) for seed in range(3)])]
    trials += [Trial("blind", [lower(seed, steps=14) for seed in range(3)])]
    np.savez(tmp_path / "rollouts.npz", **rollout_arrays(trials))
    success, failure = (0x05, 0x96, 0x69), (0xD9, 0x77, 0x06)
    seen = run_drawing("draw_rollouts.py", tmp_path, tmp_path / "seen.png", "sees=with sensor")
    blind = run_drawing("draw_rollouts.py", tmp_path, tmp_path / "blind.png", "blind=without")
    assert count(seen, success) > count(blind, success)
    assert count(seen, failure) < count(blind, failure)


def run_drawing(program, source, picture, *arguments):
    """Runs a program of docs/ that draws a picture; returns its pixels [h, w, 3]."""
    subprocess.run(
        [sys.executable, f"docs/{program}", source, picture, *arguments],
        cwd=REPOSITORY,
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    with Image.open(picture) as drawn:
        pixels = np.asarray(drawn.convert("RGB"), np.int32)
    assert pixels.shape[1] == 1350
    return pixels


def count(pixels, colour):
    """Counts the pixels that nearly have a colour."""
    return (np.abs(pixels - colour).max(axis=-1) < 30).sum()


@pytest.mark.parametrize("pooling", ["grid", "mean"])
def test_the_page_s_keys_find_records(formats, tmp_path, pooling):
    _, names = formats
    provenance = Provenance("backbone", "name", None, {"size": 784}, "template", pooling=pooling)
    writer = ShardWriter(tmp_path, provenance)
    pictures = [b"one", b"two"]
    key = record_key(provenance.digest(), "prömpt", [hashlib.sha256(data).hexdigest() for data in pictures])
    features = np.arange(12, dtype=np.float16).reshape(3, 4)
    writer.add("0" * 32, features + 1)
    writer.add(key, features)
    shard = writer.flush()
    (stored,) = tmp_path.glob("*/provenance.json")
    digest = names["provenance_digest"](names["json"].loads(stored.read_text(encoding="utf-8")))
    assert digest[:16] == stored.parent.name
    assert names["record_key"](digest, "prömpt", pictures) == key
    np.testing.assert_array_equal(names["find"](shard, key), features)
    assert names["find"](shard, "f" * 32) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_python_and_import_what_is_there(page):
    blocks = fenced_blocks(page, "python")
    own = {block.file.removesuffix(".py") for block in blocks if block.file}
    own |= {"run"}  # It lies in every bundle.
    for block in blocks:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name in own or importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module not in own:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}:{block.line}: {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), target


def headings(page: Path) -> set[str]:
    """Returns the names by which GitHub links to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m (experiments\.[a-z_.]*[a-z])", text)):
        assert importlib.util.find_spec(name) is not None, name
    shown = "\n".join(block.text for block in fenced_blocks(page, ""))
    called = re.findall(r"^vla-jax ([\w.-]+)", shown, flags=re.MULTILINE)
    called += re.findall(r"`vla-jax ([a-z_.-]+)", text)
    assert {name.replace("-", "_") for name in called} <= set(COMMANDS)
    for name in set(
        re.findall(r"`((?:vla_jax|feature_cache|experiments|examples|tests|docs)/[\w/.]*)`", text)
    ):
        assert (REPOSITORY / name).exists(), name


def test_the_architecture_page_lists_the_rooms_in_their_order():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| \d+ \| `([\w.]+)` \|", text, flags=re.MULTILINE)) == ROOMS
