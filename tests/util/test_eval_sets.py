"""util/prepare_eval_sets.py: each public test set from a tiny tree in its own layout, and what is wrong with one."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from salmonn.data.annotations import Annotations
from tests.fixtures.eval_set_files import (
    AUDIOCAPS,
    EMOTIONS,
    LEXICON,
    MIDAS,
    MUSICCAPS,
    SPEAKERS,
    TALN,
    TRANSCRIPTS,
    WIKIQA,
    gigaspeech,
    slurp,
)
from tests.fixtures.paths import ROOT

sys.path.insert(0, str(ROOT))

from util.eval_sets.catalogue import SETS
from util.prepare_eval_sets import main


@pytest.fixture
def tree(tmp_path: Path):
    """Writes {path: text, or None for a clip} below a fresh folder, which it returns."""

    def write(files: Mapping[str, str | None]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"audio" if text is None else text.encode(errors="surrogateescape"))
        return tmp_path

    return write


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the command on a corpus below tmp_path; returns its entries and what it printed."""

    def run(name: str, root: str, *options: object) -> tuple[list[dict], str]:
        out = tmp_path / "out" / f"{name}.json"
        arguments = [name, "--root", tmp_path / root, "--out", out, *options]
        monkeypatch.setattr(sys, "argv", ["prepare_eval_sets.py", *map(str, arguments)])
        main()
        annotations = Annotations(out)
        return [annotations.as_written(i) for i in range(len(annotations))], capsys.readouterr().out

    return run


def fields(entries: list[dict], *names: str) -> list[tuple]:
    return [tuple(entry.get(name) for name in names) for entry in entries]


def test_librispeech_keeps_absent_clips_unless_told_otherwise(tree, prepare):
    tree(TRANSCRIPTS | {"LibriSpeech/test-clean/61/70968/61-70968-0001.flac": None})
    entries, told = prepare("librispeech", "LibriSpeech")
    assert entries[1] == {
        "path": "/LibriSpeech/test-clean/61/70968/61-70968-0000.flac",
        "text": "he began a",
        "task": "asr",
        "testset_id": "61-70968-0000",
    }
    assert [entry["testset_id"] for entry in entries] == ["4077-13754-0000", "61-70968-0000", "61-70968-0001"]
    assert "3 clips, 3 entries" in told
    assert "2 of 3 clips are absent on this disk: kept (--only-present leaves them out)" in told

    entries, told = prepare("librispeech", "LibriSpeech", "--only-present", "--overwrite")
    assert [entry["testset_id"] for entry in entries] == ["61-70968-0001"]
    assert "2 of 3 clips are absent on this disk: left out" in told


def test_phones_are_those_of_the_first_pronunciation_without_stress(tree, prepare):
    root = tree(TRANSCRIPTS | {"lexicon.txt": LEXICON, "more.txt": "GIVE G IH1 V\nSO S OW1\nHE X1\n"})
    entries, told = prepare("librispeech_phones", "LibriSpeech", "--lexicon", root / "lexicon.txt")
    assert fields(entries, "testset_id", "text", "task") == [
        ("4077-13754-0000", "IH T S HH AA R D L IY", "phone_recognition"),
        ("61-70968-0000", "HH IY B IH G AE N AH", "phone_recognition"),
    ]
    assert "1 utterances left out: their words are outside the lexicon (GIVE, SO)" in told

    both = ("--lexicon", root / "lexicon.txt", root / "more.txt")
    entries, told = prepare("librispeech_phones", "LibriSpeech", "--overwrite", *both)
    assert fields(entries, "text") == [("IH T S HH AA R D L IY",), ("HH IY B IH G AE N AH",), ("G IH V N AA T S OW",)]
    assert "outside" not in told


