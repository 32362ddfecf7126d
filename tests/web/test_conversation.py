"""What a visitor hears and has asked, while several requests change it at once."""

import threading
from collections.abc import Iterator

import pytest

from salmonn.web import conversation as conversation_module
from salmonn.web.conversation import Conversation, Encoding, Turn


class Other(threading.Thread):
    """Another request of the visitor, which asks "What?"."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(target=conversation.ask, args=["What?"])

    def interfere(self) -> None:
        """Come now; it comes to its end only where nothing keeps it waiting."""
        self.start()
        self.join(0.1)


class Interrupted(list[Turn]):
    """The other one comes when all of it was looked at."""

    other: Other

    def __iter__(self) -> Iterator[Turn]:
        yield from super().__iter__()
        self.other.interfere()


@pytest.mark.parametrize("change", ["drop", "clear", "begin"])
def test_no_request_loses_the_question_of_another(change, monkeypatch):
    conversation = Conversation()
    first_clip = conversation.begin()
    first, other = conversation.ask("Who?"), Other(conversation)
    if change == "begin":
        monkeypatch.setattr(conversation_module, "Encoding", lambda **kinds: other.interfere() or Encoding(**kinds))
    else:
        conversation.turns = Interrupted([first])
        conversation.turns.other = other
    getattr(conversation, change)(*[first] * (change == "drop"))
    other.join()
    assert [turn.question for turn in conversation.turns] == ["What?"]
    [asked] = conversation.turns
    assert asked.encoding is conversation.encoding
    assert (conversation.encoding is first_clip) == (change != "begin")
    assert not asked.stop.is_set()
    assert first.stop.is_set() == (change != "drop")
