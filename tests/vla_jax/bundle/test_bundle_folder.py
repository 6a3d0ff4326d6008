"""A bundle as a folder: it runs where vla-jax is not, notices damage, and is written whole or not at all."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.commands import REPOSITORY
from tests.pages import fenced_blocks
from tests.vla_jax.policy.policies import observations, tiny_policy
from vla_jax.bundle import run, writing
from vla_jax.bundle.run import BundleError, load
from vla_jax.bundle.writing import write_bundle
from vla_jax.errors import UserError
from vla_jax.storage.checksums import write_checksums

FILES = (run.SPECS, run.WEIGHTS, *run.PROGRAMS.values())

# Before anything else: what is not on a robot's computer cannot be imported.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"vla_jax", "flax", "orbax", "optax", "tensorstore", "safetensors", "jaxtyping"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def policy():
    return tiny_policy("diffusion")


@pytest.fixture(scope="module")
def original(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "bundle"
    write_bundle(policy, folder)
    return folder


@pytest.fixture
def bundle(original, tmp_path):
    """A copy that a test may change."""
    for path in original.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = tmp_path / "bundle" / path.relative_to(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "bundle"


def in_a_process_of_its_own(code, folder):
    """Runs code beside a bundle, without this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.all_fusions
@pytest.mark.parametrize("page", ["serving.md", "formats.md"])
def test_what_the_pages_show_runs_where_neither_vla_jax_nor_flax_is(page, policy, bundle):
    (block,) = (
        block for block in fenced_blocks(REPOSITORY / "docs" / page, "python") if "BUNDLE" in block.text
    )
    bundle.rename(bundle.with_name("BUNDLE"))
    folder, inputs = bundle.parent, observations(3)
    np.savez(folder / "inputs.npz", **inputs)
    use = """
import numpy as np
given = np.load("inputs.npz")
np.save("actions.npy", act(given["vl"], given["vl_mask"], given["sensor"], given["has_sensor"]))
"""
    done = in_a_process_of_its_own(block.text + use, folder)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(folder / "actions.npy"), policy.predict(**inputs), rtol=0, atol=1e-6)
    assert sum(bool(line.strip()) for line in block.text.splitlines()) <= 20


def test_its_program_says_what_it_is_and_names_what_is_damaged(bundle):
    script = "import runpy; runpy.run_path('bundle/run.py', run_name='__main__')"
    done = in_a_process_of_its_own(script, bundle.parent)
    assert done.returncode == 0, done.stderr
    assert "diffusion policy" in done.stdout
    assert "vl float32 [b, 3, 8]: features" in done.stdout
    assert "actions [b, 8, 7]: dx, dy, dz" in done.stdout
    (bundle / run.WEIGHTS).unlink()
    done = in_a_process_of_its_own(script, bundle.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert f"{run.WEIGHTS} cannot be read" in done.stderr


def test_the_folder_is_what_the_loader_and_sha256sum_take_it_for(bundle):
    assert (bundle / "run.py").read_text() == (REPOSITORY / "vla_jax/bundle/run.py").read_text()
    assert {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} == {
        *FILES,
        "run.py",
        run.CHECKSUMS,
    }
    for line in (bundle / run.CHECKSUMS).read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    specs = json.loads((bundle / run.SPECS).read_text())
    assert specs["inputs"]["sensor"]["shape"] == ["b", 13, 5]
    assert specs["actions"]["units"][:4] == ["mm", "mm", "mm", "deg"]
    assert (specs["sampler"], specs["sampling_steps"], specs["platforms"]) == ("ddim", 3, ["cpu", "cuda"])


def test_the_weights_are_inputs_of_the_program_and_the_normalisation_is_inside(policy, bundle):
    weights = dict(load_file(bundle / run.WEIGHTS))
    weights["normaliser.action_offset"] = weights["normaliser.action_offset"] + np.float32(1)
    save_file(weights, bundle / run.WEIGHTS)
    (bundle / run.CHECKSUMS).unlink()
    write_checksums(bundle)
    inputs = observations(1)
    np.testing.assert_allclose(load(bundle).predict(**inputs), policy.predict(**inputs) + 1, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed_before_anything_acts(name, bundle):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"is damaged: {name} is not what SHA256SUMS says; copy it again"):
        load(bundle)


@pytest.mark.parametrize("name", [*FILES, run.CHECKSUMS])
def test_a_missing_file_is_named(name, bundle):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        load(bundle)


def test_a_cut_list_of_checksums_is_no_way_around_it(bundle):
    lines = (bundle / run.CHECKSUMS).read_text().splitlines(keepends=True)
    (bundle / run.CHECKSUMS).write_text("".join(line for line in lines if run.WEIGHTS not in line))
    with pytest.raises(BundleError, match=run.WEIGHTS):
        load(bundle)


def test_another_format_is_refused(bundle):
    specs = json.loads((bundle / run.SPECS).read_text())
    (bundle / run.SPECS).write_text(json.dumps(specs | {"format": "vla-jax-bundle-9"}))
    renew_checksums(bundle)
    with pytest.raises(
        BundleError, match=r"has format vla-jax-bundle-9, this is a reader of vla-jax-bundle-1"
    ):
        load(bundle)


def test_a_program_that_this_jax_cannot_read_says_which_could(bundle):
    for name in run.PROGRAMS.values():
        (bundle / name).write_bytes(b"of another time" * 10)
    renew_checksums(bundle)
    with pytest.raises(BundleError, match=r"cannot read what jax .* exported .*install that one here"):
        load(bundle)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x10" + bytes(7) + b'{"a": {"dtype":1'],
    ids=["empty", "header without end", "list", "cut"],
)
def test_weights_that_are_no_safetensors_are_refused(content, bundle):
    (bundle / run.WEIGHTS).write_bytes(content)
    renew_checksums(bundle)
    with pytest.raises(BundleError, match=f"{run.WEIGHTS} is damaged"):
        load(bundle)


def renew_checksums(folder):
    (folder / run.CHECKSUMS).unlink()
    write_checksums(folder)


def test_a_bundle_is_written_whole_or_not_at_all(policy, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "export_programs", lambda policy: dict.fromkeys(run.PROGRAMS, b"program"))
    monkeypatch.setattr(writing, "write_checksums", full)
    with pytest.raises(UserError, match=r"cannot write to .*bundle: No space left"):
        write_bundle(policy, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UserError, match="exists; choose a new folder"):
        write_bundle(policy, tmp_path / "bundle")
