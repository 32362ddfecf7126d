"""What one visitor of the web page hears and has asked about it; kept by the server, and changed in place."""

import threading
from dataclasses import dataclass, field

from salmonn.common.errors import UserError
from salmonn.inference.engine import EncodedAudio

NO_CLIP = "No clip yet: upload or record one first."
UNWRITTEN = "…"  # in the place of an answer of which nothing is written yet

# Held for microseconds, so one serves all visitors; gradio copies a conversation for each, which no lock allows.
_changing = threading.RLock()


@dataclass(eq=False)
class Encoding:
    """A clip that is being heard, or was."""

    heard: EncodedAudio | None = None
    is_pair: bool = False  # it is two clips, one after the other
    stop: threading.Event = field(default_factory=threading.Event)  # ends it early
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_empty(self) -> bool:
        """It is over, and nothing was heard."""
        return self.over.is_set() and self.heard is None


@dataclass(eq=False)
class Turn:
    """A question and its answer as the chat shows it."""

    question: str
    encoding: Encoding  # of the clip that it is about
    answer: str = UNWRITTEN
    stop: threading.Event = field(default_factory=threading.Event)  # ends the answer, or keeps it from beginning
    is_over: bool = False  # nothing more is written


@dataclass
class Conversation:
    """A clip and the turns of questions about it. All requests of a visitor that are being served share it."""

    encoding: Encoding | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the chat shows it."""
        return [
            {"role": role, "content": text}
            for turn in self.turns
            for role, text in (("user", turn.question), ("assistant", turn.answer))
        ]

    @property
    def is_busy(self) -> bool:
        """A clip is being heard, or an answer written or waited for."""
        with _changing:
            hears = self.encoding is not None and not self.encoding.over.is_set()
            return hears or not all(turn.is_over for turn in self.turns)

    def begin(self, is_pair: bool = False, keeps_turns: bool = False) -> Encoding:
        """Something is heard anew from now on; all else is stopped, and forgotten unless `keeps_turns`."""
        with _changing:
            self.stop()
            self.encoding = Encoding(is_pair=is_pair)
            self.turns = self.turns if keeps_turns else []
            return self.encoding

    def ask(self, question: str) -> Turn:
        """One more round. Raises UserError while there is no clip, and when nothing could be heard of it."""
        with _changing:
            if self.encoding is None or self.encoding.is_empty:
                raise UserError(NO_CLIP)
            turn = Turn(question, self.encoding)
            self.turns.append(turn)
            return turn

    def drop(self, turn: Turn) -> None:
        """Forget a round, if it is not forgotten yet."""
        with _changing:
            self.turns = [other for other in self.turns if other is not turn]

    def clear(self) -> None:
        """Stop and forget all turns; the clip stays."""
        with _changing:
            for turn in self.turns:
                turn.stop.set()
            self.turns = []

    def stop(self) -> None:
        """End the encoding, the answer under way and those that wait."""
        with _changing:
            if self.encoding:
                self.encoding.stop.set()
            for turn in self.turns:
                turn.stop.set()
