"""A folder of recordings, each with its text in a file beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

from salmonn.common.errors import UserError
from salmonn.common.files import visible
from salmonn.data.clip_paths import OTHER_EXTENSIONS
from util.eval_sets.tables import read_text
from util.own_data.base import Reading, Row

_RARER = ".aac .webm .mp4 .mka .amr .wma .aiff .aif .au .sph .mkv .ts .flv .avi .mpg .tta".split()
EXTENSIONS = (".wav", *OTHER_EXTENSIONS, *_RARER)
_TEXTS = (".txt", ".lab")


def read_folder(reading: Reading) -> Iterator[Row]:
    """Every clip in it and in the folders below, with the text in NAME.txt (or .lab) beside NAME.wav."""
    clips = [path for path in visible(reading.source, "**/*") if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if not clips:
        raise UserError(f"{reading.source}: no recording in this folder, such as *.wav, *.flac or *.mp3")
    for clip in clips:
        yield Row(str(clip), str(clip.absolute()), text_beside(clip))


def text_beside(clip: Path) -> str | None:
    """What the text file of the clip's name holds, in one line; None where there is none."""
    stem, _ = os.path.splitext(clip)
    found = next((path for path in (f"{stem}{ending}" for ending in _TEXTS) if os.path.isfile(path)), None)
    return " ".join(read_text(Path(found)).split()) if found else None
