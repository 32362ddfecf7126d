"""How long commands take to show something, and servers until they can be visited."""

import pytest

from salmonn.common.errors import UserError
from tests.fixtures.waiting import HANG
from util.benchmarks.starts import started

SAYS_LATE = "import time; time.sleep(0.3); print('late', flush=True); time.sleep(0.3); sum(range(10**7))"
SERVES = (
    "import time; print('loading', flush=True); time.sleep(0.3); sum(range(10**7)); "
    f"print('http://127.0.0.1', flush=True); time.sleep({HANG})"
)


def test_the_first_word_and_the_end_of_a_command_are_told_apart_and_waiting_is_no_work():
    first, end, cpu = started(["-c", SAYS_LATE], is_server=False)
    assert 0.3 <= first <= end - 0.3
    assert 0 < cpu < end


def test_a_server_is_ended_once_it_can_be_visited():
    first, ready, cpu = started(["-c", SERVES], is_server=True)
    assert first + 0.2 <= ready < HANG
    assert 0 < cpu < ready


def test_a_server_that_ends_before_is_told_with_what_it_said():
    with pytest.raises(UserError, match="no such port"):
        started(["-c", "raise SystemExit('no such port')"], is_server=True)