def test_the_authors_aligned_phones_are_taken_as_they_are(tree, prepare):
    published = [
        {"path": "/LibriSpeech/test-clean/61/70968/61-70968-0000.flac", "text": "SIL HH IY B IH G AE N", "task": "x"},
        {"path": "elsewhere/4077-13754-0000.flac", "text": "IH T S"},
    ]
    root = tree(TRANSCRIPTS | {"LS_testclean_pr.json": json.dumps({"annotation": published})})
    entries, told = prepare("librispeech_aligned_phones", "LibriSpeech", "--table", root / "LS_testclean_pr.json")
    assert fields(entries, "path", "text", "task") == [
        ("/LibriSpeech/test-clean/61/70968/61-70968-0000.flac", "SIL HH IY B IH G AE N", "phone_recognition"),
        ("/LibriSpeech/test-clean/4077/13754/4077-13754-0000.flac", "IH T S", "phone_recognition"),
    ]
    assert "1 utterances left out: they have no reference in the file" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"annotation": [{"path": "/LibriSpeech/dev-clean/84/1/84-1-0000.flac", "text": "AH"}]}',
            "entry 0: 84-1-0000 is",
        ),
        ('{"annotation": [{"path": "a.flac"}]}', "missing required field `text`"),
        ("[]", "pr.json: expected"),
    ],
)
def test_a_file_of_other_phones_is_refused(tree, prepare, content, message):
    root = tree(TRANSCRIPTS | {"pr.json": content})
    with pytest.raises(UserError, match=message):
        prepare("librispeech_aligned_phones", "LibriSpeech", "--table", root / "pr.json")


def test_gender_is_that_of_speakers_txt(tree, prepare):
    tree(TRANSCRIPTS | {"LibriSpeech/SPEAKERS.TXT": SPEAKERS})
    entries, _ = prepare("librispeech_gender", "LibriSpeech")
    expected = [("4077-13754-0000", "woman"), ("61-70968-0000", "man"), ("61-70968-0001", "man")]
    assert fields(entries, "testset_id", "text") == expected
    assert {entry["Q"] for entry in entries} == {"Is the speaker a man or a woman?"}


def test_librimix_asks_for_both_sentences(tree, prepare):
    mixture = "4077-13754-0000_61-70968-0001"
    rows = f"mixture_ID,mixture_path,source_1_path,source_2_path,length\r\n{mixture},/their/x.wav,/s1,/s2,9\r\n"
    mixed = "Libri2Mix/wav16k/max"
    table, clip = f"{mixed}/metadata/mixture_test_mix_clean.csv", f"{mixed}/test/mix_clean/{mixture}.wav"
    tree(TRANSCRIPTS | {table: rows, clip: None})
    entries, told = prepare("librimix", "Libri2Mix")
    assert fields(entries, "path", "text", "task") == [(f"/{clip}", "it's hardly\ngive not so", "speech_separation")]
    assert "all clips are on this disk" in told


def test_gigaspeech_segments_of_test_are_cut_once(tree, prepare, tmp_path):
    recording = np.linspace(-0.5, 0.5, 48_000)
    metadata = gigaspeech(
        "audio/youtube/P0000/YOU1.wav",
        ("S0", 0.5, 1.25, "HELLO <COMMA> YOU", "{TEST}"),
        ("S1", 1.0, 2.0, "TRAINING", "{XL}"),
        ("S2", 2.0, 3.0, "<MUSIC>", "{TEST}"),
    )
    other = gigaspeech("audio/youtube/P0000/YOU2.wav", ("T0", 0.0, 1.0, "BYE", "{TEST}"))
    audios = [audio for one in (metadata, other) for audio in json.loads(one)["audios"]]
    tree({"GigaSpeech/GigaSpeech.json": json.dumps({"audios": audios})})
    (tmp_path / "GigaSpeech/audio/youtube/P0000").mkdir(parents=True)
    for name in ("YOU1", "YOU2"):
        soundfile.write(tmp_path / f"GigaSpeech/audio/youtube/P0000/{name}.wav", recording, 16_000)
    entries, told = prepare("gigaspeech", "GigaSpeech", "--cut-to", tmp_path / "GigaSpeech/test")
    assert fields(entries, "path", "text") == [
        ("/GigaSpeech/test/YOU1/S0.flac", "HELLO <COMMA> YOU"),
        ("/GigaSpeech/test/YOU1/S2.flac", "<MUSIC>"),
        ("/GigaSpeech/test/YOU2/T0.flac", "BYE"),
    ]
    assert "all clips are on this disk" in told
    assert "1 segments are marked as silence, music, noise or other: kept" in told
    samples, rate = soundfile.read(tmp_path / entries[0]["path"][1:])
    assert rate == 16_000
    np.testing.assert_allclose(samples, recording[8_000:20_000], atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "GigaSpeech/test/YOU1").iterdir()) == ["S0.flac", "S2.flac"]

    (tmp_path / "GigaSpeech/audio/youtube/P0000/YOU1.wav").write_bytes(b"damaged")  # no longer read
    options = ("--cut-to", tmp_path / "GigaSpeech/test", "--speech-only", "--overwrite")
    entries, told = prepare("gigaspeech", "GigaSpeech", *options)
    assert fields(entries, "testset_id") == [("S0",), ("T0",)]
    assert "all clips are on this disk" in told
    assert "1 segments are marked as silence, music, noise or other: left out" in told


