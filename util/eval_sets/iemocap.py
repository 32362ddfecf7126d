"""IEMOCAP: emotions of acted dialogues, Session5 as the test set.

sail.usc.edu/iemocap, on request, USC's research licence; 12 h in five sessions. IEMOCAP_full_release/
SessionN/dialog/EmoEvaluation/DIALOG.txt has a line `[START - END]<tab>UTTERANCE<tab>EMOTION<tab>[V, A, D]` an
utterance, between the verdicts of single raters; SessionN/sentences/wav/DIALOG/UTTERANCE.wav are the clips.
Four classes, excited counts as happy, others (frustrated, no agreement, ...) are skipped: 1,241 of Session5.
"""

import re
from collections.abc import Iterator

from salmonn.common.files import visible
from util.eval_sets.base import Item, MissingError, Request
from util.eval_sets.tables import bad, lines, source

_CLASSES = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}
_UTTERANCE = re.compile(r"\[[\d. -]+\]\t(Ses\w+)\t([a-z]{3})\t\[.*\]")


def read(request: Request) -> Iterator[Item]:
    """Emotion recognition."""
    session = request.root / request.split
    files = visible(session, "dialog/EmoEvaluation/*.txt")  # archives packed on a Mac hold a shadow `._FILE` of each
    if not files:
        raise MissingError(f"{session / 'dialog' / 'EmoEvaluation'}: no *.txt")
    for path in files:
        for line, text in lines(path, errors="replace"):  # raters' remarks hold stray bytes
            if not text.startswith("["):
                continue
            if not (match := _UTTERANCE.fullmatch(text)):
                raise bad(path, line, f"expected [START - END], UTTERANCE, EMOTION, [V, A, D], got {text[:80]!r}")
            utterance, emotion = match.groups()
            if emotion not in _CLASSES:
                request.notes["utterances of other emotions, or without agreement, skipped"] += 1
                continue
            clip = session / "sentences" / "wav" / utterance.rpartition("_")[0] / f"{utterance}.wav"
            yield Item(utterance, clip, (_CLASSES[emotion],), "emotion_recognition", source(path, line))
