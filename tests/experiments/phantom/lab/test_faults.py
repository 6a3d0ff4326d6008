"""What a faulty network makes of messages."""

import numpy as np
import pytest

from experiments.phantom.lab.clock import SkewedClock
from experiments.phantom.lab.faults import FaultRates, FaultyLink, Restarts, damage, make_links, read_faults
from vla_jax.errors import UserError
from vla_jax.live import wire


def sent(rates: FaultRates, count: int = 2000, *, keeps_order: bool = False):
    """Sends numbered messages every 10 ms and returns (moment, number) of those that arrive, and the link."""
    link = FaultyLink(rates, np.random.default_rng(1), keeps_order=keeps_order)
    found = []
    for number in range(count):
        now = 0.01 * number
        found += [(each.at_s, each.tag, now) for each in link.pass_on([b"x" * 20], number, now)]
    return found, link


def test_without_faults_all_arrive_at_once():
    found, link = sent(FaultRates())
    assert found == [(0.01 * k, k, 0.01 * k) for k in range(2000)]
    assert not link.counts


@pytest.mark.parametrize("name", ["lost", "doubled", "damaged", "reordered"])
def test_as_many_messages_have_a_fault_as_are_to(name):
    found, link = sent(FaultRates(**{name: 0.1}))
    assert link.counts[name] == pytest.approx(200, abs=40)
    expected = {"lost": -1, "doubled": 1}.get(name, 0) * link.counts[name]
    assert len(found) == pytest.approx(2000 + expected, abs=1)
    if name == "reordered":
        numbers = [tag for _, tag, _ in found]
        assert sorted(numbers) != numbers
        assert all(abs(tag - place) <= 1 for place, tag in enumerate(numbers))
    if name == "damaged":
        assert sum(tag is None for _, tag, _ in found) == link.counts[name]


def test_late_messages_overtake_only_where_the_order_is_not_kept():
    rates = FaultRates(late=0.05)
    for keeps_order in (False, True):
        found, _ = sent(rates, keeps_order=keeps_order)
        delays = np.array([at - now for at, _, now in found])
        assert (delays >= 0).all()
        assert delays.max() <= 0.05
        assert np.median(delays) > 0.02
        assert bool((np.diff([at for at, _, _ in found]) < 0).any()) is not keeps_order


def test_equal_seeds_give_equal_faults():
    assert (
        sent(FaultRates(lost=0.2, doubled=0.2, late=0.1))[0]
        == sent(FaultRates(lost=0.2, doubled=0.2, late=0.1))[0]
    )


def test_damaged_messages_are_refused_or_read_and_nothing_else_happens():
    rng = np.random.default_rng(0)
    times = np.array([5.0, 6.0])
    messages = (
        (wire.encode_end(), wire.decode_robot),
        (wire.encode_state(wire.RobotState(1, 1, 0, np.zeros(6), np.zeros(6))), wire.decode_robot),
        (wire.encode_picture(wire.Picture("View1", 5.0, b"\xff\xd8 \xff\xd9")), wire.decode_picture),
        (
            [wire.encode_sensor(wire.SensorBatch(times, times, np.zeros((2, 1026), np.float32)))],
            lambda parts: wire.decode_sensor(b"".join(parts)),
        ),
    )
    refused = 0
    for _ in range(300):
        for parts, decode in messages:
            try:
                decode(damage(parts, rng))
            except wire.WireError:
                refused += 1
    assert refused > 900


def test_a_sender_is_down_for_its_time_again_and_again():
    restarts = Restarts(FaultRates(restart=2.0, down=0.5), np.random.default_rng(0))
    down = np.array([restarts.is_down(0.01 * k) for k in range(20_000)])
    begins = np.flatnonzero(down[1:] & ~down[:-1])
    ends = np.flatnonzero(~down[1:] & down[:-1])
    assert 50 < len(begins) < 120
    np.testing.assert_allclose((ends - begins[: len(ends)]) * 0.01, 0.5, atol=0.02)
    assert not Restarts(FaultRates(), np.random.default_rng(0)).is_down(1e9)


def test_faults_are_read_stream_by_stream():
    found = read_faults(["lost=0.02", "sensor.late=0.05", "robot.lost=0.5"])
    assert found["cameras"] == FaultRates(lost=0.02)
    assert found["sensor"] == FaultRates(lost=0.02, late=0.05)
    assert found["robot"].lost == 0.5
    assert set(make_links(found, 0)) == set(found)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lost", "a number from 0 to 1 after the sign ="),
        ("lost=2", "from 0 to 1"),
        ("lost=nan", "from 0 to 1"),
        ("late=-1", "from 0 to 3600"),
        ("lots=0.1", "did you mean 'lost'"),
        ("sensors.lost=0.1", "did you mean 'sensor'"),
    ],
)
def test_other_words_are_refused(word, says):
    with pytest.raises(UserError, match=says):
        read_faults([word])


def test_a_clock_that_is_off_drifts_and_jumps():
    clock = SkewedClock(100.0, offset_s=3.0, drift_ppm=100.0, jump_after_s=50.0, jump_s=-1.0)
    np.testing.assert_allclose(clock.reads(np.array([100.0, 110.0, 150.0])), [103.0, 113.001, 152.005])
