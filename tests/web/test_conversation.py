"""What a visitor hears and has asked, while several requests change it at once."""

import threading
from collections.abc import Iterator

import pytest

from salmonn.web import conversation as talk_module
from salmonn.web.conversation import Hearing, Round, Talk


class Other(threading.Thread):
    """Another request of the visitor, which asks "What?"."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(target=talk.ask, args=["What?"])

    def interfere(self) -> None:
        """Come now; it comes to its end only where nothing keeps it waiting."""
        self.start()
        self.join(0.1)


class Interrupted(list[Round]):
    """The other one comes when all of it was looked at."""

    other: Other

    def __iter__(self) -> Iterator[Round]:
        yield from super().__iter__()
        self.other.interfere()


@pytest.mark.parametrize("change", ["drop", "clear", "begin"])
def test_no_request_loses_the_question_of_another(change, monkeypatch):
    talk = Talk()
    first_clip = talk.begin()
    first, other = talk.ask("Who?"), Other(talk)
    if change == "begin":
        monkeypatch.setattr(talk_module, "Hearing", lambda: other.interfere() or Hearing())
    else:
        talk.rounds = Interrupted([first])
        talk.rounds.other = other
    getattr(talk, change)(*[first] * (change == "drop"))
    other.join()
    assert [round_.question for round_ in talk.rounds] == ["What?"]
    [asked] = talk.rounds
    assert asked.hearing is talk.hearing
    assert (talk.hearing is first_clip) == (change != "begin")
    assert not asked.stop.is_set()
    assert first.stop.is_set() == (change != "drop")
