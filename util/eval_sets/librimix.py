"""LibriMix, Libri2Mix at 16 kHz, mode max, mix_clean: two LibriSpeech test-clean utterances at once.

Made by github.com/JorisCos/LibriMix from LibriSpeech (CC BY 4.0; its scripts: MIT): 3,000 test mixtures.
Libri2Mix/wav16k/max/metadata/mixture_test_mix_clean.csv has mixture_ID = UTTERANCE_UTTERANCE and
absolute paths of the machine that mixed, which are not used; the clips are .../max/test/mix_clean/ID.wav.
"""

from collections.abc import Iterator

from util.eval_sets.base import Item, Request
from util.eval_sets.librispeech import transcripts
from util.eval_sets.tables import bad, csv_rows, source


def read(request: Request) -> Iterator[Item]:
    """Both sentences, a line each, in the order of the sources; the score is that of the better order."""
    mixed = request.root / "wav16k" / "max"
    table = request.table or mixed / "metadata" / "mixture_test_mix_clean.csv"
    clips = request.audio or mixed / "test" / "mix_clean"
    corpus = request.librispeech or request.root.parent / "LibriSpeech"
    said = transcripts(corpus / "test-clean")
    for line, row in csv_rows(table, ["mixture_ID"]):
        mixture = row["mixture_ID"]
        utterances = mixture.split("_")
        if len(utterances) != 2:
            raise bad(table, line, f"expected a mixture_ID of two utterances, got {mixture!r}")
        if unknown := [utterance for utterance in utterances if utterance not in said]:
            raise bad(table, line, f"{', '.join(unknown)} not in the transcripts of {corpus / 'test-clean'}")
        text = "\n".join(said[utterance] for utterance in utterances)
        yield Item(mixture, clips / f"{mixture}.wav", (text,), "speech_separation", source(table, line))
