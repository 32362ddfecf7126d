"""util/small.py's recordings of people: a tiny tree of packages, as telephone exchanges have them."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from tests.fixtures.paths import ROOT
from util import small
from util.small_model import job, parts, recordings, report, sources

SECONDS = {"vm-goodbye": 0.5, "vm-short": 0.2}  # of those whose length matters
ENGLISH = (
    "vm-goodbye", "vm-intro", "conf-full", "smooth-tones-ended", "newsletters-sent", "vm-short", "beep",
    "ascending-2tone", "silence/1", "letters/a", "dictate/pause", "digits/7", "digits/day-3", "digits/mon-0",
    "digits/60", "digits/h-7", "phonetic/z_p", "phonetic/9_p",
)  # fmt: skip
SAID = "vm-goodbye: Goodbye.\nvm-intro: Please leave 1 message\nconf-full: Goodbye!\nvm-short: No\nbeep: [a tone]\n"
OTHERS = {"es": "es_MX_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "ru": "ru_RU_f_IvrvoiceRU"}


def write_g722(path: Path, seconds: float, loudness: float = 0.3) -> None:
    """A tone, as a telephone exchange keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = (32767 * loudness * np.sin(np.arange(int(16_000 * seconds)) / 9)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wav[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """What all packages of recordings have unpacked, beside each other."""
    root = tmp_path_factory.mktemp("packages")
    for name in ENGLISH:
        write_g722(root / f"en/usr/share/asterisk/sounds/en_US_f_Allison/{name}.g722", SECONDS.get(name, 0.4))
    for language, folder in OTHERS.items():
        for name in ("vm-intro", "digits/7", "tt-monkeys", "milestone"):
            write_g722(root / f"{language}/usr/share/asterisk/sounds/{folder}/{name}.g722", 0.4)
    (root / "en/usr/share/asterisk/sounds/en_US_f_Allison/empty.g722").touch()
    moh = root / "music/usr/share/asterisk/moh"
    write_g722(moh / "loud.g722", 61)
    write_g722(moh / "quiet.g722", 13, 0.001)
    sphinx, channels = (
        root / "other/usr/share/pocketsphinx/test/data",
        root / "other/usr/share/sounds/freedesktop/stereo",
    )
    for folder in (sphinx / "cards", sphinx / "librivox", channels):
        folder.mkdir(parents=True)
    (sphinx / "cards/cards.transcription").write_text("<s> ten of clubs </s> (001)\n")
    (sphinx / "librivox/transcription").write_text("")
    (sphinx / "goforward.gram").write_text("public <move> = go forward ten meters;")
    (sphinx / "goforward.raw").write_bytes(bytes(16_000))
    soundfile.write(sphinx / "cards/001.wav", np.zeros(8000), 16_000)
    return root


@pytest.fixture
def found(packages, tmp_path, monkeypatch):
    """What the part `recordings` finds, with these transcripts."""
    folders = {one.name: packages / language for language, one in sources.PROMPTS.items()}
    folders |= {sources.MUSIC.name: packages / "music"}
    monkeypatch.setattr(sources, "fetch", lambda one, _: folders.get(one.name, packages / "other"))
    monkeypatch.chdir(ROOT)

    def find(said: str = "") -> list[recordings.Recording]:
        given = ["small.py", "--out", str(tmp_path / "out")]
        if said:
            (tmp_path / "said.txt").write_text(said)
            given += ["--prompts", str(tmp_path / "said.txt")]
        monkeypatch.setattr(sys, "argv", given)
        made = job.Small(small.parse_arguments())
        parts.get_recordings(made)
        assert all(len(report.load_audio(made.data / one.path)) == 16_000 * one.seconds for one in made.recordings)
        return made.recordings

    return find


def of_kind(found: list[recordings.Recording], kind: str) -> dict[str, str]:
    return {Path(one.path).stem: one.text for one in found if one.kind == kind}


def test_prompts_are_words_sentences_and_other_speech_and_what_is_no_speech_is_left_out(found):
    made = found(SAID)
    words = {"digits_7": "seven", "digits_day-3": "wednesday", "digits_mon-0": "january", "digits_60": "sixty"}
    assert of_kind(made, "word") == {**words, "phonetic_z_p": "zulu"}
    said = {"vm-goodbye": "goodbye", "conf-full": "goodbye", "vm-intro": "please leave one message"}
    assert of_kind(made, "prompt") == said
    english = [Path(one.path).stem for one in made if one.kind == "speech" and one.language == "english"]
    assert english == ["newsletters-sent", "smooth-tones-ended"]  # as no word of a name says otherwise
    assert len({one.split for one in made if one.text == "goodbye"}) == 1  # a sentence is in one split
    [goodbye] = [one for one in made if one.path == "english/vm-goodbye.flac"]
    assert (goodbye.seconds, goodbye.voice) == (0.5, "woman")
    foreign = [(one.language, one.voice, Path(one.path).stem) for one in made if one.language != "english"]
    spoken = [("spanish", "woman"), ("french", "woman"), ("italian", "man"), ("russian", "man")]
    heard = [(*who, name) for who in spoken for name in ("milestone", "vm-intro")]
    assert [one for one in foreign if one[0]] == heard
    assert sorted(of_kind(made, "speaker").values()) == ["go forward ten meters", "ten of clubs"]


def test_without_transcripts_only_single_words_are_written_down(found):
    made = found()
    assert len(of_kind(made, "word")) == 5
    assert of_kind(made, "prompt") == {}
    assert len([one for one in made if one.kind == "speech" and one.language == "english"]) == 5


def test_a_piece_of_music_is_divided_in_time_and_what_is_silent_left_out(found):
    splits = {Path(one.path).stem: one.split for one in found() if one.kind == "music"}
    places = ["train"] * 7 + ["valid"] + ["test"] * 2
    assert splits == {f"loud_{i:03d}": split for i, split in enumerate(places)}


def test_transcripts_of_other_recordings_are_refused(found):
    with pytest.raises(UserError, match=r"said\.txt says of 2 of the 7 English prompts what they say, fewer than half"):
        found("vm-goodbye: Goodbye\nvm-intro: Please\nother: one\nother-2: two\n")
    with pytest.raises(UserError, match=r"says of 0 of the 7 English prompts"):
        found("/usr/share/vm-goodbye: Goodbye\n")
