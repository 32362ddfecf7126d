"""Judge prompts, and the verdict in a reply. No torch and no network here."""

import re
from collections.abc import Sequence

from salmonn.common.errors import UserError

# Part of what a reply belongs to: whoever changes a text below, or how a reply is read, counts it up.
PROMPT_VERSION = "2026-11-1"

_INSTRUCTIONS = {
    "SQQA": (
        "A spoken question was played to a system. Is the system's answer right? It is right if it says what "
        "the reference says, in whatever words and at whatever length. It is wrong if it says something else, "
        "or only repeats the question."
    ),
    "slot_filling": (
        "A system heard a spoken request and was asked for one piece of information in it. Does the system's answer "
        "hold the value that the reference gives? Other words around it and another spelling do not matter. "
        "It is wrong if the value is absent or another one, or if the answer only repeats the request."
    ),
    "SAC": (
        "A system heard a recording in which somebody speaks while other sounds can be heard, and was asked about "
        "both. The reference says what is spoken and what sounds. Does the system's answer respond sensibly to "
        "the speech and also take the other sounds into account? One of them alone is not enough."
    ),
}

# "yes or no" and "yes/no" are echoes of what was asked, and no verdict.
_FIRST_WORD = re.compile(r"[\W_]*(yes|no)(?![^\W_])(?!\s*(?:/|or\b)\s*(?:yes|no)\b)", re.IGNORECASE)


def judge_prompt(task: str, question: str, references: Sequence[str], answer: str) -> str:
    """The complete text for one answer. Raises UserError for a task that has no judge prompt."""
    if task not in _INSTRUCTIONS:
        raise UserError(f"the task {task!r} has no judge prompt (there are some for {', '.join(_INSTRUCTIONS)})")
    listed = "\n".join(reference.strip() for reference in references if reference.strip())
    return (
        f"{_INSTRUCTIONS[task]} Of several references, one per line, one is enough.\n\n"
        f"<question>\n{question.strip()}\n</question>\n"
        f"<reference>\n{listed}\n</reference>\n"
        f"<answer>\n{answer.strip()}\n</answer>\n\n"
        "Judge only the text between <answer> and </answer>. Reply with exactly one word: yes or no."
    )


def read_reply(raw: str) -> bool | None:
    """True or False if the reply starts with yes or no, None otherwise; what a model thinks first is skipped."""
    match = _FIRST_WORD.match(raw.rpartition("</think>")[2])
    return match[1].lower() == "yes" if match else None
