"""What a header promises is there, in any container and with the checksum that it gives, or the file is refused."""

import io
import struct

import av
import numpy as np
import pytest

from salmonn.audio.decode import AudioError, decode_all, inspect_header, load_audio
from tests.fixtures.encoders import encode_av
from tests.fixtures.whole_media import encode, header_end, sound, wav_bytes

NOISE = sound(np.random.default_rng(0), 16_000, 1)
READERS = (load_audio, decode_all, inspect_header)


def refusals(path, data, readers=READERS):
    """What each reader says against a file with this content; a test fails where one takes it."""
    path.write_bytes(data)
    said = []
    for look in readers:
        with pytest.raises(AudioError) as error:
            look(path)
        said.append(error.value.reason)
    return said


def is_taken(path, data):
    path.write_bytes(data)
    return len(load_audio(path)) == decode_all(path).frames == len(NOISE)


# ---- cut

CONTAINERS = [
    (container, subtype)
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "VOC", "SVX")
    for subtype in ("PCM_16", "ULAW")
    if (container, subtype) not in (("SVX", "ULAW"), ("W64", "ULAW"), ("VOC", "ULAW"))
] + [
    ("WAV", "IMA_ADPCM"),
    ("WAV", "GSM610"),
    ("W64", "MS_ADPCM"),
    ("AU", "G721_32"),
    ("AIFF", "DWVW_16"),
    ("CAF", "ALAC_16"),
]


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_a_cut_file_is_refused_by_its_header_in_any_container(tmp_path, container, subtype):
    data = encode(NOISE, 16_000, container, subtype)
    (tmp_path / "a").write_bytes(data)
    assert len(load_audio(tmp_path / "a")) == pytest.approx(len(NOISE), abs=1100)  # some codecs fill their last block
    start = 4200 if (container, subtype) != ("CAF", "ALAC_16") else 200
    for end in (start, int(0.6 * len(data)), int(0.95 * len(data)), len(data) - 1500):
        if container == "CAF" and subtype.startswith("ALAC") and end > 0.9 * len(data):
            continue  # behind the samples stands a table
        assert all("truncated" in reason for reason in refusals(tmp_path / "a", data[:end]))


@pytest.mark.parametrize(
    "fields",
    [
        b"sample_rate -i 8000\nchannel_count -i 2\nsample_n_bytes -i 1\nsample_coding -s5 mu-law\n",
        b"sample_rate -i 16000\nchannel_count -i 1\nsample_n_bytes -i 2\nsample_byte_format -s2 01\n",
        b"sample_rate -i 16000\nchannel_count -i 2\nsample_n_bytes -i 2\nsample_byte_format -s2 10\n"
        b"sample_coding -s3 pcm\n",
    ],
    ids=["telephone", "TIMIT", "two channels"],
)
def test_a_sphere_file_holds_as_many_samples_as_its_header_counts(tmp_path, fields):
    n, size = 4000, 1 if b"mu-law" in fields else 2
    size *= 2 if b"channel_count -i 2" in fields else 1
    header = b"NIST_1A\n   1024\nspeaker_id -s3 abc\nsample_count -i 4000\n" + fields + b"end_head\n"
    samples = np.random.default_rng(0).integers(0, 200, n * size, dtype=np.uint8).tobytes()
    whole = header.ljust(1024, b" ") + samples
    (tmp_path / "a.sph").write_bytes(whole)
    assert decode_all(tmp_path / "a.sph").frames == n
    for cut in (whole[:-size], whole[:1100], whole[:-3000]):
        assert all("truncated" in reason for reason in refusals(tmp_path / "a.sph", cut))


