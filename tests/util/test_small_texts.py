"""The small model's sentences: how they are spoken, where they come from, what is held out."""

from itertools import islice
from random import Random

import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from util.small_model import corpus, recordings, records, report, tasks, texts, voices


@pytest.mark.parametrize("content", ["", '[{"what": 1}]', "[1]", '[{"nam'])
def test_a_damaged_list_of_what_was_made_is_told(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        records.read_records(tmp_path / "a.json", voices.Spoken)


def test_texts_are_written_as_they_are_spoken():
    assert texts.spoken("Press 1, then “#” — it's the dogs' 2nd!") == "press one then it's the dogs nd"
    assert [texts.in_words(n) for n in (0, 14, 40, 61, 300, 999)] == [
        "zero", "fourteen", "forty", "sixty one", "three hundred", "nine hundred ninety nine",
    ]  # fmt: skip


def test_no_held_out_sentence_is_spoken_for_training_not_even_inside_another(wordnet):
    examples, definitions = texts.from_wordnet(wordnet)
    assert "a river by the stone" in examples
    assert "the river of a stone" in definitions
    assert not any("the stone was" in text for text in examples)  # a number is not said as it is written
    held_out = ["a river by the stone", "the garden of a", "please enter your password"]
    chosen = corpus.choose(wordnet, 200, held_out)
    for of_split in chosen.values():
        assert not any(f" {held} " in f" {text} " for text in of_split for held in held_out)
    assert len(chosen["valid"]) == len(chosen["test"]) == corpus.HELD_OUT
    assert not set(chosen["train"]) & set(chosen["valid"] + chosen["test"])
    assert chosen == corpus.choose(wordnet, 200, held_out)


# Sense and Sensibility, as pocketsphinx's test data has it
LIBRIVOX = (
    "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do for "
    "them",
    "he was not an ill disposed young man",
    "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "had he married a more amiable woman he might have been made still more respectable than he was",
    "he might even have been made amiable himself",
)


def test_the_grammar_holds_nothing_of_the_sentences_of_a_test():
    said = list(islice(texts.everyday(Random(0)), 4000))
    assert texts.known_runs(LIBRIVOX, said, 3) == 0
    theirs = (
        "amiable consider dashwood disposed hearted john leisure married mister prudent prudently respectable selfish"
    )
    assert not set(theirs.split()) & set(" ".join(said).split())


def test_how_near_a_text_is_to_what_was_trained_on():
    trained = ["please hold the line", "a red dog runs home"]
    assert texts.inside(["hold the line", "hold the lin", "the line a red", "dog"], trained) == {"hold the line", "dog"}
    assert texts.known_runs(["a red dog runs away now", "a red dog runs", "dog"], trained, 4) == pytest.approx(1 / 3)
    assert texts.known_runs(["a dog", ""], trained, 4) is None


def test_texts_that_hold_a_held_out_sentence_are_left_out_and_those_that_hold_two_words_are_not():
    said = ["press one now", "to go on press one now please", "press one no", "ten", "ten of clubs", "press one"]
    kept = ["press one no", "ten of clubs"]
    assert list(texts.without(said, ["press one now", "press one", "ten"])) == kept
    entries = [{"text": text.upper() + "!"} for text in said]
    assert corpus.without(entries, ["Press 1, now.", "press one", "ten"]) == [entries[said.index(one)] for one in kept]


def test_what_is_chosen_for_a_test_is_not_trained_on_alone_or_inside_another_sentence(wordnet, monkeypatch):
    numbers = [texts.in_words(i) for i in range(1000)]
    said = [form.format(number) for number in numbers for form in ("{}", "dial {} please", "we dial {} please")]
    monkeypatch.setattr(texts, "everyday", lambda rng: iter(rng.sample(said, len(said))))
    chosen = corpus.choose(wordnet, 900, [])
    tested = chosen["valid"] + chosen["test"]
    assert [text for text in tested if len(text.split()) == 1]
    assert not set(chosen["train"]) & set(tested)
    assert texts.inside([text for text in tested if len(text.split()) > 2], chosen["train"]) == set()


def test_a_text_falls_into_the_same_split_everywhere():
    splits = [recordings.split_of(str(i)) for i in range(2000)]
    assert [round(splits.count(split) / 20) for split in ("train", "valid", "test")] == pytest.approx(
        [60, 10, 30], abs=4
    )
    assert splits[:3] == [recordings.split_of(str(i)) for i in range(3)]


def test_transcripts_are_read_as_their_publisher_writes_them(tmp_path):
    file = tmp_path / "core-sounds-en.txt"
    file.write_text("; a comment\n\nvm-hello: Hello: you have 1 message.\nbeep: [a tone]\n")
    assert recordings.read_transcripts(file) == {"vm-hello": "Hello: you have 1 message."}
    file.write_text("vm-hello Hello")
    with pytest.raises(UserError, match="line 1: expected NAME: TEXT"):
        recordings.read_transcripts(file)
    file.write_bytes("vm-hello: Für".encode("latin-1"))
    with pytest.raises(UserError, match="no UTF-8 text"):
        recordings.read_transcripts(file)
    with pytest.raises(UserError, match="no such file"):
        recordings.read_transcripts(tmp_path / "none.txt")


def test_speakers_of_whom_nothing_is_trained_on_are_only_tested_on(tmp_path):
    sphinx, channels, wav = tmp_path / "sphinx", tmp_path / "channels", 0.1 * np.sin(np.arange(16_000) / 9)
    for folder in (sphinx / "cards", sphinx / "librivox", channels):
        folder.mkdir(parents=True)
    (sphinx / "cards/cards.transcription").write_text("<s> ten of clubs  </s> (001)\n")
    (sphinx / "librivox/transcription").write_text("<s> had he married a more a amiable woman </s> (sense-0920)\n")
    (sphinx / "goforward.gram").write_text("public <move> = go forward ten meters;\npublic <move2> = go <direction>;")
    (sphinx / "goforward.raw").write_bytes((wav * 32767).astype("<i2").tobytes())
    soundfile.write(sphinx / "cards/001.wav", wav, 16_000)
    soundfile.write(sphinx / "librivox/sense-0920.wav", wav, 16_000)
    soundfile.write(channels / "audio-channel-front-left.oga", np.stack([wav, wav], 1), 48_000, format="OGG")
    soundfile.write(channels / "bell.oga", wav, 48_000, format="OGG")
    found = [*recordings.librivox(sphinx, tmp_path), *recordings.other_speakers(sphinx, channels, tmp_path)]
    assert [(one.kind, one.voice, one.text) for one in found] == [
        ("librivox", "librivox", "had he married a more amiable woman"),
        ("speaker", "sphinx", "ten of clubs"),
        ("speaker", "sphinx", "go forward ten meters"),
        ("speaker", "channels", "front left"),
    ]
    assert {one.split for one in found} == {"test"}
    assert [one.seconds for one in found] == pytest.approx([1, 1, 1, 1 / 3], abs=0.01)
    assert all(len(report.load_audio(tmp_path / one.path)) == round(16_000 * one.seconds) for one in found)


def test_questions_about_a_text_have_the_right_answers():
    heard = [
        (f"{i}.flac", text) for i, text in enumerate(["press four to save the message", "a horse was hungry"] * 20)
    ]
    entries = list(tasks.about_what_is_said(heard, Random(1)))
    said = dict(heard)
    for entry in entries:
        text, question = said[entry["path"]], entry["Q"]
        if "said?" in question:
            assert (question.split()[3] in text.split()) == (entry["text"] == "yes")
        elif "key" in question:
            assert (entry["text"], "press" in text) == ("four", True)
        else:
            assert entry["text"] == text.split()[0 if "first" in question else -1]
    assert {entry["text"] for entry in entries} >= {"yes", "no", "four"}


def test_no_answer_is_likelier_than_another_where_one_could_guess():
    entries = [{"path": str(i), "task": "voice", "text": "man" if i % 5 else "woman"} for i in range(100)]
    answers = [entry["text"] for entry in tasks.balanced(entries, Random(0), 30)]
    assert len(answers) == 30
    assert 8 <= answers.count("woman") <= 22
    assert len(tasks.balanced(entries, Random(0), 100)) == 40


def test_half_of_recognition_in_stage_2_is_long():
    entries = [{"path": f"{i}.wav", "task": "asr", "text": "word " * (1 + i % 12)} for i in range(120)]
    chosen = [len(entry["text"].split()) for entry in tasks.recognition(entries, Random(0), 20)]
    assert len(chosen) == 20
    assert sum(n >= 11 for n in chosen) == 10  # the longest sixth
    paths = [entry["path"] for entry in tasks.recognition(entries, Random(0), 1000)]
    assert sorted(paths) == sorted(entry["path"] for entry in entries)  # as many as there are, each once