def test_a_gigaspeech_segment_beyond_its_recording_is_refused(tree, prepare, tmp_path):
    metadata = gigaspeech("audio/YOU1.wav", ("S0", 0.5, 4.0, "HELLO", "{TEST}"))
    tree({"GigaSpeech/GigaSpeech.json": metadata, "GigaSpeech/audio/YOU1.wav": None})
    soundfile.write(tmp_path / "GigaSpeech/audio/YOU1.wav", np.zeros(16_000), 16_000)
    with pytest.raises(UserError, match=r"YOU1\.wav: segment S0 is 0\.5 to 4\.0 s, the recording has 1\.00 s"):
        prepare("gigaspeech", "GigaSpeech", "--cut-to", tmp_path / "GigaSpeech/test")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("text", "YOU1_S1 TWO\tWORDS\nYOU1_S2\n"),
        ("metadata/test_chunks_0000_metadata.csv", 'sid,speaker,text_tn\nYOU1_S1,N/A,"TWO\tWORDS"\nYOU1_S2,N/A,\n'),
    ],
)
def test_gigaspeech_already_cut(tree, prepare, name, table):
    root = tree({f"giga/{name}": table, "giga/wavs/chunk0/YOU1_S1.wav": None})
    given = root / "giga" / name.partition("/")[0]  # a file, or the folder of several
    entries, told = prepare("gigaspeech", "giga", "--table", given, "--audio", root / "giga/wavs")
    assert fields(entries, "path", "text") == [
        ("/giga/wavs/chunk0/YOU1_S1.wav", "TWO\tWORDS"),
        ("/giga/wavs/YOU1_S2.wav", ""),
    ]
    assert "1 entries have an empty reference" in told
    assert "1 of 2 clips are absent" in told


def test_covost2_takes_the_test_split_and_its_escapes(tree, prepare):
    header = "path\ttranslation\tsplit\n"
    raw = f'{header}a.mp3\tEr sagte "Hallo\\\tWelt".\ttest\nb.mp3\tNein\ttrain\nc.mp3\tein\u2028zwei\ttest\n'
    made = "path\tsentence\ttranslation\tclient_id\r\nd.mp3\tHello.\t你好\tff\r\n"
    tree({"en/covost_v2.en_de.tsv": raw, "en/covost_v2.en_zh-CN.test.tsv": made, "en/clips/d.mp3": None})
    entries, told = prepare("covost2_de", "en")
    assert fields(entries, "path", "text", "task") == [
        ("/en/clips/a.mp3", 'Er sagte "Hallo\tWelt".', "translation_en2de"),
        ("/en/clips/c.mp3", "ein\u2028zwei", "translation_en2de"),
    ]
    assert "2 of 2 clips are absent" in told
    entries, _ = prepare("covost2_zh", "en")
    assert fields(entries, "path", "text", "task", "spoken", "testset_id") == [
        ("/en/clips/d.mp3", "你好", "translation_ec", "Hello.", "d")
    ]
    with pytest.raises(UserError, match=r"covost_v2\.en_ja\.test\.tsv nor .*\n.*Common Voice 4"):
        prepare("covost2_ja", "en")


