"""Word errors of long clips against those of their sentences alone, on the trained miniature world.

  python experiments/long_audio_wer.py        after make quickstart; two minutes on two cores

The clips of the test set, in its order, make files of 95 s or a little less. Each is transcribed through
windows as `python -m salmonn.chat --long --task asr` does, and its clips one by one. Fails if
windows cost more than 5 points of WER over all files.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.audio.decode import SAMPLE_RATE, load_clip
from salmonn.common.cli import command_parser, run_cli
from salmonn.config.loading import load_config
from salmonn.evaluation.metrics.base import Texts
from salmonn.evaluation.metrics.word_errors import word_errors
from salmonn.evaluation.normalisers import words
from salmonn.inference.engine import InferenceEngine
from util.jobs import ROOT

SECONDS = 95.0
MOST_POINTS = 5.0  # of WER

Clip = tuple[np.ndarray, str]  # samples, what is said


def main() -> None:
    command_parser(__doc__).parse_args()
    world = ROOT / "output/mini/world"
    engine = InferenceEngine.load(load_config(ROOT / "configs/mini/decode.yaml"))
    entries = json.loads((world / "ann/test_asr.json").read_text())["annotation"]
    seconds = engine.model.max_seconds
    clips = [(load_clip(f"{world}/audio{entry['path']}", seconds), entry["text"]) for entry in entries]
    totals = []
    for group in groups(clips):
        truth = [text for _, text in group]
        alone = errors(transcribe_alone(engine, group), truth)
        stitched = errors([transcribe_long(engine, group)], [" ".join(truth)])
        totals.append((*alone, stitched[0]))
        what = f"{sum(len(wav) for wav, _ in group) / SAMPLE_RATE:.1f} s, {len(group)} sentences"
        print(f"{what}: {shown(*alone)} alone, {shown(*stitched)} in windows", flush=True)
    alone_edits, n_words, long_edits = map(sum, zip(*totals, strict=True))
    print(f"all: {shown(alone_edits, n_words)} alone, {shown(long_edits, n_words)} in windows")
    if 100 * (long_edits - alone_edits) / n_words > MOST_POINTS:
        sys.exit(f"windows cost more than {MOST_POINTS:g} points")


def groups(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    """The clips in their order, as many as SECONDS hold together; what is left at the end is not used."""
    group: list[Clip] = []
    for clip in clips:
        if sum(len(wav) for wav, _ in [*group, clip]) > SECONDS * SAMPLE_RATE:
            yield group
            group = []
        group.append(clip)


def transcribe_alone(engine: InferenceEngine, group: Sequence[Clip]) -> list[str]:
    heard = engine.hear([wav for wav, _ in group])
    return [answer.text for answer in engine.ask(heard, engine.task_question("asr"))]


def transcribe_long(engine: InferenceEngine, group: Sequence[Clip]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        soundfile.write(path, np.concatenate([wav for wav, _ in group]), SAMPLE_RATE)
        [answer] = engine.ask(engine.hear_long(path), engine.task_question("asr"))
    return answer.text


def errors(outputs: Sequence[str], truth: Sequence[str]) -> tuple[float, float]:
    """(word edits, words of the truth). Not Whisper's normaliser: it makes one number of digits in a row."""
    texts = Texts([words(output) for output in outputs], [[words(text)] for text in truth])
    edits, n_words = np.sum(word_errors(texts), axis=0)
    return float(edits), float(n_words)


def shown(edits: float, n_words: float) -> str:
    return f"WER {100 * edits / n_words:.1f} %"


if __name__ == "__main__":
    run_cli(main)
