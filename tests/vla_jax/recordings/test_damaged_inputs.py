"""Three hundred damaged, hostile and absurd episodes: each ends in a fault or in what its files really say."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from tests.vla_jax.recordings.test_capture import write_capture_episode
from tests.vla_jax.recordings.test_legacy import Hostile, write_legacy_episode
from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.packed_episode import load_packed
from vla_jax.errors import UserError
from vla_jax.recordings.discovery import find_episodes

NUM_CASES = 300
# What a checksum, a decoder or the format itself protects; a changed digit in a text is nobody's to notice.
PROTECTED = (".npz",)


def truncate(data, rng):
    return data[: rng.integers(len(data))]


def flip_bits(data, rng):
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(changed), rng.integers(1, 20))
    changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return changed.tobytes()


def cut_out(data, rng):
    start, stop = np.sort(rng.integers(0, len(data), 2))
    return data[:start] + data[stop:]


def insert_noise(data, rng):
    place = rng.integers(len(data))
    return data[:place] + rng.bytes(rng.integers(1, 100)) + data[place:]


def noise(data, rng):
    return rng.bytes(len(data))


def repeat(data, rng):
    return data * 3


def nothing(data, rng):
    return b""


def absurd_numbers(data, rng):
    """Replaces a number in a text by one that no array can have."""
    words = [
        b"1e400",
        b"-9999999999999999999",
        b"nan",
        b"NaN",
        b"null",
        b"true",
        b"{}",
        b"[[[[",
        b'"\\u0000"',
    ]
    places = [i for i, byte in enumerate(data[:4000]) if chr(byte).isdigit()]
    if not places:
        return b"\x00" * 100
    place = places[rng.integers(len(places))]
    return data[:place] + words[rng.integers(len(words))] + data[place + 1 :]


CHANGES = [truncate, flip_bits, cut_out, insert_noise, noise, repeat, nothing, absurd_numbers]


def absurd_npz(rng):
    shape = [(2**62, 2**62), (2**40, 65, 1026), (-1, 65, 1026), (0, 65, 1026), (1,) * 40, (1, 10**9, 1026)]
    descr = ["'<f4'", "'|O'", "'<U100000'", "[('a', '<f4')]", "'<f999'"]
    header = (
        f"{{'descr': {descr[rng.integers(len(descr))]}, 'fortran_order': False, "
        f"'shape': {shape[rng.integers(len(shape))]}, }}\n"
    ).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64


def bombs(path, rng, marker):
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("data.npy", "timestamps.npy", "../../escape.npy")[: rng.integers(1, 4)]:
                archive.writestr(name, absurd_npz(rng))
    elif path.suffix == ".pkl":
        hostile = Hostile(open, str(marker), "w")
        wide = ["x"]
        for _ in range(60):
            wide = [wide, wide]
        contents = [
            pickle.dumps({"action": hostile}),
            b"\x80\x04" + b"]" + b"(" * 100_000,
            b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc",
            b"\x80\x04\x8d" + (2**62).to_bytes(8, "little"),
            pickle.dumps({"action": np.zeros((3, 7)), "image": wide}),
            b"\x80\x04" + b"]" * 1 + b"".join(b"]a" for _ in range(3)) + b".",
        ]
        path.write_bytes(contents[rng.integers(len(contents))])
    elif path.suffix == ".json":
        path.write_bytes(
            b"[" * 200_000 if rng.integers(2) else b'{"sensor_hz": 1e999, "camera_views": [1, {}]}'
        )
    elif path.suffix == ".jpg":
        # A PNG of 60 000 × 60 000 pixels in a few bytes.
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xea\x60\x00\x00\xea\x60\x08\x02\x00\x00\x00\x7f\x1f\x1e\x9c"
        )
    else:
        path.write_bytes(b"recv_timestamp," * 10_000 + b"\n1,2\n")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_windows_episode(root / "windows" / "e", seconds=0.5, image_hz=10, views=("View1",))
    write_legacy_episode(root / "legacy" / "e")
    write_capture_episode(root / "capture" / "e", num_rows=100)
    return root


def test_every_damaged_input_ends_in_a_fault_or_in_its_own_data(sound, tmp_path):
    marker = tmp_path / "executed"
    clean = {}
    for kind in ("windows", "legacy", "capture"):
        episode = find_episodes([str(sound / kind)])[0]
        assert not [f for f in pack_episode(episode, EpisodeOptions(), tmp_path / kind, "x") if f.is_fault]
        clean[kind] = (tmp_path / kind / "sensor.bin").read_bytes()
    num_faulty = 0
    for case in range(NUM_CASES):
        rng = np.random.default_rng(case)
        kind = ("windows", "legacy", "capture")[case % 3]
        work = tmp_path / f"case_{case}"
        shutil.copytree(sound / kind, work, copy_function=os.link)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        # Few of an episode's files are not pictures; half of the damage is theirs.
        others = [path for path in files if path.suffix != ".jpg"]
        chosen = others if rng.integers(2) else files
        path = chosen[rng.integers(len(chosen))]
        action = rng.integers(len(CHANGES) + 2)
        data = path.read_bytes()
        # The copy is made of links: only what is damaged gets a file of its own.
        path.unlink()
        if action < len(CHANGES):
            path.write_bytes(CHANGES[action](data, rng))
        elif action > len(CHANGES):
            bombs(path, rng, marker)
        try:
            episode = find_episodes([str(work)])[0]
        except UserError:
            num_faulty += 1
            shutil.rmtree(work)
            continue
        part = tmp_path / f"part_{case}"
        findings = pack_episode(episode, EpisodeOptions(), part, "x")
        faults = [finding for finding in findings if finding.is_fault]
        assert part.exists() == (not faults), f"case {case}: {faults}"
        if faults:
            num_faulty += 1
            assert all(len(fault.reason) < 1000 for fault in faults)
            assert all("\n" not in fault.reason for fault in faults), f"case {case}"
        elif load_packed(part).info.sensor_rows and path.suffix in PROTECTED:
            assert (part / "sensor.bin").read_bytes() == clean[kind], f"case {case}: {path.name}"
        assert not list(tmp_path.glob(".part*"))
        shutil.rmtree(work)
        shutil.rmtree(part, ignore_errors=True)
    assert not marker.exists()
    # Pictures may survive a flipped bit and a text a cut; most damage does not pass.
    assert num_faulty > 0.6 * NUM_CASES
