"""What fits the policy is read as it predicts with it; what does not is refused with all its differences."""

from dataclasses import replace

import numpy as np
import pytest

from tests.vla_jax.policy.policies import CHANNELS, DATA, ROWS, SLOTS, WIDTH, tiny_policy
from tests.vla_jax.serving.servers import request
from vla_jax.contracts.specs import StateWindow
from vla_jax.models.config import AgeEncoderConfig, StateEncoderConfig, StateWindowConfig
from vla_jax.serving.request_spec import MAX_SEED, RequestSpec
from vla_jax.serving.requests import RequestError, read_request

PIXELS = np.zeros((56, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def spec(policy):
    return RequestSpec.of(policy, takes_pictures=False)


@pytest.fixture(scope="module")
def looking(policy):
    return RequestSpec.of(policy, takes_pictures=True)


def faults(message, spec):
    with pytest.raises(RequestError) as caught:
        read_request(message, spec)
    return str(caught.value)


def test_features_are_read(spec):
    read = read_request(request() | {"seed": np.int64(MAX_SEED), "state": None}, spec)
    assert read.vl.dtype == read.sensor.dtype == np.float32
    np.testing.assert_array_equal(read.vl, request()["vl"])
    np.testing.assert_array_equal(read.vl_mask, request()["vl_mask"])
    np.testing.assert_array_equal(read.sensor, request()["sensor"])
    assert (read.seed, read.state, read.images) == (MAX_SEED, None, None)


def test_other_numbers_will_do_and_what_may_be_absent_may(spec):
    given = {"vl": np.ones((SLOTS, WIDTH), ">f8"), "sensor": np.ones((ROWS, CHANNELS), np.int16)}
    read = read_request(given, spec)
    assert read.vl.dtype == read.sensor.dtype == np.dtype("<f4")
    assert read.vl_mask.all()
    assert read.seed == 0
    assert read_request({"vl": np.ones((SLOTS, WIDTH))}, spec).sensor is None


def test_all_differences_are_in_one_text(spec):
    given = {
        "vl": np.zeros((SLOTS, WIDTH + 1), np.float32),
        "vl_mask": np.ones(SLOTS, np.float32),
        "senser": np.zeros((ROWS, CHANNELS)),
        "sensor": [1.0, 2.0],
        "seed": -1,
    }
    told = faults(given, spec)
    assert f"vl has shape [{SLOTS}, {WIDTH + 1}], expected [{SLOTS}, {WIDTH}] float32" in told
    assert f"vl_mask is of type float32, expected [{SLOTS}] bool" in told
    assert "'senser' is unknown; did you mean sensor?" in told
    assert f"sensor is a list, expected [{ROWS}, {CHANNELS}] float32" in told
    assert f"seed is -1, expected a whole number from 0 to {MAX_SEED}" in told


BAD = [
    ({"vl": None}, "vl is missing"),
    ({"vl": np.full((SLOTS, WIDTH), np.nan)}, "vl is not finite"),
    ({"vl": np.full((SLOTS, WIDTH), 1e300)}, "vl is not finite"),
    ({"sensor": np.full((ROWS, CHANNELS), -np.inf)}, "sensor is not finite"),
    ({"sensor": np.zeros((1, ROWS, CHANNELS))}, rf"shape \[1, {ROWS}, {CHANNELS}\]"),
    ({"vl": np.zeros((SLOTS, WIDTH), bool)}, "type bool"),
    ({"seed": True}, "seed is True"),
    ({"seed": 1.0}, "seed is 1.0"),
    ({"seed": MAX_SEED + 1}, "expected a whole number"),
    ({"prompt": "go"}, "has no backbone"),
    ({"images": {}}, "has no backbone"),
    ({"q" * 10_000: 1}, r"10002 characters\) is unknown; known are"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=range(len(BAD)))
def test_what_does_not_fit_is_refused(change, told, spec):
    with pytest.raises(RequestError, match=told) as caught:
        read_request(request() | change, spec)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("message", [None, 3, [1], "vl", {b"vl": 1}, np.zeros(3)], ids=str)
def test_what_is_no_map_of_names_is_refused(message, spec):
    assert "a request is a map" in faults(message, spec)


def test_many_faults_are_told_in_few_words(spec):
    told = faults(request() | {f"unknown {i}": i for i in range(500)}, spec)
    assert told.endswith("480 more")


def test_pictures_are_read(looking):
    read = read_request({"prompt": "go", "images": {"View1": PIXELS}, "seed": 5}, looking)
    assert (read.prompt, list(read.images), read.vl, read.seed) == ("go", ["View1"], None, 5)
    assert read_request({"prompt": "go", "images": {"View1": None}}, looking).images == {}
    assert read_request({"prompt": "go", "images": {"View1": b"file"}}, looking).images == {"View1": b"file"}


BAD_PICTURES = [
    ({"images": {}}, "prompt is missing"),
    ({"prompt": "", "images": {}}, "prompt is '', expected a text"),
    ({"prompt": "x" * 10_000, "images": {}}, "10002 characters"),
    ({"prompt": "go"}, "images is missing"),
    ({"prompt": "go", "images": PIXELS}, r"images is uint8 \[56, 56, 3\], expected a map"),
    ({"prompt": "go", "images": {"View9": PIXELS}}, "view 'View9' is none of the policy's: View1"),
    ({"prompt": "go", "images": {"View1": PIXELS.T}}, r"View1 is uint8 \[3, 56, 56\], expected"),
    ({"prompt": "go", "images": {"View1": PIXELS / 255}}, r"View1 is float64 \[56, 56, 3\]"),
    ({"prompt": "go", "images": {"View1": PIXELS}, "vl": np.zeros((SLOTS, WIDTH))}, "exclude each other"),
    ({"prompt": "go", "images": {}, "sensor": np.zeros(3)}, "sensor has shape"),
]


@pytest.mark.parametrize(("message", "told"), BAD_PICTURES, ids=range(len(BAD_PICTURES)))
def test_pictures_that_do_not_fit_are_refused(message, told, looking):
    with pytest.raises(RequestError, match=told):
        read_request(message, looking)


def test_state_and_previous_chunk_are_required_by_who_reads_them():
    reading = tiny_policy(z_chunk="previous", state=StateEncoderConfig((3, 4, 5), hidden_dim=4))
    spec = RequestSpec.of(reading, takes_pictures=False)
    told = faults(request(), spec)
    assert "state is missing: [6] float32, newest x, y, z, a, b, r of the arm" in told
    assert "previous_chunk is missing: [8, 7] float32, actions of the past: dx (mm)" in told
    assert set(spec.tell()["features"]) == {"vl", "vl_mask", "sensor", "state", "previous_chunk", "seed"}


def test_the_age_of_the_features_is_a_number_and_required_by_who_is_told_it(spec):
    told = RequestSpec.of(tiny_policy(age=AgeEncoderConfig(4)), takes_pictures=True)
    for age in (0.5, 1, np.float32(0.25), np.array(0.75)):
        assert read_request(request() | {"feature_age": age}, told).feature_age == np.float32(age)
    looking = {"prompt": "go", "images": {"View1": PIXELS}}
    assert "feature_age is missing: a number, seconds from when the oldest" in faults(looking, told)
    for age, wrong in (
        (True, "is True"),
        ("1", "is '1'"),
        (np.zeros(1), "has shape"),
        (np.inf, "is not finite"),
    ):
        assert f"feature_age {wrong}" in faults(request() | {"feature_age": age}, told)
    assert told.tell()["pictures"]["feature_age"]["required"]
    # Others do not look at it, and do not ask for it.
    assert read_request(request() | {"feature_age": 0.5}, spec).feature_age is None
    assert "feature_age" not in spec.tell()["features"]


def test_the_last_states_may_be_there_where_they_are_read():
    moving = tiny_policy(state_window=StateWindowConfig((0, 1, 2), StateWindow(4, 2), hidden_dim=4))
    spec = RequestSpec.of(moving, takes_pictures=False)
    read = read_request(request() | {"state_window": np.ones((4, 6))}, spec)
    assert (read.state_window.shape, read.state_window_mask) == ((4, 6), None)
    assert read_request(request(), spec).state_window is None
    told = spec.tell()["features"]
    assert told["state_window"]["shape"] == [4, 6]
    assert "one every 2 control ticks, oldest first" in told["state_window"]["meaning"]
    assert "state_window has shape [3, 6]" in faults(request() | {"state_window": np.ones((3, 6))}, spec)


def test_what_the_policy_does_not_read_may_be_there():
    blind = RequestSpec.of(tiny_policy(fusion="none"), takes_pictures=False)
    extra = {"sensor": np.zeros(3), "state": "anything", "previous_chunk": 5}
    read = read_request({"vl": np.ones((SLOTS, WIDTH))} | extra, blind)
    assert (read.sensor, read.state, read.previous_chunk) == (None, None, None)
    assert set(blind.tell()["features"]) == {"vl", "vl_mask", "seed"}


def test_fewer_slots_are_filled_up_where_slots_mean_nothing():
    spec = RequestSpec.of(tiny_policy(per_slot=False), takes_pictures=False)
    read = read_request({"vl": np.ones((2, WIDTH))}, spec)
    assert read.vl.shape == (SLOTS, WIDTH)
    assert read.vl_mask.tolist() == [True, True, False]
    assert "or fewer of the first" in faults({"vl": np.ones((SLOTS + 1, WIDTH))}, spec)
    assert "vl has 2 slots, vl_mask 1" in faults(
        {"vl": np.ones((2, WIDTH)), "vl_mask": np.ones(1, bool)}, spec
    )


def test_a_window_of_any_length_is_asked_for_in_one():
    free = tiny_policy(data=replace(DATA, sensor=replace(DATA.sensor, window=None)))
    spec = RequestSpec.of(free, takes_pictures=False)
    assert spec.arrays["sensor"].shape == (free.config.sensor.temporal_length, CHANNELS)


def test_a_prefix_is_read_for_those_who_go_on_from_it():
    spec = RequestSpec.of(tiny_policy("flow", prefix_max=3), takes_pictures=False)
    assert {"prefix", "prefix_length"} < set(spec.tell()["features"])
    without = read_request(request(), spec)
    assert (without.prefix, without.prefix_length) == (None, 0)
    given = read_request(request() | {"prefix": np.ones((2, 7))}, spec)
    assert (given.prefix.shape, given.prefix.dtype, given.prefix_length) == ((2, 7), np.float32, 2)
    longer = {"prefix": np.ones((8, 7)), "prefix_length": 3}
    assert read_request(request() | longer, spec).prefix_length == 3


BAD_PREFIXES = [
    ({"prefix": np.ones((4, 7))}, "prefix has 4 actions, 3 can be promised: say how many with prefix_length"),
    (
        {"prefix": np.ones((4, 7)), "prefix_length": 4},
        "prefix_length is 4, expected a whole number from 0 to 3",
    ),
    (
        {"prefix": np.ones((2, 7)), "prefix_length": 3},
        "prefix_length is 3, expected a whole number from 0 to 2",
    ),
    ({"prefix": np.ones((2, 7)), "prefix_length": -1}, "prefix_length is -1"),
    ({"prefix_length": 1}, "prefix_length goes with prefix"),
    (
        {"prefix": np.ones((9, 7))},
        r"prefix has shape \[9, 7\], expected \[8, 7\] float32, or fewer of the first",
    ),
    ({"prefix": np.full((2, 7), np.nan)}, "prefix is not finite"),
]


@pytest.mark.parametrize(("change", "told"), BAD_PREFIXES, ids=range(len(BAD_PREFIXES)))
def test_a_prefix_that_does_not_fit_is_refused(change, told):
    spec = RequestSpec.of(tiny_policy("flow", prefix_max=3), takes_pictures=False)
    with pytest.raises(RequestError, match=told):
        read_request(request() | change, spec)


def test_a_policy_that_takes_no_prefix_refuses_one(spec):
    told = faults(request() | {"prefix": np.ones((2, 7)), "prefix_length": 1}, spec)
    assert told == (
        "prefix and prefix_length cannot be given to a policy that was trained without a prefix and is not guided"
    )
    guided = RequestSpec.of(tiny_policy("flow", guided=True), takes_pictures=False)
    assert read_request(request() | {"prefix": np.ones((8, 7))}, guided).prefix_length == 8
