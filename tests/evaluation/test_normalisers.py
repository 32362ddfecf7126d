"""Normalisation examples per language and purpose."""

from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.evaluation.normalisers import NAMES, normaliser

FOLDER = str(Path(__file__).parent)  # without a spelling mapping


def normalised(name: str, text: str, folder: str = FOLDER) -> str:
    return normaliser(name, folder)[0]([text])[0]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("english", "Hello, Mr. Smith! It's twenty-three degrees.", "hello mister smith it is 23 degrees"),
        ("english", "hello<COMMA>world <period> <noise>", "hello world"),
        ("english", "[noise] (uh)", ""),
        ("gigaspeech", "WELL <COMMA> UH A STATE-OF-THE-ART THING <PERIOD>", "well a state of the art thing"),
        ("gigaspeech", "<MUSIC>", ""),
        ("gigaspeech", "ER <UNK> HUMAN ERROR", "human error"),
        ("basic", "Größe: „Äpfel“, l'été!", "größe äpfel l été"),
        ("basic", "«Привет», мир…", "привет мир"),
        ("basic", "你好，世界。", "你好 世界"),
        ("plain", " Der  Hund,\nder „rote“. ", "Der Hund, der „rote“."),
        ("cjk", "红 狗，\n 跑步 BBC 12 。", "红狗，跑步 BBC 12 。"),
        ("cjk", "赤い 犬が\u3000走る", "赤い犬が走る"),
        ("plain", "<unk> spielt <music> <MUSIC>", "<unk> spielt <music> <MUSIC>"),
        ("cjk", "<UNK> 红 <music>狗", "<UNK> 红 <music>狗"),
        ("words", "Don't — “stop” the well-known dog's!", "don't stop the well-known dog's"),
        ("phones", "hh-AH0 l OW1, SIL W ER1 L D. <COMMA>", "HH AH L OW W ER L D"),
        ("sentences", "The red dog!\n\n Blue <COMMA> cat. ", "the red dog\nblue cat"),
        ("sentences", "The red dog. Blue cat.", "the red dog\nblue cat"),
        ("sentences", 'Did Mr. Fox run? "No." He sat!', "did mister fox run\nno\nhe sat"),
        (
            "sentences",
            "It was 3.5 for J. Smith\nBlue cat. Red.",
            "it was 3.5 for j smith\nblue cat red",
        ),
        ("sentences", "the red dog", "the red dog"),
        ("keywords", "Keywords: Neural Nets, 2) dogs; and cats\n- Mr. Fox", "neural nets\ndogs\ncats\nmister fox"),
        ("caption", "A dog's bark, two-tone -- it isn't “loud”!", "a dog 's bark two-tone it is n't loud"),
        ("caption", " 'Rain' (heavy);\nwind ", "rain heavy wind"),
    ],
)
def test_normalisation_examples(name: str, text: str, expected: str):
    assert normalised(name, text) == expected


@pytest.mark.parametrize("name", NAMES)
def test_white_space_and_tags_around_change_nothing_and_no_text_is_empty(name: str):
    text, tags = "AH0 The dog's, bark; and 3 cats ran 红 狗。", ("<SIL>", "<comma>")
    assert normalised(name, text)
    before, after = ("", "") if name in ("plain", "cjk") else tags  # these leave a text as it is
    assert normalised(name, f" \t{before} {text} {after}\n") == normalised(name, text)
    assert normalised(name, "") == normalised(name, " \n") == ""


def test_the_spelling_mapping_comes_from_the_whisper_folder(tmp_path: Path):
    plain, note, _ = normaliser("english", str(tmp_path))
    assert plain(["colour"]) == ["colour"]
    assert "without spelling mapping" in note
    (tmp_path / "normalizer.json").write_text('{"colour": "color"}')
    mapped, note, _ = normaliser("english", str(tmp_path))
    assert mapped(["the COLOUR", "the color"]) == ["the color"] * 2
    assert "1 words" in note
    assert normalised("sentences", "colour\ncolour", str(tmp_path)) == "color\ncolor"


def test_a_spelling_mapping_that_is_no_json_is_refused(tmp_path: Path):
    (tmp_path / "normalizer.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        normaliser("english", str(tmp_path))
