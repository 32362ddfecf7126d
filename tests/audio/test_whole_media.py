"""A whole file is heard whole, whatever its header says and whoever wrote it, or it is refused in plain words."""

import errno
import os
import re
import struct
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
import soundfile

from salmonn.audio import ffmpeg
from salmonn.audio.decode import AudioError, decode_all, inspect_header, load_audio, stream_audio
from salmonn.audio.mp3 import _header, read_mp3
from salmonn.audio.view import Bytes
from tests.fixtures.encoders import copy_packets, encode_av, with_pictures
from tests.fixtures.paths import ROOT
from tests.fixtures.whole_media import encode, ogg_pages, wav_bytes, with_checksum

SECONDS = 10


@lru_cache
def loud_then_quiet(rate=16_000, seconds=SECONDS, channels=1):
    """[N, channels] noise that becomes a faint tone: of a variable bit rate, the first frames are the largest."""
    t = np.arange(rate * seconds) / rate
    noise = 0.2 * np.random.default_rng(0).standard_normal(len(t)) * (t < seconds / 3)
    wave = noise + 0.05 * np.sin(2 * np.pi * 440 * t)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


def heard(path, data):
    """Seconds of a file with this content, as all readers hear it."""
    path.write_bytes(data)
    wav = load_audio(path, 60)
    streamed = np.concatenate(list(stream_audio(path)))
    assert len(streamed) == pytest.approx(len(wav), abs=2)
    assert decode_all(path).seconds == pytest.approx(len(wav) / 16_000, abs=0.001)
    assert inspect_header(path).seconds in (0, pytest.approx(len(wav) / 16_000, abs=0.1))
    assert np.abs(wav[-16_000:-8_000]).max() > 0.01  # its end is no silence
    return len(wav) / 16_000


# ---- mp3


def vbr_mp3(rate=16_000, channels=1, seconds=SECONDS, tag="1"):
    wave = loud_then_quiet(rate, seconds, channels)
    return encode_av(wave, rate, "libmp3lame", "mp3", quality=2, write_xing=tag, id3v2_version="0")


def patched(data, marker, offset, value):
    at = data.index(marker) + offset
    return data[:at] + value + data[at + len(value) :]


def vbri_mp3():
    """A VBRI tag, as Fraunhofer's encoders write it, in place of LAME's."""
    data = patched(vbr_mp3(), b"Xing", 0, bytes(4))
    return data[:36] + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), 280) + data[54:]


ID3 = b"ID3\4\0\0\0\0\x10\0" + b"\xff\xfb\x90\0" * 512  # a tag in which frames seem to begin
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 4000, 1, 0) + bytes(8 + 4000)

MP3S = {
    "no tag": lambda: vbr_mp3(tag="0"),
    "no tag, 44.1 kHz stereo": lambda: vbr_mp3(44_100, 2, tag="0"),
    "no tag, 8 kHz": lambda: vbr_mp3(8_000, tag="0"),
    "tag of 0 frames": lambda: patched(vbr_mp3(), b"Xing", 8, bytes(8)),
    "tag without numbers": lambda: patched(vbr_mp3(), b"Xing", 7, b"\0"),
    "tag of too few frames": lambda: patched(vbr_mp3(), b"Xing", 8, struct.pack(">I", 20)),
    "VBRI": vbri_mp3,
    "before it an ID3 tag and padding": lambda: ID3 + bytes(3000) + vbr_mp3(tag="0"),
    "behind it an ID3 tag": lambda: vbr_mp3(tag="0") + b"TAG" + b"a" * 125,
    "behind it an APE tag": lambda: vbr_mp3(tag="0") + APE,
    "before it an APE tag": lambda: APE + vbr_mp3(tag="0"),
    "its last frame cut": lambda: vbr_mp3(tag="0")[:-20],
    "constant bit rate, no tag": lambda: encode_av(
        loud_then_quiet(), 16_000, "libmp3lame", "mp3", bitrate=64_000, write_xing="0"
    ),
    "layer II": lambda: encode_av(loud_then_quiet(), 16_000, "mp2", "mp2", bitrate=64_000),
    "in a WAV": lambda: encode_av(loud_then_quiet(), 16_000, "libmp3lame", "wav", bitrate=64_000),
    "in a WAV, variable": lambda: copy_packets([vbr_mp3()], "wav"),
    "in a WAV, 44.1 kHz stereo": lambda: copy_packets([vbr_mp3(44_100, 2)], "wav"),
}


@pytest.mark.parametrize("kind", MP3S)
def test_an_mp3_is_heard_to_its_end_whatever_its_tag_says(tmp_path, kind):
    assert heard(tmp_path / "a.mp3", MP3S[kind]()) == pytest.approx(SECONDS, abs=0.2)


def test_an_mp3_that_was_cut_by_stream_copy_is_heard_to_its_end(tmp_path):
    for tag in "01":
        assert heard(tmp_path / "a.mp3", copy_packets([vbr_mp3()], "mp3", 2, 9, write_xing=tag)) == pytest.approx(
            7, abs=0.2
        )


