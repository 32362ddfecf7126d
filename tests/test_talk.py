"""What a visitor hears and has asked, while several requests change it at once."""

import threading
from collections.abc import Callable, Iterator

import pytest

from salmonn.talk import Round, Talk


class Interrupted(list[Round]):
    """Whoever has looked at all of it is interrupted by another request."""

    def __init__(self, rounds: list[Round], other: Callable[[], object]) -> None:
        super().__init__(rounds)
        self.other = threading.Thread(target=other)

    def __iter__(self) -> Iterator[Round]:
        yield from super().__iter__()
        if self.other.ident is None:
            self.other.start()
            self.other.join(0.1)  # it ends only where nothing keeps it from interfering


@pytest.mark.parametrize("change", ["drop", "clear", "begin"])
def test_no_request_loses_the_question_of_another(change):
    talk = Talk()
    first_clip = talk.begin()
    first = talk.ask("Who?")
    talk.rounds = rounds = Interrupted([first], lambda: talk.ask("What?"))
    getattr(talk, change)(*[first] * (change == "drop"))
    rounds.other.join()
    assert [round_.question for round_ in talk.rounds] == ["What?"]
    [asked] = talk.rounds
    assert asked.hearing is talk.hearing
    assert (talk.hearing is first_clip) == (change != "begin")
    assert not asked.stop.is_set()
    assert first.stop.is_set() == (change != "drop")
