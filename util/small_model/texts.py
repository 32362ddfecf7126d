"""Sentences for the voices: WordNet's examples and definitions, a grammar of everyday and telephone sentences, words.

No sentence of a test set is among them, nor one that contains such a sentence of three words or more: single words and
pairs of words stand in other sentences inevitably. No template and no slot of the grammar comes from a LibriVox
sentence; `inside` and `known_runs` measure how near a test set is to what was trained on.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

_OFFENSIVE = re.compile(r"\b(fuck|nigg|shit|cunt|whore|rape|bitch|piss|slut|faggot|dick|jew|nazi|sexual|penis|negro)")
_NOT_SAID_AS_WRITTEN = re.compile(r"[0-9/_()\[\]{}<>@#&%$*+=~^]")
MOST_WORDS = 22  # of a sentence: some 9 s
FEWEST_WORDS = 3  # of a held out sentence that may not stand inside another

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_SLOTS: dict[str, str | list[str]] = {
    "key": [*DIGITS, "star", "pound"],
    "entry": "your password|your account number|the extension|a new greeting|your zip code|the date|your first name|"
    "the channel|your order number|the message number|the first letters of the last name|a room number|"
    "the telephone number|the caller's name|your secret code|the conference number|the time",
    "act": "record|delete|save|repeat|change|hear|cancel|forward|erase|edit|review|mark|move|send|copy|skip|play|"
    "leave|join|lock|go back to|listen to|dial|reach|confirm|accept|reject",
    "item": "this message|the message|your greeting|your address|the recording|the last call|the other message|"
    "your options|the directory|your mailbox|the first menu|the introduction|the current folder|your settings|"
    "all old messages|the conference|the operator|another number|the call|your request|the list of callers",
    "state": "busy|unavailable|locked|full|muted|empty|not valid|out of service|now open|closed|being recorded|"
    "disabled|enabled|complete|active|ready|not available at this time|already in use|on hold|temporarily off",
    "party": "the line|this mailbox|the conference room|the number that you want|your account|that extension|"
    "the office|the system|the operator|this service|the group|the person you called|the telephone|the channel|"
    "the party you are calling|your call|that choice|the station|the user at extension",
    "desk": "sales|support|accounting|help|the front desk|opening hours|reservations|billing|customer service|"
    "the directory|technical questions|a new order|all other calls|emergencies",
    "person": "my brother|her mother|the teacher|a farmer|the old doctor|our neighbour|the little girl|his uncle|"
    "the driver|a tall man|the captain|the nurse|anna|peter|maria|paul|a young woman|the judge|the cook|"
    "the manager|an engineer|the singer|my friend|two soldiers|the children|the queen|a stranger|"
    "doctor brown|the students|the waiter|the boy next door|my grandmother|the police|our team|the new pilot",
    "did": "bought|found|painted|lost|carried|opened|closed|washed|sold|broke|fixed|watched|remembered|forgot|"
    "borrowed|moved|described|wanted|cleaned|dropped|hid|left|needed|liked|saw|ordered|delivered|chose|hired",
    "kind": "red|old|small|heavy|broken|yellow|beautiful|cheap|wooden|green|new|dirty|strange|large|blue|dark|"
    "empty|white|expensive|soft|silver|narrow|round|quiet|warm|plastic|electric|modern|noisy",
    "thing": "car|house|box|window|chair|book|letter|boat|garden|coat|bottle|camera|bicycle|basket|lamp|mirror|"
    "bag|bridge|piano|knife|map|shirt|table|watch|door|blanket|guitar|radio|ladder|painting|cup|tent|bell|clock|"
    "computer|ticket|suitcase|helmet|toaster|train",
    "place": "in the kitchen|at the station|near the river|behind the school|in the city|on the roof|by the sea|"
    "at the market|in the forest|under the bed|in front of the hotel|at the airport|in the garden|on the hill|"
    "beside the road|at home|in the library|across the street|at work|in the mountains|on the second floor",
    "when": "yesterday|this morning|last night|on monday|on friday|after lunch|before dinner|in the evening|"
    "two days ago|last summer|in january|every day|at noon|last week|on sunday afternoon|in october|at midnight|"
    "a year ago|this afternoon|on tuesday|before the concert|during the lesson",
    "do": "turn on|turn off|close|open|bring me|look for|clean|move|sell|show me|count|paint|wash|check|lock|"
    "pick up|hand me|throw away|repair|carry|measure|wrap up",
    "animal": "dog|cat|horse|bird|cow|sheep|fox|bear|mouse|fish|goat|duck|rabbit|wolf",
    "was": "ran away|slept|was barking|sang|waited|ate|jumped|drank water|disappeared|was hungry|came back|"
    "was afraid|fell asleep|got wet|climbed up",
    "food": "bread|soup|rice|cheese|an apple|fresh fish|chocolate|tea|coffee|potatoes|eggs|butter|salad|a sandwich",
    "weather": "raining|snowing|cold|sunny|windy|hot|cloudy|foggy|getting dark|freezing",
    "city": "london|paris|boston|berlin|chicago|madrid|rome|tokyo|dublin|vienna|moscow|toronto",
}
_SENTENCES = """
to {act} {item} press {key}
press {key} to {act} {item}
press {key} for {desk}
for {desk} press {key}
or press {key} to {act} {item}
please enter {entry} followed by the pound key
please enter {entry}
please say {entry} after the tone
please {act} {item} now or press {key}
{party} is {state}
{party} is now {state}
{party} is currently {state}
i'm sorry {party} is {state}
sorry {party} could not be found
we are connecting your call to {desk}
give me a moment to {act} {item}
please hang up and try your call again
you have {number} new messages
you have {number} old messages and {number} saved messages
you are caller number {number} in the queue
there are {number} other callers in the conference
{item} has been saved
{item} has been deleted
{item} is now {state}
if you want to {act} {item} press {key} now
if that is right press {key}
thank you for calling {desk} goodbye
you will be connected to {desk} in {number} minutes
your estimated hold time is {number} minutes
extension {digit} {digit} {digit}
{digit} {digit} {digit} {digit} {digit} {digit}
{digit} {digit} {digit}
{number} dollars and {number} cents
{number} thirty in the morning
{number} o'clock in the afternoon
{number}
{person} {did} a {kind} {thing}
{person} {did} the {thing} {place}
{when} {person} {did} {number} {kind} {thing}s
{do} the {kind} {thing}
{do} the {thing} {place}
can you {do} the {thing} please
the {animal} {was} {place}
{person} had {food} {when}
it was {weather} in {city} {when}
is it {weather} {place}
where is the {kind} {thing}
how much is the {thing} {place}
we will travel to {city} {when}
there are {number} {thing}s {place}
the {thing} {place} is very {kind}
{person} lives {place}
i will call {person} {when}
when {person} came home the {thing} was already {kind}
{person} said that the {thing} was too {kind}
because it was {weather} {person} stayed {place}
{person} {did} the {thing} and put it {place}
{person} does not know who {did} the {kind} {thing}
{person} and {person} {did} the {thing} together {when}
they talked about {person} until the {animal} {was}
every {thing} {place} is more {kind} than this one
"""


def spoken(text: str) -> str:
    """A text as it is transcribed: lower case, no marks but the apostrophe, single digits as words."""
    text = re.sub(r"\b\d\b", lambda digit: DIGITS[int(digit[0])], text.lower().replace("’", "'"))
    return " ".join(word.strip("'") for word in re.sub(r"[^a-z' ]", " ", text).split())


def in_words(number: int) -> str:
    """0 to 999."""
    if number < 20:
        return (DIGITS + TEENS)[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {DIGITS[number % 10]}" if number % 10 else "")
    return f"{DIGITS[number // 100]} hundred" + (f" {in_words(number % 100)}" if number % 100 else "")


def from_wordnet(folder: Path) -> tuple[list[str], list[str]]:
    """Examples, in quotation marks there, and definitions of WordNet's data files; each once, in their order."""
    examples, definitions = [], []
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text("utf-8").splitlines():
            gloss = line.partition(" | ")[2]
            examples += re.findall(r'"([^"]+)"', gloss)
            definitions += re.sub(r'"[^"]*"', "", gloss).split(";")
    return _usable(examples), _usable(definitions)


