import signal
import threading

import pytest

from tests.vla_jax.storage.processes import start_python, wait_for
from vla_jax.storage.stop_signals import stop_requested

# Works until it is asked to stop, and says which signal it was.
WORK = """
import sys, time
from pathlib import Path
from vla_jax.storage.stop_signals import stop_requested
with stop_requested("finishing the work in hand") as stop:
    Path(sys.argv[1]).touch()
    while not stop.is_set:
        time.sleep(0.01)
print(stop.signal)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requested() as stop:
        assert not stop.is_set
        signal.raise_signal(number)
        assert stop.is_set
        assert stop.signal == number
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


def test_a_real_process_ends_its_work_and_says_so(tmp_path):
    process = start_python(WORK, tmp_path / "started")
    wait_for((tmp_path / "started").exists, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.strip() == str(int(signal.SIGTERM))
    assert "finishing the work in hand" in errors


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_requested() as stop:
            seen.append((stop.is_set, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
