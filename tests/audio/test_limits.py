"""A small file takes no large memory, and what libraries in C print reaches neither answers nor logs."""

import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
import soundfile

from salmonn.audio import containers, ffmpeg, mp3, view
from salmonn.audio.containers import find_samples
from salmonn.audio.decode import AudioError, decode_all, inspect_header, load_audio, stream_audio
from tests.fixtures.damaged_media import KINDS, make_damaged
from tests.fixtures.encoders import encode_av
from tests.fixtures.paths import ROOT

MOST_VALUES = 1_100_000  # decoded at once, in all channels


@pytest.mark.parametrize(
    ("rate", "channels", "container", "subtype"),
    [
        (655_350, 8, "FLAC", "PCM_16"), (192_000, 64, "OGG", "VORBIS"), (96_000, 32, "WAV", "PCM_16"),
        (768_000, 3, "WAV", "FLOAT"), (48_000, 64, "OGG", "OPUS"), (48_000, 64, "AIFF", "PCM_16"),
    ],
)  # fmt: skip
def test_what_has_more_samples_a_second_than_any_recording_is_refused_by_its_header(
    tmp_path, rate, channels, container, subtype
):
    soundfile.write(tmp_path / "a", np.zeros((2000, channels)), rate, subtype, format=container)
    for look in (load_audio, decode_all, inspect_header, lambda path: next(stream_audio(path))):
        with pytest.raises(AudioError, match=f"absurd header: {channels} channels of {rate} Hz"):
            look(tmp_path / "a")


@pytest.mark.parametrize(
    ("rate", "channels", "container", "subtype"),
    [
        (192_000, 8, "FLAC", "PCM_16"), (48_000, 32, "WAV", "PCM_16"), (16_000, 64, "WAV", "PCM_16"),
        (655_350, 2, "FLAC", "PCM_16"), (48_000, 8, "OGG", "VORBIS"),
    ],
)  # fmt: skip
def test_of_many_channels_or_a_high_rate_little_is_decoded_at_once(
    tmp_path, monkeypatch, rate, channels, container, subtype
):
    seconds = 2 if rate > 16_000 else 3
    soundfile.write(tmp_path / "a", np.full((seconds * rate, channels), 0.25), rate, subtype, format=container)
    asked, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, n, **how: asked.append(n * file.channels) or read(file, n, **how)
    )
    wav = load_audio(tmp_path / "a")
    assert len(wav) == pytest.approx(seconds * 16_000, abs=1)
    np.testing.assert_allclose(wav[1000:-1000], 0.25, atol=0.02)
    assert decode_all(tmp_path / "a").frames == seconds * rate
    assert max(asked) < MOST_VALUES


