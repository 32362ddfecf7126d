"""A signal is a request to stop; who insists is obeyed."""

import os
import signal
from types import SimpleNamespace

import pytest

from salmonn.training import stop_signal
from salmonn.training.stop_signal import StopRequest


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(stop_signal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture(autouse=True)
def _handlers_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_ends_nothing(number: signal.Signals):
    with StopRequest() as request:
        assert request.name == ""
        send(number)
        assert request.name == number.name


def test_one_ctrl_c_that_arrives_twice_within_a_second_is_one(clock):
    with StopRequest() as request:
        send(signal.SIGINT)
        clock.now += 0.9
        send(signal.SIGINT)
        assert request.name == "SIGINT"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_ctrl_c_later_ends_the_process(clock, first: signal.Signals):
    with StopRequest() as request:
        send(first)
        clock.now += 1.1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert request.name == first.name


def test_slurm_may_repeat_itself(clock):
    with StopRequest() as request:
        send(signal.SIGTERM)
        clock.now += 60
        send(signal.SIGTERM)
        assert request.name == "SIGTERM"


@pytest.mark.parametrize("error", [None, ValueError])
def test_afterwards_the_handlers_are_those_from_before(error: type[Exception] | None):
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            if error:
                raise error
    except ValueError:
        pass
    send(signal.SIGTERM)
    assert (heard, request.name) == (["before"], "")
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