@pytest.mark.parametrize(
    "between",
    [b"", ID3, b"TAG" + b"a" * 125, APE, APE + b"TAG" + b"a" * 125 + ID3],
    ids=["nothing", "ID3", "old ID3", "APE", "several tags"],
)
@pytest.mark.parametrize("tag", "01")
def test_mp3s_that_were_put_one_behind_the_other_are_all_heard(tmp_path, tag, between):
    data = vbr_mp3(tag=tag) + between + vbr_mp3(tag=tag) + between + vbr_mp3(seconds=5, tag=tag)
    assert heard(tmp_path / "a.mp3", data) == pytest.approx(25, abs=0.6)


def test_mp3s_of_two_rates_one_behind_the_other_are_refused(tmp_path):
    (tmp_path / "a.mp3").write_bytes(vbr_mp3() + vbr_mp3(44_100))
    with pytest.raises(AudioError, match="changes its rate or channels midway"):
        load_audio(tmp_path / "a.mp3")


def test_the_usual_mp3_has_the_same_samples_as_ever(tmp_path):
    for name, mode in (("a", "CONSTANT"), ("b", "VARIABLE")):
        path = tmp_path / f"{name}.mp3"
        soundfile.write(path, loud_then_quiet(), 16_000, bitrate_mode=mode, compression_level=0.3)
        np.testing.assert_allclose(load_audio(path), soundfile.read(path, dtype="float32")[0], rtol=0, atol=2e-7)


# ---- Ogg


def ogg(kind, seconds=SECONDS, rate=16_000, channels=1):
    return encode(loud_then_quiet(rate, seconds, channels), rate, "OGG", kind)


def shifted(data, samples):
    """The pages of a stream that began earlier."""
    pages = []
    for page in ogg_pages(data):
        (position,) = struct.unpack_from("<q", page, 6)
        pages.append(with_checksum(page[:6] + struct.pack("<q", position + samples) + page[14:]) if position else page)
    return b"".join(pages)


def without_last_flag(data):
    *pages, last = ogg_pages(data)
    return b"".join(pages) + with_checksum(last[:5] + bytes([last[5] & ~4]) + last[6:])


OGGS = {
    "cut by stream copy": (lambda kind: copy_packets([ogg(kind)], "ogg", 3, 8), 5),
    "copied": (lambda kind: copy_packets([ogg(kind)], "ogg"), SECONDS),
    "begun at 10^6": (lambda kind: shifted(ogg(kind), 10**6), SECONDS),
    "begun at 10^10": (lambda kind: shifted(ogg(kind), 10**10), SECONDS),
    "without a last page's flag": (lambda kind: without_last_flag(ogg(kind)), SECONDS),
    "chained": (lambda kind: ogg(kind) + ogg(kind, 4), 14),
    "chained with itself": (lambda kind: ogg(kind) * 2, 20),
    "three chained, the last without an end": (
        lambda kind: ogg(kind) + ogg(kind, 4) + without_last_flag(ogg(kind, 3)),
        17,
    ),
    "a tag behind it": (lambda kind: ogg(kind) + b"TAG" + b"a" * 125, SECONDS),
}


@pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("how", OGGS)
def test_an_ogg_file_is_heard_whole_wherever_it_begins_and_however_it_ends(tmp_path, how, kind):
    make, seconds = OGGS[how]
    assert heard(tmp_path / "a.ogg", make(kind)) == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
def test_damage_within_a_chain_is_refused(tmp_path, kind):
    first, second = ogg(kind), ogg(kind, 4)
    pages = list(ogg_pages(second))
    flipped = bytearray(second)
    flipped[-200] ^= 1
    for data in (first + second[:-9], first + flipped, first[:-9] + second, first + b"".join(pages[:2] + pages[3:])):
        (tmp_path / "a.ogg").write_bytes(data)
        for look in (load_audio, decode_all, inspect_header):
            with pytest.raises(AudioError, match=r"(damaged|truncated).* Ogg stream"):
                look(tmp_path / "a.ogg")


def test_chained_streams_of_several_rates_are_refused(tmp_path):
    (tmp_path / "a.ogg").write_bytes(ogg("VORBIS") + ogg("VORBIS", 4, 44_100))
    with pytest.raises(AudioError, match="rates or channels"):
        load_audio(tmp_path / "a.ogg")


# ---- FLAC


def flac(seconds=SECONDS):
    return encode(loud_then_quiet(seconds=seconds), 16_000, "FLAC", "PCM_16")


def test_flac_in_ogg_is_heard(tmp_path):
    data = encode_av(loud_then_quiet(), 16_000, "flac", "ogg")
    assert heard(tmp_path / "a.oga", data) == SECONDS
    (tmp_path / "a.oga").write_bytes(data[:-100])
    with pytest.raises(AudioError, match="truncated"):
        load_audio(tmp_path / "a.oga")