def test_all_captions_of_an_audiocaps_clip_are_its_references(tree, prepare):
    tree({"AudioCaps/test.csv": AUDIOCAPS.replace("\n", "\r\n"), "AudioCaps/test/Y-abc_30.wav": None})
    pattern = ("--name", "Y{youtube_id}_{start_time}.wav")
    entries, told = prepare("audiocaps", "AudioCaps", *pattern)
    assert fields(entries, "path", "text", "testset_id") == [
        ("/AudioCaps/test/Y-abc_30.wav", 'A man talks, then "laughs" loudly', "-abc_30"),
        ("/AudioCaps/test/Y-abc_30.wav", "A man speaks", "-abc_30"),
        ("/AudioCaps/test/Yx_2_0.wav", "Rain falls", "x_2_0"),
    ]
    assert "2 clips, 3 entries, task audiocaption" in told
    assert "1 of 2 clips are absent" in told
    stories, _ = prepare("audiocaps_story", "AudioCaps", *pattern)
    assert [entry | {"task": "audiocaption"} for entry in stories] == entries
    assert {entry["task"] for entry in stories} == {"audio_story_telling"}
    with pytest.raises(UserError, match=r"test\.csv, line 2: --name '\{ytid\}\.wav' does not fit its columns"):
        prepare("audiocaps", "AudioCaps", "--name", "{ytid}.wav", "--overwrite")


def test_clotho_has_five_captions_a_clip(tree, prepare):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    tree({"clotho/clotho_captions_evaluation.csv": f'{header}"Santa, (1).wav","a, b",c,d,e,f\n'})
    entries, told = prepare("clotho", "clotho")
    assert fields(entries, "text") == [("a, b",), *zip("cdef", strict=True)]
    assert {entry["path"] for entry in entries} == {"/clotho/evaluation/Santa, (1).wav"}
    assert "1 clips, 5 entries" in told


@pytest.mark.parametrize(("split", "names"), [("eval", ["-0G"]), ("train", ["zz9"]), ("all", ["-0G", "zz9"])])
def test_musiccaps_splits(tree, prepare, split, names):
    tree({"MusicCaps/musiccaps-public.csv": MUSICCAPS})
    entries, _ = prepare("musiccaps", "MusicCaps", *(() if split == "eval" else ("--split", split)))
    assert [entry["path"] for entry in entries] == [f"/MusicCaps/audio/{name}.wav" for name in names]
    assert split == "train" or fields(entries, "text", "testset_id")[0] == ("Slow, sad\npiano", "-0G_30")


def test_iemocap_has_four_classes(tree, prepare):
    session = "IEMOCAP_full_release/Session5"
    evaluation = f"{session}/dialog/EmoEvaluation"
    tree({f"{evaluation}/Ses05F_impro01.txt": EMOTIONS, f"{evaluation}/._Ses05F_impro01.txt": "[shadow"})
    entries, told = prepare("iemocap", "IEMOCAP_full_release")
    assert fields(entries, "path", "text") == [
        (f"/{session}/sentences/wav/Ses05F_impro01/Ses05F_impro01_F000.wav", "happy"),
        (f"/{session}/sentences/wav/Ses05F_impro01/Ses05F_impro01_M001.wav", "angry"),
    ]
    assert "1 utterances of other emotions, or without agreement, skipped" in told


def test_a_voxceleb_pair_is_present_when_both_clips_are(tree, prepare):
    pairs = "1 id1/a/1.wav id1/b/1.wav\n0 id1/a/1.wav id2/c/1.wav\n1 id1/a/1.wav id1/b/1.wav\n"
    tree({"VoxCeleb1/veri_test2.txt": pairs, "VoxCeleb1/wav/id1/a/1.wav": None, "VoxCeleb1/wav/id2/c/1.wav": None})
    entries, told = prepare("voxceleb1", "VoxCeleb1")
    assert fields(entries, "path", "expand_wav", "text", "testset_id") == [
        ("/VoxCeleb1/wav/id1/a/1.wav", ["/VoxCeleb1/wav/id1/b/1.wav"], "Yes", "1"),
        ("/VoxCeleb1/wav/id1/a/1.wav", ["/VoxCeleb1/wav/id2/c/1.wav"], "No", "2"),
        ("/VoxCeleb1/wav/id1/a/1.wav", ["/VoxCeleb1/wav/id1/b/1.wav"], "Yes", "3"),
    ]
    assert "2 of 3 clips are absent" in told


