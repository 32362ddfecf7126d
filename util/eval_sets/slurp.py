"""SLURP: what the slots of a spoken request hold.

github.com/pswietojanski/slurp: dataset/slurp/test.jsonl (CC BY 4.0), a request a line with `sentence`,
`tokens` [{"surface"}], `entities` [{"span": [token, ...], "type"}] and `recordings` [{"file"}]. Audio:
slurp_real.tar.gz of zenodo.org/records/4274930 (CC BY-NC 4.0), unpacked to audio/slurp_real/*.flac.

Every recording is asked for each of its slots by itself, as the published prompt "According to the
speech, what is the {}?" does: with that prompt file give --question "{}". Several values of one slot
are joined by ", ". Requests without a slot are skipped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from salmonn.common.errors import UserError
from util.eval_sets.base import Item, Request
from util.eval_sets.tables import bad, json_lines, source

QUESTION = "What is the {}?"
_BEFORE_CLITIC = re.compile(r" (?='|n't\b)")  # tokens are those of spaCy: what 's, do n't


class _Token(msgspec.Struct):
    surface: str


class _Entity(msgspec.Struct):
    span: list[int]
    type: str


class _Recording(msgspec.Struct):
    file: str


class _Utterance(msgspec.Struct):
    sentence: str
    tokens: list[_Token]
    entities: list[_Entity]
    recordings: list[_Recording]


def read(request: Request) -> Iterator[Item]:
    """Slot filling; `spoken` is the request itself."""
    table = request.table or request.root / "dataset" / "slurp" / "test.jsonl"
    clips = request.audio or request.root / "audio" / "slurp_real"
    question = request.question or QUESTION
    if "{}" not in question:
        raise UserError(f"--question {question!r}: {{}} has to stand where the slot's name goes")
    for line, utterance in json_lines(table, _Utterance):
        slots = _slots(utterance, table, line)
        if not slots:
            request.notes["requests without a slot skipped"] += 1
        for file in dict.fromkeys(recording.file for recording in utterance.recordings):
            for slot, value in slots.items():
                yield Item(
                    id=f"{Path(file).stem}:{slot}",
                    path=clips / file,
                    references=(value,),
                    task="slot_filling",
                    source=source(table, line),
                    question=question.replace("{}", slot.replace("_", " ")),
                    spoken=utterance.sentence,
                )


def _slots(utterance: _Utterance, table: Path, line: int) -> dict[str, str]:
    """{slot: its values} of a request, in the words of the tokens."""
    slots: dict[str, list[str]] = {}
    for entity in utterance.entities:
        if not all(0 <= token < len(utterance.tokens) for token in entity.span):
            raise bad(table, line, f"the span of {entity.type} is outside the {len(utterance.tokens)} tokens")
        words = " ".join(utterance.tokens[token].surface for token in entity.span)
        slots.setdefault(entity.type, []).append(_BEFORE_CLITIC.sub("", words))
    return {slot: ", ".join(values) for slot, values in slots.items()}
