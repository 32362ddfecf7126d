"""What the clips of each corpus are like: rates, channels, formats, lengths."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from salmonn.data.integrity import Verdict, VerdictList, check_files, version_of


@dataclass
class Corpus:
    """The readable clips of one corpus."""

    sample: Verdict | None = None  # the first one
    seconds: dict[str, float] = field(default_factory=dict)  # by file
    rates: Counter[int] = field(default_factory=Counter)  # Hz
    channels: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    odd: Counter[str] = field(default_factory=Counter)  # silent ones, as far as verdicts tell, and very short ones

    def add(self, verdict: Verdict) -> None:
        """Count one file."""
        if not verdict.ok:
            self.unreadable += 1
            return
        self.sample = self.sample or verdict
        self.seconds[verdict.path] = verdict.seconds
        if verdict.remark:
            self.odd[verdict.remark] += 1
        self.rates[verdict.rate] += 1
        self.channels[verdict.channels] += 1
        self.formats[verdict.format] += 1


def describe_corpora(files: Mapping[str, str], verdicts: Path, jobs: int = 0) -> dict[str, Corpus]:
    """{corpus: description} of {file: corpus}; headers are read where no verdict tells what is in them."""
    known = _known(files, verdicts)
    todo = [file for file in files if file not in known]
    corpora = {corpus: Corpus() for corpus in sorted(set(files.values()))}
    for verdict in known.values():
        corpora[files[verdict.path]].add(verdict)
    headers = check_files(todo, "header", jobs)
    for verdict in tqdm(headers, desc="reading headers", total=len(todo), unit="file", mininterval=0.5):
        corpora[files[verdict.path]].add(verdict)
    return corpora


def _known(files: Iterable[str], verdicts: Path) -> dict[str, Verdict]:
    if not verdicts.exists():
        return {}
    versions = {file: version_of(file) for file in files}
    listed = (verdict for verdict in VerdictList(verdicts).read() if not verdict.is_passing)
    return {verdict.path: verdict for verdict in listed if versions.get(verdict.path) == verdict.version}


def corpus_rows(corpora: Mapping[str, Corpus]) -> list[dict[str, Any]]:
    """A row per corpus, as for a table or JSON."""
    return [
        {
            "corpus": name,
            "clips": len(corpus.seconds),
            "unreadable": corpus.unreadable,
            "odd": _shares(corpus.odd),
            "hours": round(sum(corpus.seconds.values()) / 3600, 3),
            "rates": _shares(corpus.rates),
            "channels": _shares(corpus.channels),
            "formats": _shares(corpus.formats),
            "sample": _sample(corpus.sample),
        }
        for name, corpus in corpora.items()
    ]


def _shares(counts: Counter) -> dict[str, int]:
    return {str(value): n for value, n in counts.most_common()}


def _sample(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    keys: Sequence[str] = ("path", "rate", "channels", "format", "seconds")
    return {key: getattr(verdict, key) for key in keys}


def describe_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The lines that a person reads."""
    lines = []
    for row in rows:
        if not row["clips"]:
            lines.append(f"[{row['corpus']}] no readable clip")
            continue
        sample = row["sample"]
        odd = "".join(f", {n} {remark}" for remark, n in row["odd"].items())
        lines += [
            f"[{row['corpus']}] {row['clips']} clips, {row['hours']:.2f} h, {row['unreadable']} unreadable{odd}",
            f"   Hz: {_listed(row['rates'])}   channels: {_listed(row['channels'])}   {_listed(row['formats'])}",
            f"   e.g. {sample['path']}: {sample['rate']} Hz, {sample['channels']} channel(s), "
            f"{sample['format']}, {sample['seconds']:.2f} s",
        ]
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} x {n}" for value, n in counts.items())