def _usable(texts: Iterable[str]) -> list[str]:
    plain = (spoken(text) for text in texts if not _NOT_SAID_AS_WRITTEN.search(text))
    return [t for t in dict.fromkeys(plain) if 2 <= len(t.split()) <= MOST_WORDS and not _OFFENSIVE.search(t)]


def everyday(rng: Random) -> Iterator[str]:
    """Sentences of the grammar, without end."""
    slots = {name: words if isinstance(words, list) else words.split("|") for name, words in _SLOTS.items()}
    slots["digit"] = DIGITS
    sentences = _SENTENCES.split("\n")[1:-1]

    def fill(slot: re.Match) -> str:
        if slot[1] == "number":
            return in_words(rng.choice([rng.randrange(13), rng.randrange(100), rng.randrange(1000)]))
        return rng.choice(slots[slot[1]])

    while True:
        yield re.sub(r"\{(\w+)\}", fill, rng.choice(sentences))


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words, most frequent first."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))


def without(texts: Iterable[str], held_out: Iterable[str]) -> Iterator[str]:
    """Those texts that neither are a held out one nor contain one of FEWEST_WORDS or more."""
    whole = set(held_out)
    by_beginning: dict[str, list[str]] = defaultdict(list)
    for text in whole:
        for beginning in _runs(text, FEWEST_WORDS)[:1]:
            by_beginning[beginning].append(f" {text} ")
    for text in texts:
        candidates = (part for run in _runs(text, FEWEST_WORDS) for part in by_beginning.get(run, ()))
        if text not in whole and not any(part in f" {text} " for part in candidates):
            yield text


def inside(texts: Iterable[str], trained: Iterable[str]) -> set[str]:
    """Those that stand in a trained text word for word."""
    everything = "\n".join(f" {text} " for text in trained)
    return {text for text in texts if f" {text} " in everything}


def known_runs(texts: Iterable[str], trained: Iterable[str], n: int) -> float | None:
    """Of the different runs of `n` words the share that occurs in a trained text; None where no text is so long."""
    wanted = {run for text in texts for run in _runs(text, n)}
    known = {run for text in trained for run in _runs(text, n) if run in wanted}
    return len(known) / len(wanted) if wanted else None


def _runs(text: str, n: int) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
