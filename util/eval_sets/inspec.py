"""Inspec (Hulth 2003): keywords of abstracts that were read aloud by a text-to-speech system.

500 test abstracts of the Inspec database, no audio of its own. Either the original folder Hulth2003/Test
with ID.abstr (a title, then the abstract) and ID.uncontr (phrases between semicolons; ID.key has one a line),
or test.jsonl of Hugging Face: taln-ls2n/inspec (id, title, abstract, keyphrases) or midas/inspec (id or paper_id,
document in words, extractive_keyphrases, abstractive_keyphrases). The uncontrolled keywords are the references.
Licence not stated by its author. Clips: ID.wav in --audio, default wav/ in --root.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from salmonn.common.files import visible
from util.eval_sets.base import Item, MissingError, Request
from util.eval_sets.tables import bad, json_lines, read_text, source


class _Document(msgspec.Struct):
    """The fields of both of Hugging Face's files; each has some of them."""

    id: int | str | None = None
    paper_id: int | str | None = None
    title: str = ""
    abstract: str = ""
    keyphrases: list[str] = []
    document: list[str] = []  # words
    extractive_keyphrases: list[str] = []
    abstractive_keyphrases: list[str] = []


def read(request: Request) -> Iterator[Item]:
    """Keyword extraction; all keywords of a document are one reference, separated by commas."""
    clips = request.audio or request.root / "wav"
    table = request.table or request.root / "test.jsonl"
    use_folder = not request.table and (request.root / "Test").is_dir()
    documents = _from_folder(request.root / "Test") if use_folder else _from_json(table)
    for where, name, spoken, phrases in documents:
        text = ", ".join(" ".join(phrase.split()) for phrase in phrases if phrase.strip())
        yield Item(name, clips / f"{name}.wav", (text,), "keywords", where, spoken=" ".join(spoken.split()))


def _from_folder(folder: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(where, id, text, keywords) of the original files."""
    abstracts = sorted(visible(folder, "*.abstr"), key=lambda path: (len(path.stem), path.stem))
    if not abstracts:
        raise MissingError(f"{folder}: no *.abstr")
    for abstract in abstracts:
        keywords = next((p for p in map(abstract.with_suffix, (".uncontr", ".key")) if p.is_file()), None)
        if not keywords:
            raise MissingError(f"{abstract}: neither {abstract.stem}.uncontr nor {abstract.stem}.key beside it")
        separator = ";" if keywords.suffix == ".uncontr" else r"[\r\n]+"  # .uncontr wraps its lines
        yield str(keywords), abstract.stem, read_text(abstract), re.split(separator, read_text(keywords))


def _from_json(table: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(where, id, text, keywords) of Hugging Face's files."""
    for line, row in json_lines(table, _Document):
        name = row.paper_id if row.id is None else row.id
        text = " ".join(row.document) or ". ".join(filter(None, (row.title, row.abstract)))
        keywords = row.keyphrases or row.extractive_keyphrases + row.abstractive_keyphrases
        if name is None or not text or not keywords:
            raise bad(table, line, "expected id, title, abstract and keyphrases, or id, document and *_keyphrases")
        yield source(table, line), str(name), text, keywords
