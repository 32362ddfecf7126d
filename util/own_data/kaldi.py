"""Kaldi's data folders: wav.scp, text, and segments where recordings are cut."""

import math
from collections.abc import Iterator
from pathlib import Path

from util.eval_sets.tables import bad, lines, source
from util.own_data.base import Reading, Row


def read_kaldi(reading: Reading) -> Iterator[Row]:
    """An utterance a line of `text`; without it the recordings."""
    folder = reading.source
    recordings = dict(_recordings(folder / "wav.scp"))
    texts = {name: text for _, name, text in _fields(folder / "text")} if (folder / "text").is_file() else {}
    named = set()
    if (segments := folder / "segments").is_file():
        for line, name, rest in _fields(segments):
            recording, start, end = _segment(segments, line, rest)
            if recording not in recordings:
                raise bad(segments, line, f"the recording {recording} is not in {folder / 'wav.scp'}")
            where = source(segments, line)
            named.add(name)
            yield Row(where, recordings[recording], texts.get(name), start=start, seconds=end - start, name=name)
    else:
        for name, path in recordings.items():
            named.add(name)
            yield Row(f"{folder / 'wav.scp'}, {name}", path, texts.get(name))
    for name in sorted(texts.keys() - named):
        yield Row(str(folder / "text"), f"{name}, which neither wav.scp nor segments has", texts[name])


def _fields(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, first word, the rest). Raises UserError for a first word that stands twice: it is a name."""
    seen: dict[str, int] = {}
    for number, line in lines(path):
        name, *rest = line.split(None, 1)
        if (before := seen.setdefault(name, number)) != number:
            raise bad(path, number, f"{name} stands already in line {before}")
        yield number, name, "".join(rest)


def _recordings(path: Path) -> Iterator[tuple[str, str]]:
    for number, name, recording in _fields(path):
        if recording.endswith("|"):
            what = "is a command, and none is run from a list: write its output into a file"
            raise bad(path, number, f"{recording[:80]!r} {what}")
        if not recording:
            raise bad(path, number, f"{name} has no file")
        yield name, recording


def _segment(path: Path, line: int, rest: str) -> tuple[str, float, float]:
    """The recording, begin and end in s."""
    try:
        recording, begin, end = rest.split()
        start, stop = float(begin), float(end)
    except ValueError as error:
        raise bad(path, line, "expected UTTERANCE RECORDING BEGIN END, times in seconds") from error
    if not 0 <= start < stop < math.inf:
        raise bad(path, line, f"a segment from {begin} to {end} s cannot be")
    return recording, start, stop
