"""Sentences for the voices: WordNet's examples and definitions, a grammar of everyday and telephone sentences, words.

No sentence of a test set is among them, nor one that contains such a sentence.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

_OFFENSIVE = re.compile(r"\b(fuck|nigg|shit|cunt|whore|rape|bitch|piss|slut|faggot|dick|jew|nazi|sexual|penis|negro)")
_NOT_SAID_AS_WRITTEN = re.compile(r"[0-9/_()\[\]{}<>@#&%$*+=~^]")
MOST_WORDS = 22  # of a sentence: some 9 s

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_SLOTS = {
    "key": [*DIGITS, "star", "pound"],
    "entry": "your password|your account number|the extension|a new greeting|your zip code|the date|your name|"
    "the channel|your order number|the message number|the first letters of the last name|a room number|"
    "the telephone number|the caller's name|your personal code|the conference number|the time",
    "act": "record|delete|save|repeat|change|hear|cancel|forward|erase|edit|review|mark|move|send|copy|skip|play|"
    "leave|join|lock|return to|go back to|listen to|dial|reach|confirm|accept|reject",
    "item": "this message|the message|your greeting|your name|the recording|the last call|the next message|"
    "your options|the directory|your mailbox|the main menu|the introduction|the current folder|your settings|"
    "all old messages|the conference|the operator|another number|the call|your request|the list of callers",
    "state": "busy|unavailable|locked|full|muted|empty|not valid|not in service|now open|closed|being recorded|"
    "disabled|enabled|complete|active|ready|not available at this time|already in use|on hold|temporarily off",
    "party": "the line|this mailbox|the conference room|the number you have dialed|your account|that extension|"
    "the office|the system|the operator|this service|the group|the person you called|the telephone|the channel|"
    "the party you are calling|your call|that option|the station|the user at extension",
    "desk": "sales|support|accounting|help|the front desk|opening hours|reservations|billing|customer service|"
    "the directory|technical questions|a new order|all other calls|emergencies",
    "person": "my brother|her mother|the teacher|a farmer|the old doctor|our neighbour|the little girl|his uncle|"
    "the driver|a tall man|the captain|the nurse|anna|peter|maria|john|a young woman|the judge|the cook|"
    "the manager|an engineer|the singer|my friend|two soldiers|the children|the queen|a stranger|mister brown|"
    "missus dashwood|sir john|the young lady|her sister|his wife|the gentleman|everybody|nobody in the family",
    "did": "bought|found|painted|lost|carried|opened|closed|washed|sold|broke|fixed|watched|remembered|forgot|"
    "borrowed|moved|described|wanted|cleaned|dropped|hid|left|needed|liked|saw|admired|received|refused|promised",
    "kind": "red|old|small|heavy|broken|yellow|beautiful|cheap|wooden|green|new|dirty|strange|large|blue|dark|"
    "empty|white|expensive|soft|silver|narrow|round|quiet|warm|amiable|respectable|handsome|selfish|prudent",
    "thing": "car|house|box|window|chair|book|letter|boat|garden|coat|bottle|camera|bicycle|basket|lamp|mirror|"
    "bag|bridge|piano|knife|map|shirt|table|watch|door|blanket|guitar|radio|ladder|painting|cup|tent|bell|clock|"
    "fortune|estate|cottage|carriage|income|inheritance",
    "place": "in the kitchen|at the station|near the river|behind the school|in the city|on the roof|by the sea|"
    "at the market|in the forest|under the bed|in front of the hotel|at the airport|in the garden|on the hill|"
    "beside the road|at home|in the library|across the street|at work|in the mountains|in the country|in town",
    "when": "yesterday|this morning|last night|on monday|on friday|after lunch|before dinner|in the evening|"
    "two days ago|last summer|in january|every day|at noon|last week|on sunday afternoon|in october|at midnight|"
    "a year ago|this afternoon|on tuesday|for some time|since the spring|at leisure|with great pleasure",
    "do": "turn on|turn off|close|open|bring me|look for|clean|move|sell|show me|count|paint|wash|check|lock|"
    "pick up|hand me|throw away|think about|do without|consider|give up|ask for",
    "animal": "dog|cat|horse|bird|cow|sheep|fox|bear|mouse|fish|goat|duck|rabbit|wolf",
    "was": "ran away|slept|was barking|sang|waited|ate|jumped|drank water|disappeared|was hungry|came back|"
    "was afraid|might have been lost|had been found|would not move",
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
{party} is currently {state} please try again later
i'm sorry {party} is {state}
sorry {party} could not be found
that is not a valid {thing}
please hold while we connect your call to {desk}
please wait while i {act} {item}
please hang up and try your call again
you have {number} new messages
you have {number} old messages and {number} saved messages
you are caller number {number} in the queue
there are {number} other callers in the conference
{item} has been saved
{item} has been deleted
{item} is now {state}
if you want to {act} {item} press {key} now
if this is correct press {key}
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
he was not a {kind} man
she might have been made {kind} by {person}
{person} {did} the {thing} and {person} {did} the {thing} {place}
had {person} been more {kind} the {thing} might have been {person}'s own
{person} had then time to think of the {kind} {thing} {place}
unless the {thing} is {kind} {person} will not {do} the {thing}
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


def without(texts: Iterable[str], held_out: Sequence[str]) -> Iterator[str]:
    """Those texts that neither are nor contain a held out one."""
    whole, long = set(held_out), [f" {text} " for text in held_out if len(text.split()) > 2]
    for text in texts:
        if text not in whole and not any(part in f" {text} " for part in long):
            yield text
