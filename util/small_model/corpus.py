"""The sentences that are spoken, and annotation entries of them and of recorded prompts: speech recognition."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from util.small_model import texts
from util.small_model.recordings import Recording
from util.small_model.voices import Spoken

SEED = 11
# of all clips that are spoken for training
SHARES = {"examples": 0.40, "definitions": 0.22, "everyday": 0.20, "words": 0.11, "pairs": 0.07}
HELD_OUT = 120  # sentences each for validation and test, half of them WordNet's examples
REPEATS = 4  # of the real prompts in an epoch: there are few
COMMON_WORDS = 6000  # the most frequent ones are spoken alone, too


def choose(wordnet: Path, n: int, held_out: Sequence[str]) -> dict[str, list[str]]:
    """`n` texts for training, and those for validation and test; none for training contains one of those."""
    rng = Random(SEED)
    examples, definitions = (list(texts.without(found, held_out)) for found in texts.from_wordnet(wordnet))
    rng.shuffle(examples)
    rng.shuffle(definitions)
    said = texts.without(texts.everyday(rng), held_out)
    everyday = list(dict.fromkeys(islice(said, 3 * n)))
    half = HELD_OUT // 2
    chosen = {
        "valid": examples[:half] + everyday[:half],
        "test": examples[half : 2 * half] + everyday[half : 2 * half],
    }
    held_out = [*held_out, *chosen["valid"], *chosen["test"]]
    examples, definitions, everyday = (
        list(texts.without(some, held_out)) for some in (examples, definitions, everyday)
    )
    # numbers and short answers are what is said alone; a held out word may be heard inside sentences only
    words = list(texts.without(texts.words_of(examples + everyday), held_out))[:COMMON_WORDS]
    counts = {kind: round(share * n) for kind, share in SHARES.items()}
    both = zip(reversed(examples), reversed(everyday), strict=False)
    # a sentence may come about where two of them meet
    pairs = texts.without((f"{a} {b}" if rng.random() < 0.5 else f"{b} {a}" for a, b in both), held_out)
    train = (
        examples[: counts["examples"]]
        + definitions[: counts["definitions"]]
        + everyday[: counts["everyday"]]
        + [rng.choice(words) for _ in range(counts["words"])]
        + list(islice(pairs, counts["pairs"]))
    )
    rng.shuffle(train)
    return {"train": train, **chosen}


def asr_entries(spoken: Sequence[Spoken], folder: str, longest: float) -> list[dict[str, str]]:
    """Annotation entries of the spoken clips that last at most `longest` seconds."""
    return [
        {"path": f"{folder}/{clip.path}", "text": clip.text, "task": "asr"}
        for clip in spoken
        if clip.seconds <= longest
    ]


def prompt_entries(recordings: Sequence[Recording], split: str, longest: float) -> list[dict[str, str]]:
    """The same of recorded prompts and words that somebody has written down."""
    return [
        {"path": recording.path, "text": recording.text, "task": "asr"}
        for recording in recordings
        if recording.split == split and recording.text and recording.seconds <= longest
    ]


def unwritten_prompts(recordings: Sequence[Recording], longest: float) -> list[Recording]:
    """The English prompts of the test where nobody has written down any."""
    if any(recording.kind == "prompt" for recording in recordings):
        return []
    english = (one for one in recordings if one.kind == "speech" and one.language == "english")
    return [one for one in english if one.split == "test" and one.seconds <= longest]


def without(entries: Sequence[dict[str, str]], held_out: Iterable[str]) -> list[dict[str, str]]:
    """The entries whose text neither is nor contains a held out one (see `texts.without`), however it is written."""
    said = [texts.spoken(entry["text"]) for entry in entries]
    allowed = set(texts.without(said, map(texts.spoken, held_out)))
    return [entry for entry, text in zip(entries, said, strict=True) if text in allowed]
