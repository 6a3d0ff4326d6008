import signal

import pytest

from vla_jax.storage.stop_signals import stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requested() as stop:
        assert not stop.is_set
        signal.raise_signal(number)
        assert stop.is_set
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    # Python's own handler; a process that runs tests in parallel may have another.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_requested():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