def test_a_flac_with_tags_around_it_is_heard(tmp_path):
    assert heard(tmp_path / "a.flac", ID3 + flac()) == SECONDS
    assert heard(tmp_path / "a.flac", ID3 + flac() + b"TAG" + b"a" * 125) == SECONDS
    assert heard(tmp_path / "a.flac", flac() + b"TAG" + b"a" * 125) == SECONDS
    assert heard(tmp_path / "a.flac", copy_packets([flac()], "flac")) == SECONDS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: copy_packets([flac()], "flac", 3, 8), "truncated: its header says 160000 samples, .* cut or joined"),
        (lambda: copy_packets([flac()], "flac", 0, 5), "truncated: its header says 160000 samples, .* cut or joined"),
        (lambda: copy_packets([flac(), flac()], "flac"), "lying header: it says 160000 samples, and more follow"),
        (lambda: flac() + flac(), "another sound file stands behind it"),
        (lambda: ID3 + flac() + flac(4), "another sound file stands behind it"),
    ],
    ids=["middle", "head", "joined by stream copy", "put together", "put together, tagged"],
)
def test_a_flac_that_holds_not_what_its_header_says_is_refused(tmp_path, make, message):
    (tmp_path / "a.flac").write_bytes(make())
    for look in (load_audio, decode_all):
        with pytest.raises(AudioError, match=message):
            look(tmp_path / "a.flac")


def test_the_usual_flac_has_the_same_samples_as_ever(tmp_path):
    soundfile.write(tmp_path / "a.flac", loud_then_quiet(seconds=40), 16_000)
    np.testing.assert_array_equal(
        load_audio(tmp_path / "a.flac"), soundfile.read(tmp_path / "a.flac", 480_000, dtype="float32")[0]
    )


# ---- WAV and its like


def wav(**header):
    return wav_bytes(loud_then_quiet(), 16_000, "PCM_16", **header)


TAGS = b"LIST\x0e\0\0\0INFOISFT\x02\0\0\0ab"


@pytest.mark.parametrize(
    "data",
    [
        wav(size=0, riff=0), wav(size=0), wav()[:36] + TAGS + wav(size=0)[36:], wav(size=0xFFFFFFFF, riff=0xFFFFFFFF),
        wav(size=0x7FFFF000), wav(riff=3), wav(riff=2**31 - 1), wav() + TAGS, wav() + TAGS[:-4],
        wav() + b"TAG" + b"a" * 125, wav() + bytes(3000),
    ],
    ids=[
        "both sizes 0", "size 0", "size 0 behind tags", "both unknown", "unknown", "RIFF small", "RIFF large", "tags",
        "tags cut", "ID3 tag", "filled up",
    ],
)  # fmt: skip
def test_a_wav_is_heard_whole_whatever_its_sizes_say(tmp_path, data):
    assert heard(tmp_path / "a.wav", data) == SECONDS


def container(kind):
    return encode(loud_then_quiet(), 16_000, kind, "PCM_16")


@pytest.mark.parametrize(
    "data",
    [
        wav(size=32_000), wav(size=32_000, riff=32_036), wav() + wav(), wav() + TAGS + wav(),
        container("AIFF") * 2, patched(container("AIFF"), b"SSND", 4, struct.pack(">I", 32_008)),
        container("AU") * 2, patched(container("AU"), b".snd", 8, struct.pack(">I", 32_000)),
        container("RF64") * 2, container("CAF") * 2, container("NIST") * 2, container("VOC") * 2, container("W64") * 2,
        container("SVX") * 2, container("NIST").replace(b"sample_count -i 160000", b"sample_count -i 150000"),
    ],
    ids=[
        "size small", "sizes small", "two WAVs", "two with tags", "two AIFFs", "AIFF small", "two AUs", "AU small",
        "two RF64s", "two CAFs", "two SPHEREs", "two VOCs", "two W64s", "two SVXs", "SPHERE small",
    ],
)  # fmt: skip
def test_more_samples_than_the_header_says_are_refused_and_not_lost(tmp_path, data):
    (tmp_path / "a.wav").write_bytes(data)
    for look in (load_audio, decode_all, inspect_header):
        with pytest.raises(AudioError, match=r"lying header: .* more follow; write it anew"):
            look(tmp_path / "a.wav")


def test_a_wav_that_was_never_written_is_refused_at_once(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + bytes(10**6))
    with pytest.raises(AudioError):
        load_audio(tmp_path / "a.wav")


def test_an_mp3_in_a_wav_is_refused_when_cut(tmp_path):
    data = MP3S["in a WAV"]()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="truncated"):
        load_audio(tmp_path / "a.wav")


# ---- what libsndfile does not read

