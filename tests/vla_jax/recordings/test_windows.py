import io
import json
import os
import re
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.vla_jax.recordings.recorded_episodes import START, jpeg, sensor_rows, write_windows_episode
from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.packed_episode import load_packed
from vla_jax.errors import UserError
from vla_jax.recordings import untrusted_npz, windows
from vla_jax.recordings.discovery import find_episodes
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import check_picture
from vla_jax.recordings.windows import WindowsReader


def findings_of(folder, directory, **options):
    (episode,) = find_episodes([str(folder)])
    return pack_episode(episode, EpisodeOptions(**options), directory, "digest")


def faults_of(folder, directory, **options):
    return [finding.reason for finding in findings_of(folder, directory, **options) if finding.is_fault]


@pytest.fixture
def episode(tmp_path):
    return write_windows_episode(tmp_path / "Blue_point" / "episode")


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def edit_csv(path, row, change):
    lines = path.read_text().splitlines()
    lines[row] = change(lines[row])
    path.write_text("\n".join(lines) + "\n")


def rewrite_npz(path, **changes):
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **(arrays | changes))


def test_a_sound_episode_has_no_faults(episode, tmp_path):
    assert findings_of(episode, tmp_path / "part") == []
    part = load_packed(tmp_path / "part")
    assert part.info.instruction == "insert"
    assert part.info.sensor_rows == 1300
    assert len(part.info.images) == 20
    assert len(part.arrays["time"]) == 20


def test_prompt_comes_from_the_task_folder_without_instruction(tmp_path):
    folder = write_windows_episode(tmp_path / "Blue_point" / "e", instruction=None)
    assert findings_of(folder, tmp_path / "part") == []
    assert load_packed(tmp_path / "part").info.instruction == "Perform Blue point insertion task."


def damaged_image(episode):
    truncate(sorted((episode / "images/View2").iterdir())[3])
    return "images/View2/.*unreadable picture"


def empty_image(episode):
    sorted((episode / "images/View1").iterdir())[0].write_bytes(b"")
    return "images/View1/.* is empty"


def image_without_time(episode):
    (episode / "images/View1/last.jpg").write_bytes(jpeg(1))
    return "last.jpg: the file name does not end in a unix time"


def truncated_csv(episode):
    truncate(episode / "robot_states.csv", 0.501)
    return "robot_states.csv: (row .* fields|has .* rows)"


def csv_cut_between_rows(episode):
    path = episode / "robot_states.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:100]) + "\n")
    return r"robot_states.csv: has 99 rows, metadata.json says 201"


def csv_with_text(episode):
    edit_csv(episode / "robot_states.csv", 7, lambda line: line.replace(".", "x", 1))
    return "robot_states.csv: could not convert"


def csv_with_nan(episode):
    def change(line):
        fields = line.split(",")
        return ",".join([*fields[:4], "nan", *fields[5:]])

    edit_csv(episode / "robot_states.csv", 9, change)
    return "robot_states.csv: pose_y is nan in row 9"


def csv_with_repeated_time(episode):
    path = episode / "robot_states.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:20], lines[19], *lines[20:]]) + "\n")
    return "robot_states.csv: times must ascend, but time 19 repeats"


def csv_unsorted(episode):
    path = episode / "robot_states.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    return "robot_states.csv: times must ascend, but time 1 goes back"


def csv_without_poses(episode):
    path = episode / "robot_states.csv"
    path.write_text(path.read_text().replace("pose_x", "x"))
    return r"column\(s\) pose_x are missing"


def csv_missing(episode):
    (episode / "robot_states.csv").unlink()
    return "robot_states.csv: is missing"


def angle_jump(episode):
    edit_csv(episode / "robot_states.csv", 50, lambda line: ",".join([*line.split(",")[:-1], "77"]))
    return "pose_r jumps by"


def truncated_npz(episode):
    truncate(episode / "sensor_data.npz")
    return "sensor_data.npz: damaged or truncated"