@pytest.mark.parametrize("container", ["IRCAM", "PAF", "PVF", "MPC2K", "AVR", "MAT4", "MAT5"])
def test_containers_that_do_not_tell_their_length_are_refused_with_what_to_do(tmp_path, container):
    data = encode(NOISE, 16_000, container, "PCM_16")
    for content in (data, data[: len(data) // 2]):
        for reason in refusals(tmp_path / "a", content):
            assert "does not tell its length" in reason
            assert "make a WAV or FLAC of it" in reason


@pytest.mark.parametrize("n", [3, 100, 3000])
def test_a_cut_wav_is_refused_however_many_chunks_stand_before_its_samples(tmp_path, n):
    wav = wav_bytes(NOISE, 16_000, "PCM_16")
    chunks = b"".join(b"ch%02d\x06\0\0\0abcdef" % (i % 100) for i in range(n))
    data = wav[:36] + chunks + wav[36:]
    assert is_taken(tmp_path / "a.wav", data)
    for end in (len(data) - 2, len(data) - len(NOISE)):
        assert all("truncated" in reason for reason in refusals(tmp_path / "a.wav", data[:end]))


@pytest.mark.parametrize(("size", "is_promise"), [
    (3_000_000_000, True), (2_200_000_000, True), (4_200_000_000, True), (2_000_000_000, True),
    (0xFFFFFFFF, False), (0x7FFFFFFF, False), (0x7FFFF000, False), (0x80000000, False), (0xFFFFFFFF - 44, False),
])  # fmt: skip
def test_a_header_of_gigabytes_is_a_promise_and_only_the_sizes_of_streams_are_none(tmp_path, size, is_promise):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(NOISE, 16_000, "PCM_16", size=size, riff=min(size + 36, 0xFFFFFFFF)))
    with path.open("r+b") as file:
        file.truncate(1_000_000_000)  # takes no room
    for look in (load_audio, inspect_header):
        if is_promise:
            with pytest.raises(AudioError, match="truncated"):
                look(path)
        else:
            look(path)


# ---- FLAC: frames that are whole, but not those that were written


def flac(subtype="PCM_16", channels=1, rate=16_000):
    return encode(np.repeat(NOISE, channels, 1) * 0.9, rate, "FLAC", subtype)


def with_frames(data, change):
    """The file with its frames put together in another way."""
    with av.open(io.BytesIO(data)) as file:
        frames = [bytes(packet) for packet in file.demux() if packet.size]
    return data[: header_end(data, "flac")] + b"".join(change(frames))


FRAMES = {
    "one missing": lambda frames: frames[:2] + frames[3:],
    "most missing": lambda frames: [frames[0], frames[-1]],
    "swapped": lambda frames: [frames[0], frames[2], frames[1], *frames[3:]],
    "reversed": lambda frames: [*frames[-2::-1], frames[-1]],
    "one twice": lambda frames: [*frames[:2], frames[1], *frames[2:]],
    "one in the place of another": lambda frames: [*frames[:2], frames[1], *frames[3:]],
    "first missing": lambda frames: frames[1:],
}


@pytest.mark.parametrize(("subtype", "channels"), [("PCM_16", 1), ("PCM_24", 1), ("PCM_S8", 1), ("PCM_16", 2)])
def test_a_flac_of_other_frames_than_were_written_is_refused_and_a_whole_one_is_not(tmp_path, subtype, channels):
    data = flac(subtype, channels)
    assert is_taken(tmp_path / "a.flac", with_frames(data, list))
    for change in FRAMES.values():
        refusals(tmp_path / "a.flac", with_frames(data, change), (load_audio, decode_all))


def test_samples_of_another_checksum_are_refused_and_no_checksum_is_none(tmp_path):
    data = flac()
    other = data[:26] + bytes([data[26] ^ 1]) + data[27:]
    for reason in refusals(tmp_path / "a.flac", other, (load_audio, decode_all)):
        assert "checksum (MD5)" in reason
    assert is_taken(tmp_path / "a.flac", data[:26] + bytes(16) + data[42:])
    no_length = data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + other[26:]
    refusals(tmp_path / "a.flac", no_length, (load_audio, decode_all))


AIFFS = ("PCM_16", "PCM_24", "PCM_S8", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")


def counting(data, frames):
    """An AIFF whose header counts so many frames."""
    at = data.index(b"COMM") + 10
    return data[:at] + struct.pack(">I", frames) + data[at + 4 :]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", AIFFS)
def test_an_aiff_that_counts_more_frames_than_there_are_is_refused(tmp_path, subtype, channels):
    data = encode(np.repeat(NOISE, channels, 1), 16_000, "AIFF", subtype)
    (frames,) = struct.unpack_from(">I", data, data.index(b"COMM") + 10)
    (tmp_path / "a.aiff").write_bytes(data)
    whole = len(load_audio(tmp_path / "a.aiff"))
    for more in (2 * frames + 1, 10 * frames, 0xFFFFFFFF):
        assert all("truncated: its header says" in said for said in refusals(tmp_path / "a.aiff", counting(data, more)))
    (tmp_path / "a.aiff").write_bytes(counting(data, 0))  # of a recorder that was stopped
    assert len(load_audio(tmp_path / "a.aiff")) == whole


def test_what_an_aiff_counts_is_found_behind_its_samples_and_one_frame_matters(tmp_path):
    data = encode(NOISE, 16_000, "AIFF", "PCM_16")
    assert is_taken(tmp_path / "a.aiff", counting(data, len(NOISE)))
    behind = data[:12] + data[38:] + data[12:38]  # as the standard has it, chunks come in any order
    assert is_taken(tmp_path / "a.aiff", behind)
    for whole in (data, behind):
        for said in refusals(tmp_path / "a.aiff", counting(whole, len(NOISE) + 1)):
            assert said == f"truncated: its header says {len(NOISE) + 1} frames, and its samples are {len(NOISE)}"


def test_an_avi_goes_on_in_others_and_is_refused_when_cut(tmp_path):
    data = encode_av(NOISE, 16_000, "pcm_s16le", "avi")
    assert is_taken(tmp_path / "a.avi", data)
    assert is_taken(tmp_path / "a.avi", data + b"RIFF\x04\0\0\0AVIX")
    for cut in (data[:-50], data[:-2000], data[: len(data) // 2], data + b"RIFF\x04\1\0\0AVIXabcd\x09\0\0\0"):
        assert all("truncated" in said for said in refusals(tmp_path / "a.avi", cut))


def test_a_voc_of_several_blocks_is_followed_to_its_last(tmp_path):
    samples = np.random.default_rng(0).integers(100, 150, 8000, dtype=np.uint8).tobytes()
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x10A, 0x1129)
    block = b"\1" + (2 + len(samples)).to_bytes(3, "little") + bytes([256 - 1_000_000 // 16_000, 0]) + samples
    for end in (-1, -3000, -8000):
        assert all("truncated" in reason for reason in refusals(tmp_path / "a.voc", (head + block)[:end]))
