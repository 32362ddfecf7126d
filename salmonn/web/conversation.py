"""What one visitor of the web page hears and has asked about it; kept by the server, and changed in place."""

import threading
from dataclasses import dataclass, field

from salmonn.common.errors import UserError
from salmonn.inference.engine import Heard

NO_CLIP = "No clip yet: upload or record one first."
UNWRITTEN = "…"  # in the place of an answer of which nothing is written yet

# Held for microseconds, so one serves all visitors; gradio copies a talk for each of them, which no lock allows.
_changing = threading.RLock()


@dataclass(eq=False)
class Hearing:
    """A clip that is being heard, or was."""

    heard: Heard | None = None
    stop: threading.Event = field(default_factory=threading.Event)  # ends it early
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_empty(self) -> bool:
        """It is over, and nothing was heard."""
        return self.over.is_set() and self.heard is None


@dataclass(eq=False)
class Round:
    """A question and its answer as the chat shows it."""

    question: str
    hearing: Hearing  # of the clip that it is about
    answer: str = UNWRITTEN
    stop: threading.Event = field(default_factory=threading.Event)  # ends the answer, or keeps it from beginning


@dataclass
class Talk:
    """A clip and the rounds of questions about it. All requests of a visitor that are being served share it."""

    hearing: Hearing | None = None
    rounds: list[Round] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the chat shows it."""
        return [
            {"role": role, "content": text}
            for round_ in self.rounds
            for role, text in (("user", round_.question), ("assistant", round_.answer))
        ]

    def begin(self) -> Hearing:
        """Another clip is heard from now on; all else is stopped and forgotten."""
        with _changing:
            self.stop()
            self.hearing, self.rounds = Hearing(), []
            return self.hearing

    def ask(self, question: str) -> Round:
        """One more round. Raises UserError while there is no clip, and when nothing could be heard of it."""
        with _changing:
            if self.hearing is None or self.hearing.is_empty:
                raise UserError(NO_CLIP)
            round_ = Round(question, self.hearing)
            self.rounds.append(round_)
            return round_

    def drop(self, round_: Round) -> None:
        """Forget a round, if it is not forgotten yet."""
        with _changing:
            self.rounds = [other for other in self.rounds if other is not round_]

    def clear(self) -> None:
        """Stop and forget all rounds; the clip stays."""
        with _changing:
            for round_ in self.rounds:
                round_.stop.set()
            self.rounds = []

    def stop(self) -> None:
        """End the hearing, the answer under way and those that wait."""
        with _changing:
            if self.hearing:
                self.hearing.stop.set()
            for round_ in self.rounds:
                round_.stop.set()