RECORDED = {  # codec, container, Hz, channels, options
    "phone.m4a": ("aac", "ipod", 44_100, 1, {}),
    "stereo.m4a": ("aac", "ipod", 44_100, 2, {}),
    "streamed.m4a": ("aac", "mp4", 48_000, 2, {"movflags": "faststart"}),
    "fragmented.mp4": ("aac", "mp4", 16_000, 1, {"movflags": "frag_keyframe+empty_moov"}),
    "lossless.m4a": ("alac", "ipod", 16_000, 1, {}),
    "surround.m4a": ("aac", "ipod", 48_000, 6, {}),
    "a.aac": ("aac", "adts", 44_100, 1, {}),
    "browser.webm": ("libopus", "webm", 48_000, 1, {}),
    "live.webm": ("libopus", "webm", 48_000, 2, {"live": "1"}),
    "a.mka": ("flac", "matroska", 16_000, 1, {}),
    "a.amr": ("libopencore_amrnb", "amr", 8_000, 1, {}),
    "a.3gp": ("libopencore_amrnb", "3gp", 8_000, 1, {}),
    "a.wv": ("wavpack", "wv", 16_000, 1, {}),
    "a.wma": ("wmav2", "asf", 44_100, 1, {}),
    "a.ts": ("aac", "mpegts", 44_100, 1, {}),
    "broadcast.ts": ("mp2", "mpegts", 48_000, 2, {}),
    "disk.m2ts": ("aac", "mpegts", 48_000, 2, {"mpegts_m2ts_mode": "1"}),
    "a.flv": ("aac", "flv", 44_100, 1, {}),
    "old.flv": ("libmp3lame", "flv", 22_050, 1, {}),
    "a.avi": ("pcm_s16le", "avi", 16_000, 1, {}),
    "mp3.avi": ("libmp3lame", "avi", 44_100, 2, {}),
    "a.mpg": ("mp2", "mpeg", 44_100, 1, {}),
    "a.tta": ("tta", "tta", 16_000, 1, {}),
}


@lru_cache
def recorded(name, seconds=SECONDS):
    codec, form, rate, channels, options = RECORDED[name]
    bitrate = {"aac": 96_000, "libopencore_amrnb": 12_200, "wmav2": 128_000}.get(codec, 0)
    return encode_av(loud_then_quiet(rate, seconds, channels), rate, codec, form, bitrate, **options)


@pytest.mark.parametrize("name", RECORDED)
def test_what_phones_and_browsers_record_is_heard(tmp_path, name):
    assert heard(tmp_path / name, recorded(name)) == pytest.approx(SECONDS, abs=0.13)


@pytest.mark.parametrize("name", ["phone.m4a", "browser.webm", "a.wma", "a.wv", "lossless.m4a"])
def test_a_second_decoder_gives_the_samples_that_were_encoded(tmp_path, name):
    (tmp_path / name).write_bytes(recorded(name))
    (tmp_path / "a.wav").write_bytes(wav_bytes(loud_then_quiet(), 16_000, "FLOAT"))
    wav = load_audio(tmp_path / name)
    tone = slice(5 * 16_000, 9 * 16_000)  # noise is not what a codec keeps
    power = np.sqrt(2 * np.mean(wav[tone] ** 2))
    assert power == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("name", ["phone.m4a", "browser.webm", "a.amr"])
def test_of_what_is_long_the_first_30_seconds_are_heard(tmp_path, name):
    (tmp_path / name).write_bytes(recorded(name, 40))
    assert len(load_audio(tmp_path / name)) == 480_000
    assert decode_all(tmp_path / name).seconds == pytest.approx(40, abs=0.13)


AMR_WB_BYTES = (17, 23, 32, 36, 40, 46, 50, 58, 60)  # of a frame in each mode


def amr_wb(mode, seconds=SECONDS):
    """AMR-WB whose speech is chance: PyAV has no encoder of it."""
    rng, head = np.random.default_rng(0), bytes([mode << 3 | 4])
    return b"#!AMR-WB\n" + b"".join(head + rng.bytes(AMR_WB_BYTES[mode]) for _ in range(50 * seconds))


@pytest.mark.parametrize(("mode", "name"), [(0, "a.awb"), (2, "a.amr"), (8, "a.wav")])
def test_wideband_amr_is_heard_whatever_it_is_called(tmp_path, mode, name):
    assert heard(tmp_path / name, amr_wb(mode)) == SECONDS
    assert decode_all(tmp_path / name).rate == 16_000


@pytest.mark.parametrize(
    "data", [amr_wb(2)[:-9], b"#!AMR-WB_MC1.0\n" + amr_wb(2)[9:], amr_wb(2) * 2], ids=["cut", "channels", "two"]
)
def test_wideband_amr_that_is_not_whole_is_refused(tmp_path, data):
    (tmp_path / "a.awb").write_bytes(data)
    for look in (load_audio, decode_all):
        with pytest.raises(AudioError, match="undecodable: FFmpeg says"):
            look(tmp_path / "a.awb")


def test_apples_containers_are_heard_with_codecs_that_libsndfile_does_not_read(tmp_path):
    data = encode_av(loud_then_quiet(), 16_000, "alac", "caf")
    assert heard(tmp_path / "a.caf", data) == pytest.approx(SECONDS, abs=0.13)
    (tmp_path / "a.caf").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="truncated"):
        load_audio(tmp_path / "a.caf")