def test_where_blocks_meet_nothing_is_heard(tmp_path):
    """The decoder of an mp3 began anew at each block."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(40 * 48_000) / 48_000)
    soundfile.write(tmp_path / "a.mp3", np.stack([tone, tone], 1), 48_000)
    whole = soundfile.read(tmp_path / "a.mp3", dtype="float32")[0]
    with soundfile.SoundFile(tmp_path / "a.mp3") as file:
        assert len(whole) == file.frames
    streamed = np.concatenate(list(stream_audio(tmp_path / "a.mp3")))
    np.testing.assert_allclose(streamed[: 30 * 16_000], load_audio(tmp_path / "a.mp3"), atol=1e-5)


# ---- prints


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=ROOT
    )


def test_what_decoders_print_about_damaged_files_goes_nowhere(tmp_path):
    damaged = make_damaged(tmp_path / "damaged", 3 * (len(KINDS) + 12), 7)
    files = [path for path, kind in damaged.items() if kind.startswith(("mp3", "flac", "ogg"))]
    code = (
        "import sys\n"
        "from salmonn.audio.decode import AudioError, load_audio\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_audio(path)\n"
        "    except AudioError: pass\n"
        "print('end'); print('end', file=sys.stderr)\n"
    )
    result = run(code, *files)
    assert (result.stdout, result.stderr) == ("end\n", "end\n")


@pytest.mark.skipif(sys.platform != "linux", reason="C's stdout is a variable in glibc")
def test_only_what_c_prints_meanwhile_is_dropped():
    code = (
        "import ctypes, sys\n"
        "from salmonn.audio.quiet import no_prints_of_c\n"
        "c = ctypes.CDLL(None)\n"
        "with no_prints_of_c():\n"
        "    with no_prints_of_c(): c.puts(b'dropped')\n"
        "    c.puts(b'dropped'); c.perror(b'dropped'); print('Python'); print('Python', file=sys.stderr)\n"
        "sys.stdout.flush(); c.puts(b'C'); c.fflush(None); c.perror(b'C')\n"
    )
    result = run(code)
    assert result.stdout == "Python\nC\n"
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Python", "C"]


def test_of_a_long_mp3_or_of_what_follows_a_stream_little_is_in_memory(tmp_path):
    """Of the file, that is: 60 MB each."""
    tone = (0.3 * np.sin(np.arange(16_000 * 60) / 9)).astype(np.float32)
    soundfile.write(tmp_path / "a.mp3", tone, 16_000)
    minute = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(minute * (60_000_000 // len(minute)))
    for name, kind in (("a.flac", {}), ("a.ogg", {"subtype": "VORBIS"})):
        soundfile.write(tmp_path / name, tone[:16_000], 16_000, **kind)
        with (tmp_path / name).open("ab") as file:
            file.write(b"more" * 15_000_000)
    for name in ("a.mp3", "a.flac", "a.ogg"):
        code = "import resource, sys; from salmonn.audio.decode import load_audio, AudioError; import soxr, soundfile\n"
        code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\ntry: load_audio(sys.argv[1])\n"
        code += "except AudioError as error: print(error)\n"
        code += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert int(result.stdout.splitlines()[-1]) < 40, f"{name}: {result.stdout}"


@pytest.mark.parametrize("size", [None, 5000])
def test_bytes_of_a_file_are_those_that_are_there(tmp_path, monkeypatch, size):
    monkeypatch.setattr(view, "_BLOCK", 97)
    monkeypatch.setattr(view, "_BEHIND", 10)
    content = np.random.default_rng(0).integers(0, 4, 6000, np.uint8).tobytes()
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as file:
        for start in (0, 300):
            there = content[start:][:size]
            data = view.Bytes(file, start, size)
            assert len(data) == len(there)
            for first in (0, 1, 96, 97, 98, 2000, 1990, 0, 4690, 9999):
                assert data[first : first + 40] == there[first : first + 40]
                for what in (b"\x01", bytes([1, 2, 3, 0, 1, 2]), bytes(12), b"\xff"):
                    assert data.find(what, first) == there.find(what, first)
        os.truncate(tmp_path / "a", 100)
        assert view.Bytes(file, 0, 5000).find(b"\xff") == -1


# ---- small files that would take minutes, or gigabytes


@pytest.mark.parametrize("junk", [b"\xff", b"\xff\xfb\x90\x00", b"\xff\xe2\x11"])
def test_what_looks_like_frames_of_an_mp3_is_looked_through_in_a_moment(tmp_path, monkeypatch, junk):
    tried, look = [], mp3._two_in_a_row
    monkeypatch.setattr(mp3, "_two_in_a_row", lambda *place: tried.append(place) or look(*place))
    monkeypatch.setattr(mp3, "_MOST_TRIES", 1000)
    soundfile.write(tmp_path / "a.mp3", 0.1 * np.sin(np.arange(48_000) * 0.1), 16_000)
    with (tmp_path / "a.mp3").open("ab") as file:
        file.write(junk * 300_000)
    with suppress(AudioError):
        load_audio(tmp_path / "a.mp3")
    assert len(tried) < 1100


@pytest.mark.parametrize("container", ["WAV", "AIFF"])
def test_chunks_without_end_are_refused(tmp_path, monkeypatch, container):
    soundfile.write(tmp_path / "a", np.zeros(1600), 16_000, format=container)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:12] + b"junk\0\0\0\0" * 2000 + whole[12:])
    assert find_samples(tmp_path / "a")
    monkeypatch.setattr(containers, "_MOST_CHUNKS", 1000)
    with pytest.raises(AudioError, match="chunks"):
        load_audio(tmp_path / "a")


def counting(m4a, n):
    """An MP4 whose tables count n samples of a byte."""
    data = bytearray(m4a)
    for table, values in ((b"stsz", (1, n)), (b"stsc", (1, 1, n, 1)), (b"stts", (1, n, 1024))):
        struct.pack_into(f">{len(values)}I", data, data.find(table) + 8, *values)
    return bytes(data)


def tagged(aac):
    """An AAC behind a tag of 250 kB that unpacks to 250 MB."""
    text = zlib.compress(bytes(250_000_000), 9)
    frame = (250_000_000).to_bytes(4) + text
    sizes = [bytes(n >> shift & 127 for shift in (21, 14, 7, 0)) for n in (len(frame), len(frame) + 10)]
    return b"ID3\4\0\0" + sizes[1] + b"PRIV" + sizes[0] + b"\0\x09" + frame + aac


def test_what_a_few_bytes_ask_the_second_decoder_for_is_not_given(tmp_path):
    """Each took 0.6 to 1.8 GB."""
    wave = np.zeros((32_000, 1), np.float32)
    (tmp_path / "a.m4a").write_bytes(counting(encode_av(wave, 16_000, "aac", "ipod", 96_000), 50_000_000))
    (tmp_path / "a.aac").write_bytes(tagged(encode_av(wave, 16_000, "aac", "adts", 96_000)))
    code = (
        "import av, resource, soxr, soundfile, sys\n"
        "from salmonn.audio.decode import AudioError, load_audio\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "for path in sys.argv[1:]:\n"
        "    before = peak()\n"
        "    try: said = len(load_audio(path)) // 16_000\n"
        "    except AudioError as error: said = error.reason\n"
        "    print(peak() - before, said)\n"
    )
    lines = run(code, tmp_path / "a.m4a", tmp_path / "a.aac").stdout.splitlines()
    (index, refused), (tag, seconds) = (line.split(" ", 1) for line in lines)
    assert (refused.partition(":")[0], seconds) == ("damaged", "2")
    assert max(int(index), int(tag)) < 50


def test_frames_larger_than_any_encoder_writes_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(encode_av(np.zeros((32_000, 1), np.float32), 16_000, "alac", "ipod"))
    assert len(load_audio(tmp_path / "a.m4a")) == 32_000
    monkeypatch.setitem(ffmpeg._OPTIONS, "max_samples", "4095")  # one less than an ALAC has in a frame
    with pytest.raises(AudioError, match="undecodable"):
        load_audio(tmp_path / "a.m4a")