def test_slurp_asks_every_recording_for_each_of_its_slots(tree, prepare):
    requests = slurp("audio-1-headset.flac", "audio-1.flac") + slurp("audio-2.flac", entities=[])
    tree({"slurp/dataset/slurp/test.jsonl": requests})
    entries, told = prepare("slurp", "slurp")
    assert fields(entries, "testset_id", "Q", "text") == [
        ("audio-1-headset:event_name", "What is the event name?", "what's"),
        ("audio-1-headset:date", "What is the date?", "tuesday, friday"),
        ("audio-1:event_name", "What is the event name?", "what's"),
        ("audio-1:date", "What is the date?", "tuesday, friday"),
    ]
    assert entries[0]["path"] == "/slurp/audio/slurp_real/audio-1-headset.flac"
    assert entries[0]["spoken"] == "remind me what's on tuesday and friday with jo"
    assert "1 requests without a slot skipped" in told
    entries, _ = prepare("slurp", "slurp", "--question", "{}", "--overwrite")
    assert entries[0]["Q"] == "event name"


@pytest.mark.parametrize(
    "files",
    [
        {"Test/7.abstr": "Big\r\n\tnets learn.\r\n", "Test/7.uncontr": "neural\n\tnets; big data\n"},
        {"Test/7.abstr": "Big nets learn.", "Test/7.key": "neural nets\r\nbig data\r\n"},
        {"test.jsonl": json.dumps(TALN)},
        {"test.jsonl": json.dumps(MIDAS)},
    ],
    ids=["uncontr", "key", "taln", "midas"],
)
def test_inspec_in_each_of_its_layouts(tree, prepare, files):
    root = tree({f"Inspec/{name}": text for name, text in files.items()} | {"tts/7.wav": None})
    entries, told = prepare("inspec", "Inspec", "--audio", root / "tts")
    assert entries == [
        {
            "path": "/tts/7.wav",
            "text": "neural nets, big data",
            "task": "keywords",
            "spoken": "Big nets learn.",
            "testset_id": "7",
        }
    ]
    assert "all clips are on this disk" in told


def test_wikiqa_right_sentences_are_the_references(tree, prepare):
    tree({"WikiQACorpus/WikiQA-test.tsv": WIKIQA, "WikiQACorpus/wav/Q0.flac": None})
    entries, told = prepare("wikiqa", "WikiQACorpus")
    assert fields(entries, "path", "text", "spoken", "testset_id") == [
        ("/WikiQACorpus/wav/Q0.wav", text, 'HOW "BIG" IS IT', "Q0") for text in ('It is "very big.', "Big indeed.")
    ]
    assert "1 questions without a right sentence left out" in told
    assert "all clips are on this disk" in told  # .flac serves where .wav is annotated


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("librispeech", "test-clean/1/2/1-2.trans.txt", "1-2-0 A\n3-4-0 B\n", "line 2: expected 1-2-NUMBER"),
        ("librispeech", "test-clean/1/2/1-2.trans.txt", "1-2-0 A\n\n1-2-0 B\n", "line 3: the id 1-2-0 stands already"),
        ("librispeech", "README", "", r"test-clean: no such folder\nlibrispeech needs in --root: LibriSpeech"),
        ("librispeech_phones", "README", "", "--lexicon FILE is needed"),
        ("librispeech_aligned_phones", "README", "", "--table FILE is needed: LS_testclean_pr.json"),
        ("gigaspeech", "README", "", "give --cut-to DIR, or --table"),
        ("covost2_de", "covost_v2.en_de.tsv", "path\ttranslation\na.mp3\n", "line 2: 1 values, the header has 2"),
        ("covost2_de", "covost_v2.en_de.tsv", "path\tsentence\n", "line 1: no column translation; the header has path"),
        ("audiocaps", "test.csv", AUDIOCAPS + "1,q,0,again\n", "line 5: audiocap_id 1 stands already in line 2"),
        ("audiocaps", "test.csv", AUDIOCAPS + '9,q,0,"open\n', "line 5: unexpected end of data"),
        ("audiocaps", "test.csv", "", "line 1: no column audiocap_id, .* has nothing"),
        ("audiocaps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n", "no clip in .*; nothing was written"),
        ("clotho", "clotho_captions_evaluation.csv", "file_name,caption_1\n", "no column caption_2, caption_3"),
        ("clotho", "clotho_captions_evaluation.csv", "file_name\udcff\n", "evaluation.csv: no UTF-8 text"),
        ("musiccaps", "musiccaps-public.csv", MUSICCAPS.replace("False,True", ",yes"), "line 3: is_audioset_eval must"),
        ("iemocap", "Session5/dialog/EmoEvaluation/S.txt", "[1.0 - 2.0]\tSes05F_x\tneu\n", r"line 1: expected \[START"),
        ("librimix", "README", "", "LibriSpeech.test-clean: no such folder"),
        ("voxceleb1", "veri_test2.txt", "1 a.wav b.wav\n2 a.wav b.wav\n", "line 2: expected 1 or 0 and two clips"),
        ("slurp", "dataset/slurp/test.jsonl", slurp("a.flac") + "{]", "line 2: "),
        ("slurp", "dataset/slurp/test.jsonl", slurp("a.flac", tokens=[]), "span of event_name is outside the 0 tokens"),
        ("slurp", "dataset/slurp/test.jsonl", slurp(sentence=None), "line 1: Expected `str`, got `null`"),
        ("inspec", "test.jsonl", '{"id": 1, "title": "T", "keywords": "x"}\n', "line 1: expected id, title"),
        ("inspec", "Test/1.abstr", "T", "neither 1.uncontr nor 1.key"),
        ("wikiqa", "WikiQA-test.tsv", WIKIQA.replace("red.\t0", "red.\tno"), "line 5: Label must be 0 or 1, got 'no'"),
        ("wikiqa", "WikiQA-test.tsv", WIKIQA.replace("Q5", "Q0"), "line 5: QuestionID Q0 is another question"),
    ],
)
def test_bad_input_is_one_message_that_says_where(tree, prepare, tmp_path, name, file, text, message):
    tree({f"corpus/{file}": text})
    with pytest.raises(UserError, match=message):
        prepare(name, "corpus")
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_unknown_utterances_is_refused(tree, prepare):
    table = "mixture_ID\n4077-13754-0000_99-1-0001\n"
    tree(TRANSCRIPTS | {"Libri2Mix/wav16k/max/metadata/mixture_test_mix_clean.csv": table})
    with pytest.raises(UserError, match=r"line 2: 99-1-0001 not in the transcripts of .*test-clean"):
        prepare("librimix", "Libri2Mix")