def until_its_end(name):
    """An MP4 as a recorder leaves it that did not come back to write how long its samples are."""
    data = recorded(name)
    at = data.index(b"mdat") - 4
    return data[:at] + bytes(4) + data[at + 4 :]


@pytest.mark.parametrize("between", [b"", b"\0", bytes(8), bytes(100), b"no box, no part", b"\0\0\0\x10free"])
@pytest.mark.parametrize("name", ["phone.m4a", "streamed.m4a", "fragmented.mp4", "a.3gp", "a.wma", "a.flv", "a.tta"])
def test_of_two_files_one_behind_the_other_the_second_is_not_lost_in_silence(tmp_path, name, between):
    other = recorded(name if name in ("a.wma", "a.flv", "a.tta") else "stereo.m4a")
    first = until_its_end(name) if name == "streamed.m4a" else recorded(name)
    assert heard(tmp_path / name, first) == pytest.approx(SECONDS, abs=0.13)
    for data in (recorded(name) + between + recorded(name), first + between + other):
        (tmp_path / name).write_bytes(data)
        for look in (load_audio, decode_all, inspect_header):
            with pytest.raises(AudioError, match="several files one behind the other"):
                look(tmp_path / name)


@pytest.mark.parametrize("name", ["browser.webm", "live.webm", "a.mka", "a.aac", "a.ts", "a.mpg", "a.avi"])
def test_of_two_files_one_behind_the_other_both_are_heard_where_the_format_allows_it(tmp_path, name):
    (tmp_path / name).write_bytes(recorded(name) * 2)
    assert decode_all(tmp_path / name).seconds == pytest.approx(2 * SECONDS, abs=0.26)


ITEM = b"\4\0\0\0" + bytes(4) + b"Title\0abcd"


def ape_tag(has_head):
    """An APE tag as programs put it behind their WavPack files."""
    part = struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(ITEM) + 32, 1, has_head << 31)
    return (struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(ITEM) + 32, 1, 5 << 29) if has_head else b"") + ITEM + part


@pytest.mark.parametrize(
    "tags",
    [ape_tag(has_head=1), ape_tag(has_head=0), b"TAG" + bytes(125), ape_tag(has_head=1) + b"TAG" + bytes(125)],
    ids=["APE", "APE without head", "ID3", "both"],
)
def test_a_wavpack_with_tags_behind_it_is_whole(tmp_path, tags):
    without = recorded("a.wv").partition(b"APETAGEX")[0]
    assert heard(tmp_path / "a.wv", without + tags) == SECONDS


@pytest.mark.parametrize("behind", ["junk", "another"])
def test_what_is_no_tag_behind_a_wavpack_is_told(tmp_path, behind):
    data = recorded("a.wv") + (recorded("a.wv") if behind == "another" else bytes(5000))
    (tmp_path / "a.wv").write_bytes(data)
    with pytest.raises(AudioError, match="undecodable"):
        decode_all(tmp_path / "a.wv")


def test_the_name_does_not_matter(tmp_path):
    assert heard(tmp_path / "a.wav", recorded("phone.m4a")) == pytest.approx(SECONDS, abs=0.13)


UNSEEN = {("zeros", "a.3gp")}  # which are silence


@pytest.mark.parametrize(
    ("damage", "name"),
    [(damage, name) for damage in ("cut", "zeros", "noise") for name in RECORDED if (damage, name) not in UNSEEN],
)
def test_damage_is_refused_by_the_second_decoder_too(tmp_path, damage, name):
    data = recorded(name)
    start, end = int(0.4 * len(data)) + 1, int(0.7 * len(data))
    within = {"zeros": bytes(end - start), "noise": np.random.default_rng(0).bytes(end - start)}
    (tmp_path / name).write_bytes(data[:end] if damage == "cut" else data[:start] + within[damage] + data[end:])
    for look in (load_audio, decode_all):
        with pytest.raises(AudioError, match=r"undecodable|truncated|damaged|not finite|scale"):
            look(tmp_path / name)


def packets_of(wma):
    """The bytes of each packet of a wma."""
    start = int.from_bytes(wma[16:24], "little")
    size, n = (int.from_bytes(wma[start + at : start + at + 8], "little") for at in (16, 40))
    first, each = start + 50, (size - 50) // n
    return [range(first + i * each, first + (i + 1) * each) for i in range(n)]