def flipped_bit_in_npz(episode):
    path = episode / "sensor_data.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return r"sensor_data.npz\[data\]: damaged \(Bad CRC-32"


def wrong_channels(episode):
    rewrite_npz(episode / "sensor_data.npz", data=np.zeros((20, 65, 1025), np.float16))
    return r"sensor_data.npz\[data\]: has shape \(20, 65, 1025\), expected \(N, W, 1026\)"


def nan_in_sensor(episode):
    data = np.zeros((20, 65, 1026), np.float16)
    data[7, 1, 1] = np.nan
    rewrite_npz(episode / "sensor_data.npz", data=data)
    return "sensor_data.npz: window 7: holds nan"


def sensor_times_unsorted(episode):
    rewrite_npz(episode / "sensor_data.npz", timestamps=np.full(20, START))
    return r"sensor_data.npz\[timestamps\]: times must ascend"


def objects_in_npz(episode):
    rewrite_npz(episode / "sensor_data.npz", data=np.array([{}], object))
    return "something other than numbers"


def metadata_is_no_json(episode):
    truncate(episode / "metadata.json")
    return "metadata.json: not valid JSON"


def missing_sensor(episode):
    metadata = json.loads((episode / "metadata.json").read_text())
    (episode / "metadata.json").write_text(json.dumps(metadata | {"sensor_windows_count": 20}))
    (episode / "sensor_data.npz").unlink()
    return "sensor_data.npz: is missing"


DAMAGES = [
    damaged_image,
    empty_image,
    image_without_time,
    truncated_csv,
    csv_cut_between_rows,
    csv_with_text,
    csv_with_nan,
    csv_with_repeated_time,
    csv_unsorted,
    csv_without_poses,
    csv_missing,
    angle_jump,
    truncated_npz,
    flipped_bit_in_npz,
    wrong_channels,
    nan_in_sensor,
    sensor_times_unsorted,
    objects_in_npz,
    metadata_is_no_json,
    missing_sensor,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_one_fault_and_leaves_no_part(damage, episode, tmp_path):
    pattern = damage(episode)
    faults = faults_of(episode, tmp_path / "part")
    assert len(faults) == 1
    assert re.search(pattern, faults[0]), faults[0]
    assert not (tmp_path / "part").exists()
    assert not list(tmp_path.glob(".part*"))


def test_all_faults_of_an_episode_are_found(episode, tmp_path):
    for damage in (damaged_image, empty_image, csv_with_nan, truncated_npz):
        damage(episode)
    assert len(faults_of(episode, tmp_path / "part")) == 4


def test_absent_modalities_are_notes(tmp_path):
    folder = write_windows_episode(tmp_path / "t" / "e", views=(), has_sensor=False)
    findings = findings_of(folder, tmp_path / "part")
    assert [finding.reason for finding in findings] == ["no images: nothing to export, no samples"]
    part = load_packed(tmp_path / "part")
    assert (part.arrays["sensor_end"] == -1).all()
    assert (part.arrays["instant"] == -1).all()


def test_a_forged_size_is_refused_before_anything_is_allocated(episode, tmp_path):
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999, 65, 1026), }\n"
    with zipfile.ZipFile(episode / "sensor_data.npz", "w") as archive:
        archive.writestr("data.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("timestamps.npy", b"")
    assert "needs 13337" in faults_of(episode, tmp_path / "part")[0]


def test_a_zip_bomb_is_refused_unread(episode, tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted_npz, "MAX_COMPRESSED_BYTES", 1 << 20)
    with np.load(episode / "sensor_data.npz") as stored:
        timestamps = stored["timestamps"]
    np.savez_compressed(episode / "sensor_data.npz", data=np.zeros((20, 65, 1026)), timestamps=timestamps)
    assert "bytes, which is absurd" in faults_of(episode, tmp_path / "part")[0]
    assert not list(tmp_path.glob("part*"))


def test_absurd_windows_and_poses_are_refused(episode, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "MAX_WINDOW_ROWS", 64)
    edit_csv(episode / "robot_states.csv", 3, lambda line: ",".join([*line.split(",")[:-1], "1e30"]))
    faults = faults_of(episode, tmp_path / "part")
    assert "pose_r is 1e+30 in row 3" in faults[0]
    assert "windows of 65 rows are absurdly long" in faults[1]


def test_float32_windows_are_stored_as_asked(tmp_path):
    folder = write_windows_episode(tmp_path / "t" / "e", sensor_dtype=np.float32)
    assert findings_of(folder, tmp_path / "part", sensor_dtype="float32") == []
    stored = np.fromfile(tmp_path / "part" / "sensor.bin", np.float32).reshape(-1, 1026)
    np.testing.assert_array_equal(stored, sensor_rows(1300).astype(np.float32))


def test_unknown_view_is_a_fault(episode, tmp_path):
    assert "none of the views View9" in faults_of(episode, tmp_path / "part", views=("View9",))[0]
    assert findings_of(episode, tmp_path / "part", views=("View2", "View9")) == []
    assert load_packed(tmp_path / "part").info.views == ["View2"]


def test_sources_without_episodes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_episodes([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="holds no episodes"):
        find_episodes([str(tmp_path)])


def test_episodes_are_found_once_by_folder_and_glob(tmp_path):
    for name in ("a/e1", "a/e2", "b/e3"):
        write_windows_episode(tmp_path / name, seconds=0.5)
    found = find_episodes([str(tmp_path / "*"), str(tmp_path / "a" / "e1"), str(tmp_path)])
    assert [episode.path.name for episode in found] == ["e1", "e2", "e3"]
    assert found[0].identity == "a/e1"


def decodes_in_full(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                image.load()
        except (OSError, ValueError, SyntaxError, Warning):
            return False
    return True


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_the_quick_check_of_a_picture_judges_as_decoding_in_full_does(options):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    noise = rng.normal(128, 40, (90, 70, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    sound = buffer.getvalue()
    verdicts = []
    for case in range(400):
        data = bytearray(sound)
        if case % 4 == 0:
            data = data[: rng.integers(len(data))]
        elif case % 4 == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif case % 4 == 2:
            for place in rng.integers(0, len(data), 20):
                data[place] = rng.integers(256)
        else:
            start = rng.integers(len(data))
            del data[start : start + rng.integers(1, 200)]
        try:
            check_picture("p.jpg", bytes(data))
            is_sound = True
        except EpisodeError:
            is_sound = False
        assert is_sound == decodes_in_full(bytes(data)), f"case {case}"
        verdicts.append(is_sound)
    assert 40 < sum(verdicts) < 360


def test_links_to_nothing_and_to_themselves_are_faults(episode, tmp_path):
    view = episode / "images/View1"
    (view / f"{START + 1.51:.6f}.jpg").symlink_to(view / "absent.jpg")
    loop = view / f"{START + 1.53:.6f}.jpg"
    loop.symlink_to(loop)
    (episode / "images/View3").symlink_to(episode / "images/View3")
    (episode / "again").symlink_to(episode)
    digest = WindowsReader().fingerprint(episode)
    faults = faults_of(episode, tmp_path / "part")
    assert len(faults) == 2
    assert all("cannot be read" in fault for fault in faults)
    loop.unlink()
    assert WindowsReader().fingerprint(episode) != digest


def test_a_fingerprint_tells_names_sizes_and_times(episode, monkeypatch):
    digests = [WindowsReader().fingerprint(episode)]
    picture = sorted((episode / "images/View2").iterdir())[2]
    digests.append(WindowsReader().fingerprint(episode))
    assert len(set(digests)) == 1
    os.utime(picture, ns=(1, 1))
    digests.append(WindowsReader().fingerprint(episode))
    picture.rename(picture.with_name(f"{START + 1.55:.6f}.jpg"))
    digests.append(WindowsReader().fingerprint(episode))
    with open(episode / "robot_states.csv", "a") as file:
        file.write("\n")
    digests.append(WindowsReader().fingerprint(episode))
    assert len(set(digests)) == 4

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    # A folder that cannot be listed is left to the reader to complain about.
    monkeypatch.setattr(os, "scandir", refuse)
    assert WindowsReader().fingerprint(episode) not in digests


def write_corrections(episode, rows, header="recv_timestamp,dx,dy,dz,da,db,dr,gripper"):
    lines = [header, *(",".join(f"{value:.6f}" for value in row) for row in rows)]
    (episode / "corrections.csv").write_text("\n".join(lines) + "\n")


def test_corrections_are_the_actions_to_learn_and_other_ticks_are_no_samples(episode, tmp_path):
    pack = tmp_path / "plain"
    assert faults_of(episode, pack) == []
    plain = load_packed(pack).arrays
    corrected = [0, 3, 4]
    write_corrections(episode, [[START + tick / 10 + 0.02, *range(tick, tick + 7)] for tick in corrected])
    assert faults_of(episode, tmp_path / "corrected") == []
    arrays = load_packed(tmp_path / "corrected").arrays
    np.testing.assert_array_equal(np.flatnonzero(arrays["is_sample"]), corrected)
    for tick in corrected:
        np.testing.assert_array_equal(arrays["delta"][tick], np.arange(tick, tick + 7))
    others = np.setdiff1d(np.arange(len(plain["delta"])), corrected)
    np.testing.assert_array_equal(arrays["delta"][others], plain["delta"][others])
    np.testing.assert_array_equal(arrays["pose"], plain["pose"])


@pytest.mark.parametrize(
    ("rows", "header", "fault"),
    [
        ([[START, *[0.0] * 6]], "recv_timestamp,dx,dy,dz,da,db,dr", "column(s) gripper are missing"),
        ([[START + 0.05, *[0.0] * 7]], None, "0.05 s from the nearest control tick"),
        ([[START + 9, *[0.0] * 7]], None, "from the nearest control tick"),
        ([[START, np.nan, *[0.0] * 6]], None, "dx is nan in row 1"),
        ([[START + 0.1, *[0.0] * 7], [START, *[0.0] * 7]], None, "corrections.csv"),
    ],
)
def test_corrections_that_fit_no_tick_are_faults(rows, header, fault, episode, tmp_path):
    write_corrections(episode, rows, **({"header": header} if header else {}))
    (found,) = faults_of(episode, tmp_path / "packed")
    assert fault in found