def test_a_speaker_outside_speakers_txt_is_refused(tree, prepare):
    tree(TRANSCRIPTS | {"LibriSpeech/SPEAKERS.TXT": SPEAKERS.replace("4077", "4078")})
    with pytest.raises(UserError, match=r"4077-13754\.trans\.txt, line 1: the speaker 4077 is not in"):
        prepare("librispeech_gender", "LibriSpeech")


def test_a_file_is_not_overwritten_by_accident(tree, prepare, tmp_path):
    tree(TRANSCRIPTS)
    prepare("librispeech", "LibriSpeech")
    written = (tmp_path / "out/librispeech.json").read_text()
    with pytest.raises(UserError, match=r"librispeech\.json is there already; --overwrite replaces it"):
        prepare("librispeech", "LibriSpeech", "--prefix", tmp_path / "LibriSpeech")
    assert (tmp_path / "out/librispeech.json").read_text() == written
    entries, _ = prepare("librispeech", "LibriSpeech", "--prefix", tmp_path / "LibriSpeech", "--overwrite")
    assert entries[0]["path"] == "/test-clean/4077/13754/4077-13754-0000.flac"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "x", "--table", "y"], "--table, --name has no effect on librispeech, which takes --split"),
        (["--prefix", "/elsewhere"], r"4077-13754\.trans\.txt, line 1: its clip .* is not below --prefix /elsewhere"),
        (["--only-present"], "no clip, none of 3 is on this disk"),
        (["--split", "test-other"], "test-other: no such folder"),
        (["--root", "/no/such/folder"], "--root /no/such/folder: no such folder"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tree, prepare, options, message):
    tree(TRANSCRIPTS)
    with pytest.raises(UserError, match=message):
        prepare("librispeech", "LibriSpeech", *options)


def test_help_names_every_set_and_what_to_download(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_eval_sets.py", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out.splitlines()
    for name, chosen in SETS.items():
        assert f"  {name:<19} {chosen.download}" in told