@pytest.mark.parametrize(
    "index", [b"", bytes.fromhex("90080033b1e5cf1189f400a0c90349cb") + struct.pack("<Q4976x", 5000)]
)
@pytest.mark.parametrize("damage", ["lost", "twice", "cut", "cut in one"])
def test_a_wma_whose_packets_are_not_those_that_its_header_says_is_refused(tmp_path, damage, index):
    data = recorded("a.wma")
    assert heard(tmp_path / "a.wma", data + index) == pytest.approx(SECONDS, abs=0.13)
    one = packets_of(data)[len(packets_of(data)) // 2]
    rest = {
        "lost": data[one.stop :] + index,
        "twice": data[one.start :] + index,
        "cut": b"",
        "cut in one": data[one.start :][:9],
    }
    (tmp_path / "a.wma").write_bytes(data[: one.stop if damage == "twice" else one.start] + rest[damage])
    for look in (load_audio, decode_all, inspect_header):
        with pytest.raises(AudioError, match=r"truncated|lying header"):
            look(tmp_path / "a.wma")


def test_of_a_live_wma_what_is_there_is_heard(tmp_path):
    data = recorded("a.wma")
    start = int.from_bytes(data[16:24], "little")
    live = data[: start + 16] + struct.pack("<Q", 50) + data[start + 24 :]
    assert heard(tmp_path / "a.wma", live) == pytest.approx(SECONDS, abs=0.13)


@pytest.mark.parametrize(("rate", "bitrate"), [(16_000, 24_000), (22_050, 32_000), (44_100, 48_000)])
def test_a_packet_of_zeros_in_a_wma_is_noticed(tmp_path, rate, bitrate):
    data = encode_av(loud_then_quiet(rate), rate, "wmav2", "asf", bitrate)
    assert heard(tmp_path / "a.wma", data) == pytest.approx(SECONDS, abs=0.13)
    one = packets_of(data)[3]
    (tmp_path / "a.wma").write_bytes(data[: one.start] + bytes(len(one)) + data[one.stop :])
    with pytest.raises(AudioError, match="nothing can be decoded from"):
        decode_all(tmp_path / "a.wma")


FILMS = {  # sound, container, codec of the pictures
    "a.webm": ("browser.webm", "webm", "libvpx", {}),
    "live.webm": ("browser.webm", "webm", "libvpx", {"live": "1"}),
    "a.mkv": ("stereo.m4a", "matroska", "mpeg4", {}),
    "a.mp4": ("stereo.m4a", "mp4", "mpeg4", {}),
    "a.flv": ("old.flv", "flv", "flv", {}),
    "a.avi": ("mp3.avi", "avi", "mpeg4", {}),
    "a.vob": ("broadcast.ts", "vob", "mpeg2video", {}),
    "a.ts": ("broadcast.ts", "mpegts", "mpeg2video", {}),
}


@pytest.mark.parametrize("name", FILMS)
def test_the_sound_of_a_film_is_heard_whole_and_a_cut_film_is_refused(tmp_path, name):
    sound, container, codec, options = FILMS[name]
    data = with_pictures(recorded(sound), container, codec, **options)
    assert heard(tmp_path / name, data) == pytest.approx(SECONDS, abs=0.13)
    for share in (0.4, 0.6, 0.95):
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        for look in (load_audio, decode_all):
            with pytest.raises(AudioError, match=r"undecodable|truncated"):
                look(tmp_path / name)


@pytest.mark.parametrize("name", ["a.ts", "broadcast.ts", "disk.m2ts"])
def test_a_stream_that_ends_between_packets_is_refused_where_its_last_part_is_not_whole(tmp_path, name):
    data, size = recorded(name), 192 if name == "disk.m2ts" else 188
    within = [n for n in range(50, 250) if not data[n * size + size - 188 + 1] & 0x40]  # none begins there
    for n in within[:: len(within) // 8]:
        (tmp_path / name).write_bytes(data[: n * size])
        for look in (load_audio, decode_all):
            with pytest.raises(AudioError, match=r"undecodable|truncated"):
                look(tmp_path / name)


def test_an_mp4_whose_time_goes_back_is_refused_and_not_heard_in_part(tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "2000000"}
    data = encode_av(loud_then_quiet(), 16_000, "aac", "mp4", **options)
    first, second, third, *_, last = (place.start() - 4 for place in re.finditer(rb"moof|mfra", data))
    assert heard(tmp_path / "a.mp4", data) == heard(tmp_path / "a.mp4", data[:last]) == pytest.approx(SECONDS, abs=0.13)
    for wrong in (data + data[first:], data[:last] + data[third:], data[:third] + data[second:], data[:last] * 2):
        (tmp_path / "a.mp4").write_bytes(wrong)
        for look in (load_audio, decode_all, inspect_header):
            with pytest.raises(AudioError, match=r"begin before those in front of them|several files"):
                look(tmp_path / "a.mp4")


@pytest.mark.parametrize("head", [b"\x0b\x77", b".RMF", b"nut/multimedia", b"MAC \x96\x0f", b"MPCK", b"tBaK"])
def test_of_a_kind_that_no_decoder_here_hears_the_way_to_convert_is_told(tmp_path, head):
    (tmp_path / "my clip.wav").write_bytes(head + np.random.default_rng(0).bytes(5000))
    for look in (load_audio, decode_all, inspect_header):
        with pytest.raises(AudioError, match=r"undecodable: .* ffmpeg -i '.*/my clip\.wav' '.*/my clip\.flac'"):
            look(tmp_path / "my clip.wav")


def test_a_codec_that_nobody_knows_is_told(tmp_path):
    soundfile.write(tmp_path / "a.caf", loud_then_quiet(), 16_000, "PCM_16")
    (tmp_path / "a.caf").write_bytes((tmp_path / "a.caf").read_bytes().replace(b"lpcm", b"abcd"))
    with pytest.raises(AudioError, match="undecodable"):
        load_audio(tmp_path / "a.caf")


def test_a_video_without_sound_and_a_file_without_content_are_refused(tmp_path):
    for data in (b"\0\0\0\x20ftypM4A " + bytes(200), b"#!AMR\n", b"\x1a\x45\xdf\xa3" + bytes(50), b"OggS" + bytes(40)):
        (tmp_path / "a.m4a").write_bytes(data)
        for look in (load_audio, decode_all, inspect_header):
            with pytest.raises(AudioError):
                look(tmp_path / "a.m4a")


def test_a_file_that_leads_to_a_place_before_its_beginning_is_damaged_and_no_error_of_the_system():
    with ffmpeg._File(__file__) as file:
        assert file.seek(-5) == -1
        assert file.seek(-5, os.SEEK_END) > 0


def test_without_the_second_decoder_the_way_to_convert_is_told(tmp_path):
    (tmp_path / "my clip.m4a").write_bytes(recorded("phone.m4a"))
    (tmp_path / "a.opus").write_bytes(ogg("OPUS") * 2)
    (tmp_path / "a.flac").write_bytes(flac())
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from salmonn.audio.decode import AudioError, load_audio\n"
        "print(len(load_audio(sys.argv[1])))\n"
        "for path in sys.argv[2:]:\n"
        "    try: load_audio(path)\n"
        "    except AudioError as error: print(error)\n"
    )
    (tmp_path / "b.flac").write_bytes(recorded("a.ts"))
    files = [str(tmp_path / name) for name in ("a.flac", "my clip.m4a", "a.opus", "b.flac")]
    out = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert out[0] == "160000"
    assert f"ffmpeg -i '{tmp_path}/my clip.m4a' '{tmp_path}/my clip.flac'" in out[1]
    assert f"ffmpeg -i {tmp_path}/a.opus {tmp_path}/a.flac" in out[2]
    assert f"ffmpeg -i {tmp_path}/b.flac {tmp_path}/b.wav" in out[3]  # not over itself
    assert all("pip install av" in line and ": unreadable: " in line for line in out[1:])


# ---- what lies beside it

APPLE_DOUBLE = struct.pack(">II16xH", 0x51607, 0x20000, 2) + struct.pack(">IIIIII", 9, 50, 32, 2, 82, 286) + bytes(286)


@pytest.mark.parametrize("beside", ["._{}", ".AppleDouble/{}", ".DS_Store"])
@pytest.mark.parametrize("kind", ["libsndfile's own", "no tag", "its last frame cut", "flac", "wav"])
def test_what_a_mac_leaves_beside_a_file_does_not_matter(tmp_path, kind, beside):
    made = {"libsndfile's own": lambda: encode(loud_then_quiet(), 16_000, "MP3", "MPEG_LAYER_III"), "flac": flac}
    made["wav"] = lambda: wav_bytes(loud_then_quiet(), 16_000, "PCM_16")
    data = (made | MP3S)[kind]()
    alone = heard(tmp_path / "a", data)
    stray = tmp_path / beside.format("b")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(APPLE_DOUBLE)
    assert heard(tmp_path / "b", data) == alone


# ---- trouble that is no damage


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.m4a"])
def test_an_error_of_the_system_is_told_as_such(tmp_path, monkeypatch, name):
    data = {"a.flac": flac(), "a.mp3": vbr_mp3(tag="0"), "a.m4a": recorded("phone.m4a")}[name]
    (tmp_path / name).write_bytes(data)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if name == "a.m4a":
        monkeypatch.setattr(ffmpeg._File, "readinto", fail, raising=False)
        monkeypatch.setattr(ffmpeg._File, "read", fail, raising=False)
    else:
        monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(AudioError, match=r"unreadable: Input/output error"):
        load_audio(tmp_path / name)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_flipped_bit_before_the_length_tag_of_an_mp3_takes_nothing_away(tmp_path, channels):
    wav = np.stack([0.3 * np.sin(np.arange(48_000) / 7)] * channels, 1)
    soundfile.write(tmp_path / "a.mp3", wav, 16_000)
    content = (tmp_path / "a.mp3").read_bytes()
    whole = decode_all(tmp_path / "a.mp3").seconds
    for at in range(4, 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "a.mp3").write_bytes(damaged)
        try:
            assert decode_all(tmp_path / "a.mp3").seconds >= whole - 0.05, at
        except AudioError:
            continue


# ---- files of different kinds one behind the other


BY_FFMPEG = {"m4a": ("aac", "mp4"), "aac": ("aac", "adts"), "mka": ("flac", "matroska"), "wv": ("wavpack", "wv")}
HEARD_ON = {(kind, kind) for kind in ("mp3", "ogg", "opus", "mka")}  # into the next of their kind
WITHOUT_HEAD = {("flac", "aac")}  # to be known by: what is behind a FLAC is looked for, its place is not known


@lru_cache
def file_of(kind):
    wave = loud_then_quiet(seconds=2)
    if kind == "mp3":
        return vbr_mp3(seconds=2)
    if kind in BY_FFMPEG:
        return encode_av(wave, 16_000, *BY_FFMPEG[kind])
    return encode(
        wave, 16_000, *{"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}.get(kind, (kind.upper(), "PCM_16"))
    )


@pytest.mark.parametrize("first", ["mp3", "ogg", "opus", "flac", "m4a", "mka"])
def test_a_file_with_another_behind_it_is_heard_whole_or_refused(tmp_path, first):
    assert heard(tmp_path / "a", file_of(first)) == pytest.approx(2, abs=0.2)
    for second in ("wav", "aac", "aiff", "au", "caf", "flac", "ogg", "m4a", "mka", "wv", first):
        (tmp_path / "a").write_bytes(file_of(first) + file_of(second))
        if (first, second) in HEARD_ON:
            assert decode_all(tmp_path / "a").seconds == pytest.approx(4, abs=0.4)
        elif (first, second) not in WITHOUT_HEAD:
            with pytest.raises(AudioError):
                decode_all(tmp_path / "a")


@pytest.mark.parametrize("between", [b"TAG" + b"a" * 125, bytes(900), APE], ids=["tag", "zeros", "APE"])
@pytest.mark.parametrize("cut", [0, 20])
def test_a_wav_behind_an_mp3_is_not_passed_over_where_that_is_cut_or_something_stands_between(tmp_path, between, cut):
    mp3 = vbr_mp3(tag="0")
    (tmp_path / "a").write_bytes(mp3[: len(mp3) - cut] + between + file_of("wav"))
    with pytest.raises(AudioError, match="another sound file stands behind it"):
        decode_all(tmp_path / "a")


def test_looking_for_another_file_in_the_gaps_of_an_mp3_takes_time_by_its_length(tmp_path, monkeypatch):
    data, at, parts = vbr_mp3(tag="0"), 0, []
    while at < len(data):
        size = _header(data[at : at + 4]).size
        parts.append(data[at : at + size])
        at += size
    torn = b"".join(b"junk".join(parts[i : i + 3]) if i % 2 else b"".join(parts[i : i + 3]) for i in range(len(parts)))
    (tmp_path / "a").write_bytes(data + torn * 8)
    search, looked_at = Bytes.search, []

    def counted(self, pattern, size, position=0, stop=None):
        found = search(self, pattern, size, position, stop)
        looked_at.append((found if found >= 0 else stop or len(self)) - position)
        return found

    monkeypatch.setattr(Bytes, "search", counted)
    with (tmp_path / "a").open("rb") as file:
        assert read_mp3(Bytes(file)).frames > 5 * len(parts)
    assert 0 < sum(looked_at) < 2 * (tmp_path / "a").stat().st_size  # not each gap up to the end


def with_foreign_metadata(flac):
    """With the head of the WAV that it was made of: flac --keep-foreign-metadata."""
    wav = file_of("wav")
    blocks = b"".join(b"\2" + (4 + len(part)).to_bytes(3) + b"riff" + part for part in (wav[:12], wav[12:36]))
    return (
        flac[:4]
        + bytes([flac[4] & 0x7F])
        + flac[5:42]
        + blocks
        + (flac[42:] if flac[4] < 0x80 else b"\x81\0\0\0" + flac[42:])
    )


@pytest.mark.parametrize("behind", [b"", bytes(1000), b"ID3\4\0\0\0\0\0\x7f" + bytes(127)], ids=["", "zeros", "ID3"])
def test_the_head_of_a_wav_in_the_metadata_of_a_flac_is_no_other_file(tmp_path, behind):
    assert heard(tmp_path / "a", with_foreign_metadata(file_of("flac")) + behind) == pytest.approx(2, abs=0.01)
    (tmp_path / "a").write_bytes(with_foreign_metadata(file_of("flac")) + behind + file_of("wav"))
    with pytest.raises(AudioError, match="another sound file stands behind it"):
        decode_all(tmp_path / "a")


def test_xmp_behind_a_wma_is_heard_over(tmp_path):
    xmp = bytes.fromhex("cbcf7abea997e8429c71999491e3afac") + struct.pack("<Q4000x", 4024)
    assert heard(tmp_path / "a.wma", recorded("a.wma") + xmp) == pytest.approx(SECONDS, abs=0.13)


@pytest.mark.parametrize("first", ["ogg", "opus", "flac", "m4a", "mka"])
def test_tags_behind_a_file_are_no_other_file(tmp_path, first):
    for tag in (b"TAG" + b"a" * 125, b"ID3\4\0\0\0\0\0\x7f" + bytes(127), APE, b"\0" * 77):
        if first != "mka" or tag[:1] == b"\0":  # to the second decoder a tag behind a Matroska is damage
            assert heard(tmp_path / "a", file_of(first) + tag) == pytest.approx(2, abs=0.2)
