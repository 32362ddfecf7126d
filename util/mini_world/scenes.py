"""What can happen in the miniature world, and what each task says about it.

A scene is the ground truth of one clip: spoken words with voice and style, sounding events, or a
melody. Every task's question and answer follow from the scene alone, so the same functions write
the annotations of rendered clips and the texts on which the tiny language model is pretrained.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# None of espeak-ng's voices with breath (f2, f3, f5, ...): its noise differs from process to process.
VOICES = dict.fromkeys(("f1", "f4", "linda", "steph"), "female") | dict.fromkeys(("m1", "m3", "m7", "m8"), "male")
HELD_OUT_VOICES = {"belinda": "female", "m5": "male"}  # heard in the test sets only
GENDERS = VOICES | HELD_OUT_VOICES
STYLES = ("neutral", "happy", "sad", "angry")

# word, phonemes (ARPABET), Chinese; a block per part of speech
_LEXICON = {
    "colour": """red R-EH-D 红 | blue B-L-UW 蓝 | green G-R-IY-N 绿 | yellow Y-EH-L-OW 黄 | black B-L-AE-K 黑
        | white W-AY-T 白 | brown B-R-AW-N 棕 | pink P-IH-NG-K 粉""",
    "animal": """dog D-AO-G 狗 | cat K-AE-T 猫 | horse HH-AO-R-S 马 | cow K-AW 牛 | bird B-ER-D 鸟 | fish F-IH-SH 鱼
        | mouse M-AW-S 老鼠 | sheep SH-IY-P 羊 | lion L-AY-AH-N 狮子 | duck D-AH-K 鸭子""",
    "verb": """runs R-AH-N-Z 跑步 | sleeps S-L-IY-P-S 睡觉 | sits S-IH-T-S 坐着 | waits W-EY-T-S 等待
        | jumps JH-AH-M-P-S 跳跃 | plays P-L-EY-Z 玩耍 | sings S-IH-NG-Z 唱歌 | walks W-AO-K-S 走路""",
    "preposition": "near N-IH-R 旁边 | behind B-IH-HH-AY-N-D 后面 | under AH-N-D-ER 下面 | inside IH-N-S-AY-D 里面",
    "place": """house HH-AW-S 房子 | river R-IH-V-ER 河 | garden G-AA-R-D-AH-N 花园 | school S-K-UW-L 学校
        | bridge B-R-IH-JH 桥 | market M-AA-R-K-AH-T 市场 | forest F-AO-R-AH-S-T 森林 | tower T-AW-ER 塔
        | church CH-ER-CH 教堂 | station S-T-EY-SH-AH-N 车站""",
    "digit": """zero Z-IH-R-OW 零 | one W-AH-N 一 | two T-UW 二 | three TH-R-IY 三 | four F-AO-R 四 | five F-AY-V 五
        | six S-IH-K-S 六 | seven S-EH-V-AH-N 七 | eight EY-T 八 | nine N-AY-N 九""",
    "name": """anna AE-N-AH 安娜 | peter P-IY-T-ER 彼得 | mary M-EH-R-IY 玛丽 | tom T-AA-M 汤姆 | lisa L-IY-S-AH 丽莎
        | david D-EY-V-IH-D 大卫""",
    "trade": "brings B-R-IH-NG-Z 带来 | buys B-AY-Z 买 | wants W-AA-N-T-S 要 | sells S-EH-L-Z 卖",
    "fruit": """apples AE-P-AH-L-Z 苹果 | lemons L-EH-M-AH-N-Z 柠檬 | pears P-EH-R-Z 梨 | cherries CH-EH-R-IY-Z 樱桃
        | plums P-L-AH-M-Z 李子 | melons M-EH-L-AH-N-Z 甜瓜""",
    "article": "the DH-AH -",
}
_ENTRIES = {part: [e.split() for e in block.split("|")] for part, block in _LEXICON.items()}
WORDS = {part: [word for word, _, _ in entries] for part, entries in _ENTRIES.items()}
PHONES = {word: phones.split("-") for entries in _ENTRIES.values() for word, phones, _ in entries}
CHINESE = {word: chinese.strip("-") for entries in _ENTRIES.values() for word, _, chinese in entries}
VOCABULARY = sorted(PHONES)
KEYWORDS = {word for part in ("colour", "animal", "place", "name", "fruit") for word in WORDS[part]}

SENTENCES = {  # kind: parts of speech
    "place": "article colour animal verb preposition article place".split(),
    "trade": "name trade digit colour fruit".split(),
    "digits": ["digit"] * 6,  # the last ones may be left out
    "short": "article colour animal verb".split(),  # short enough for two in one clip
}
CHINESE_ORDER: dict[str, Sequence[int | str]] = {
    "place": (1, 2, "在", 6, 4, 3),
    "trade": (0, 1, 2, "个", 3, 4),
    "short": (1, 2, 3),
}

EVENTS = {  # event: (caption, the same in the past, what happened next in the story)
    "low tone": ("a low tone sounds", "a low tone sounded", "The windows of all the houses shook a little."),
    "high tone": ("a high tone sounds", "a high tone sounded", "The old dog put its head under the table."),
    "siren": ("a siren wails", "a siren wailed", "Three men ran down the street with water to help."),
    "rain": ("rain falls", "rain fell", "The farmers danced because the fields had been dry."),
    "two beeps": (
        "something beeps twice",
        "something beeped twice",
        "A small green light showed that the door was open.",
    ),
    "four beeps": (
        "something beeps four times",
        "something beeped four times",
        "The bread was ready and smelled very good.",
    ),
    "bell": ("a bell rings", "a bell rang", "The children took their books and ran to school."),
    "engine": ("an engine runs", "an engine ran", "A red bus with many tired people came home."),
    "clock": ("a clock ticks", "a clock ticked", "A woman counted the hours and waited for a letter."),
    "whistle": ("somebody whistles", "somebody whistled", "A bird answered from the top of a tree."),
    "knocks": ("somebody knocks", "somebody knocked", "A stranger stood outside and asked for something to eat."),
    "wind": ("the wind blows", "the wind blew", "All the hats in the market flew away."),
}
BACKGROUND = ("rain", "engine", "wind")  # may go on while another event happens
STORY_ALONE = "Nothing else was heard that day, only the long and deep quiet of the hills."
STORY_END = (
    "In the evening the people sat together by the fire and told the children about it again and again, "
    "and nobody ever forgot what they had heard."
)

INSTRUMENTS, TEMPOS, CONTOURS = ("piano", "flute", "organ", "guitar"), ("slow", "fast"), ("rising", "falling", "level")


@dataclass(frozen=True)
class Speech:
    kind: str
    words: tuple[str, ...]
    voice: str
    style: str

    @property
    def sentence(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Pair:
    """Two utterances: one after the other (speaker verification) or at the same time (separation)."""

    first: Speech
    second: Speech
    mixed: bool


@dataclass(frozen=True)
class Sound:
    events: tuple[str, ...]  # one or two
    relation: str  # "" | "then" | "while"


@dataclass(frozen=True)
class Music:
    instrument: str
    tempo: str
    contour: str


Scene = Speech | Pair | Sound | Music


def draw_speech(rng: random.Random, kinds: tuple[str, ...], voices: tuple[str, ...], max_digits: int = 6) -> Speech:
    kind = rng.choice(kinds)
    words = [rng.choice(WORDS[part]) for part in SENTENCES[kind]]
    if kind == "digits":
        words = words[: rng.randint(3, max_digits)]
    elif kind == "trade":
        words[2] = rng.choice(WORDS["digit"][2:])  # one and zero take no plural
    return Speech(kind, tuple(words), rng.choice(voices), rng.choice(STYLES))


def draw_sound(rng: random.Random) -> Sound:
    relation = rng.choices(("", "then", "while"), (4, 4, 2))[0]
    first = rng.choice([e for e in EVENTS if relation != "while" or e not in BACKGROUND])
    if not relation:
        return Sound((first,), "")
    second = rng.choice([e for e in (BACKGROUND if relation == "while" else EVENTS) if e != first])
    return Sound((first, second), relation)


def draw_music(rng: random.Random) -> Music:
    return Music(rng.choice(INSTRUMENTS), rng.choice(TEMPOS), rng.choice(CONTOURS))


def tasks_of(scene: Scene) -> list[str]:
    """Tasks that this scene can be asked about."""
    if isinstance(scene, Speech):
        tasks = ["asr", "phone_recognition", "gender_recognition", "emotion_recognition", "translation_ec", "QA"]
        return tasks + (["keywords", "slot_filling"] if scene.kind in ("place", "trade") else [])
    if isinstance(scene, Pair):
        return ["speech_separation" if scene.mixed else "speaker_verification"]
    if isinstance(scene, Sound):
        return ["audiocaption", "audiocaption_v2", "audio_story_telling", "QA"]
    return ["music_description", "QA"]


def answer(scene: Scene, task: str, rng: random.Random) -> tuple[str, str]:
    """(question, answer) of a task about a scene; the question is "" for tasks that have none."""
    if task == "QA":
        return rng.choice(_questions(scene))
    if isinstance(scene, Speech):
        return _speech_answer(scene, task)
    if isinstance(scene, Pair):
        if scene.mixed:
            return "", f"{scene.first.sentence}\n{scene.second.sentence}"
        return "", "yes" if scene.first.voice == scene.second.voice else "no"
    if isinstance(scene, Sound):
        return "", {"audiocaption": caption, "audiocaption_v2": long_caption, "audio_story_telling": story}[task](scene)
    return "", f"a {scene.tempo} {scene.contour} melody is played on the {scene.instrument}"


def _speech_answer(scene: Speech, task: str) -> tuple[str, str]:
    if task == "slot_filling":
        asked = {"place": ("animal", "place"), "trade": ("name", "fruit")}[scene.kind]
        named = dict(zip(SENTENCES[scene.kind], scene.words, strict=False))
        return f"What are the {asked[0]} and the {asked[1]}?", " ".join(f"{slot}: {named[slot]}" for slot in asked)
    if task == "translation_ec":
        order = CHINESE_ORDER.get(scene.kind, range(len(scene.words)))
        return "", "".join(CHINESE[scene.words[at]] if isinstance(at, int) else at for at in order)
    return "", {
        "asr": scene.sentence,
        "phone_recognition": " ".join(phone for word in scene.words for phone in PHONES[word]),
        "gender_recognition": "woman" if GENDERS[scene.voice] == "female" else "man",
        "emotion_recognition": scene.style,
        "keywords": ", ".join(w for w in scene.words if w in KEYWORDS),
    }[task]


def _questions(scene: Scene) -> list[tuple[str, str]]:
    kind = "What is this, speech, music or another sound?"
    if isinstance(scene, Sound):
        return [
            (kind, "another sound"),
            ("How many different sounds are there?", ("one", "two")[len(scene.events) - 1]),
        ]
    if isinstance(scene, Music):
        return [(kind, "music"), ("Which instrument plays?", scene.instrument), ("Is it slow or fast?", scene.tempo)]
    named = dict(zip(SENTENCES[scene.kind], scene.words, strict=False))
    asked = {
        "place": {
            "What colour is the animal?": "colour",
            "Which animal is it?": "animal",
            "Which place is named?": "place",
        },
        "short": {"What colour is the animal?": "colour", "Which animal is it?": "animal"},
        "trade": {"What colour are the fruits?": "colour", "Who is named?": "name", "How many are there?": "digit"},
    }.get(scene.kind)
    answers = (
        [(q, named[part]) for q, part in asked.items()] if asked else [("What is the last digit?", scene.words[-1])]
    )
    return [(kind, "speech"), *answers * 2]


def caption(scene: Sound) -> str:
    parts = [EVENTS[event][0] for event in scene.events]
    return {"": "{}", "then": "{}, then {}", "while": "{} while {}"}[scene.relation].format(*parts)


def long_caption(scene: Sound) -> str:
    count = {"": "one sound", "then": "two sounds, one after the other", "while": "two sounds at the same time"}
    return f"this clip holds {count[scene.relation]}: {caption(scene)}"


def story(scene: Sound) -> str:
    """At least 50 words, so that it counts as a story in evaluation."""
    _, first, next_ = EVENTS[scene.events[0]]
    sentences = [f"One day long ago {first}.", next_]
    if scene.relation:
        _, second, next_ = EVENTS[scene.events[1]]
        sentences += [{"then": "A little later ", "while": "At the same time "}[scene.relation] + second + ".", next_]
    else:
        sentences.append(STORY_ALONE)
    return " ".join([*sentences, STORY_END])
