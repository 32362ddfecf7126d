"""VoxCeleb1: pairs of clips, by the same speaker or not.

robots.ox.ac.uk/~vgg/data/voxceleb, CC BY 4.0 (metadata), 40 speakers in the test set. vox1_test_wav.zip unpacks to
wav/idNNNNN/VIDEO/NNNNN.wav; veri_test2.txt (cleaned, 37,611 pairs) and veri_test.txt (37,720) have lines
`1 idA/VIDEO/NNNNN.wav idB/VIDEO/NNNNN.wav`, 1 for the same speaker.
"""

from collections.abc import Iterator

from util.eval_sets.base import Item, Request
from util.eval_sets.tables import bad, lines, source

_ANSWERS = {"1": "Yes", "0": "No"}


def read(request: Request) -> Iterator[Item]:
    """Speaker verification; a pair's id is the line of the list, as a pair may stand there twice."""
    table = request.table or request.root / "veri_test2.txt"
    clips = request.audio or request.root / "wav"
    for line, text in lines(table):
        same, *pair = text.split()
        if same not in _ANSWERS or len(pair) != 2:
            raise bad(table, line, f"expected 1 or 0 and two clips, got {text[:80]!r}")
        first, second = (clips / name for name in pair)
        answer = (_ANSWERS[same],)
        yield Item(str(line), first, answer, "speaker_verification", source(table, line), expand=(second,))
