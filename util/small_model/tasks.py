"""Stage 2's tasks on clips that are there already: language, music or speech, voice, and questions about what is said.

Every question's right answer is known from how a clip came about. Of language, music and voice each answer has as many
clips as another, so that none can be guessed. Of the questions about what is said, only "yes" and "no" are the answers
about equally often: how far its keys and words can be guessed, the shuffled control tells.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from util.small_model.recordings import Recording
from util.small_model.voices import MEN, Spoken

SEED = 5
Entry = dict[str, str]
_KEY = re.compile(r"\bpress (one|two|three|four|five|six|seven|eight|nine|zero|star|pound)\b")
SHORTEST_WORD = 4  # letters, of a word that is asked about
# recognition has more entries than a task whose answer is a word, and half of them are long: it forgets them otherwise
RECOGNITION = 2.5
LONG = 6  # one in so many is a long one
# of a task's entries in training: the answer is one word among a batch's hundreds, and there are few clips of it
REPEATS = {"language": 3}


def language(recordings: Iterable[Recording]) -> Iterator[Entry]:
    """Which of five languages."""
    for one in recordings:
        if one.language and one.kind in ("prompt", "speech"):
            yield _entry(one.path, "language", one.language)


def music_or_speech(recordings: Iterable[Recording]) -> Iterator[Entry]:
    """Music, or any of the five languages."""
    for one in recordings:
        if one.kind in ("prompt", "speech", "music"):
            yield _entry(one.path, "music_speech", "music" if one.kind == "music" else "speech")


def voice(spoken: Iterable[Spoken], folder: str) -> Iterator[Entry]:
    """A woman or a man, of the synthetic voices: all speak English, so that the language is no clue."""
    for clip in spoken:
        if clip.voice in MEN or clip.voice == "slt":
            yield _entry(f"{folder}/{clip.path}", "voice", "man" if clip.voice in MEN else "woman")


def about_what_is_said(heard: Sequence[tuple[str, str]], rng: Random) -> Iterator[Entry]:
    """Questions about clips (path, text): is a word said, which key is to be pressed, how does it begin or end."""
    words = sorted({word for _, text in heard for word in text.split() if len(word) >= SHORTEST_WORD})
    if not words:
        return
    for path, text in heard:
        said = text.split()
        long = [word for word in said if len(word) >= SHORTEST_WORD]
        if long and rng.random() < 0.5:
            yield _entry(path, "QA", "yes", f"Is the word {rng.choice(long)} said?")
        elif (other := rng.choice(words)) not in said:
            yield _entry(path, "QA", "no", f"Is the word {other} said?")
        keys = _KEY.findall(text)
        if len(keys) == 1:
            yield _entry(path, "QA", keys[0], "Which key is to be pressed?")
        if len(said) > 3:
            place, word = rng.choice([("first", said[0]), ("last", said[-1])])
            yield _entry(path, "QA", word, f"What is the {place} word?")


def balanced(entries: Iterable[Entry], rng: Random, n: int) -> list[Entry]:
    """At most `n` entries, of each answer as many as of the rarest where that leaves enough."""
    by_answer: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_answer[entry["text"]].append(entry)
    for some in by_answer.values():
        rng.shuffle(some)
    each = min(map(len, by_answer.values()), default=0)
    chosen = [entry for some in by_answer.values() for entry in some[:each]]
    rng.shuffle(chosen)
    return chosen[:n]


def sample(entries: Iterable[Entry], rng: Random, n: int) -> list[Entry]:
    """At most `n` of them."""
    found = list(entries)
    return rng.sample(found, min(n, len(found)))


def recognition(asr: Sequence[Entry], rng: Random, n: int) -> list[Entry]:
    """At most `n` of them, half of the longest sixth and half of the others."""
    by_words = sorted(asr, key=lambda entry: len(entry["text"].split()), reverse=True)
    n_long = len(asr) // LONG
    long = sample(by_words[:n_long], rng, n // 2)
    return long + sample(by_words[n_long:], rng, n - len(long))


def _entry(path: str, task: str, text: str, question: str = "") -> Entry:
    return {"path": path, "task": task, "text": text, **({"Q": question} if question else {})}


def instruction_entries(
    asr: Sequence[Entry],
    recordings: Sequence[Recording],
    spoken: Sequence[Spoken],
    folder: str,
    n: int,
) -> dict[str, list[Entry]]:
    """{task: at most `n` entries} of one split: its transcribed clips, recordings and spoken clips.

    Of recognition `RECOGNITION` times as many.
    """
    rng = Random(SEED)
    heard = [(entry["path"], entry["text"]) for entry in asr]
    return {
        "asr": recognition(asr, rng, round(RECOGNITION * n)),
        "language": balanced(language(recordings), rng, n),
        "music_speech": balanced(music_or_speech(recordings), rng, n),
        "voice": balanced(voice(spoken, folder), rng, n),
        "QA": sample(about_what_is_said(heard, rng), rng, n),
    }
