"""WikiQA: questions that were read aloud by a text-to-speech system, answered by Wikipedia sentences.

Microsoft's WikiQACorpus.zip, Microsoft Research Data License: WikiQA-test.tsv with the columns QuestionID, Question,
DocumentID, DocumentTitle, SentenceID, Sentence, Label; tab-separated without quoting, a row per candidate sentence,
Label 1 for a right answer. 633 test questions, 243 of them with a right sentence: the others have no
reference and are left out. Clips: QuestionID.wav in --audio, default wav/ in --root.
"""

from collections.abc import Iterator

from util.eval_sets.base import Item, Request
from util.eval_sets.tables import bad, source, tsv_rows

_COLUMNS = ["QuestionID", "Question", "Sentence", "Label"]


def read(request: Request) -> Iterator[Item]:
    """Spoken-query question answering: the right sentences are the references."""
    table = request.table or request.root / "WikiQA-test.tsv"
    clips = request.audio or request.root / "wav"
    questions: dict[str, tuple[int, str]] = {}
    answers: dict[str, list[str]] = {}
    for line, row in tsv_rows(table, _COLUMNS):
        name, question, label = row["QuestionID"], row["Question"], row["Label"]
        if label not in ("0", "1"):
            raise bad(table, line, f"Label must be 0 or 1, got {label!r}")
        before, known = questions.setdefault(name, (line, question))
        if known != question:
            raise bad(table, line, f"QuestionID {name} is another question in line {before}")
        if label == "1":
            answers.setdefault(name, []).append(row["Sentence"])
    for name, (line, question) in questions.items():
        if name not in answers:
            request.notes["questions without a right sentence left out"] += 1
            continue
        clip, right = clips / f"{name}.wav", tuple(answers[name])
        yield Item(name, clip, right, "speech_query", source(table, line), spoken=question)
