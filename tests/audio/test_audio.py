"""Any readable file becomes channel 0 at 16 kHz, 1 to `max_seconds` long."""

import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile

from salmonn.audio.decode import AudioError, decode_all, load_audio, load_clip, share_time
from salmonn.data.annotations import Annotations


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def sweep(seconds: float, rate: int) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (50 * t + (7000 - 50) / (2 * seconds) * t**2))


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_resampling_agrees_with_librosa_within_60_db(tmp_path, rate):
    source = sweep(2.0, rate) if rate > 16_000 else tone(2.0, rate)
    soundfile.write(tmp_path / "a.wav", source, rate, subtype="FLOAT")
    expected = librosa.resample(source.astype(np.float32), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    actual = load_audio(tmp_path / "a.wav")
    n = min(len(actual), len(expected))
    assert abs(len(actual) - len(expected)) <= 1
    error = actual[:n] - expected[:n]
    assert np.mean(error**2) < 1e-6 * np.mean(expected**2)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "ALAW", 0.03),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats_decode_to_the_same_samples(tmp_path, name, subtype, tolerance):
    source = tone(1.5, 16_000)
    soundfile.write(tmp_path / name, source, 16_000, subtype=subtype)
    wav = load_audio(tmp_path / name)
    assert wav.dtype == np.float32
    np.testing.assert_allclose(wav[2000:20_000], source[2000:20_000], atol=tolerance)


def test_channel_0_is_taken(tmp_path):
    left, right = tone(1.0, 16_000, 300), tone(1.0, 16_000, 900)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), left, atol=1e-6)


def test_only_the_head_is_read_and_equals_the_head_of_the_whole(tmp_path):
    source = sweep(6.0, 44_100)
    soundfile.write(tmp_path / "a.wav", source, 44_100, subtype="FLOAT")
    head, whole = load_audio(tmp_path / "a.wav", 2.0), load_audio(tmp_path / "a.wav")
    assert len(head) == 32_000
    np.testing.assert_allclose(head, whole[:32_000], atol=1e-4)


def test_short_clips_are_padded_to_one_second_and_long_ones_cut(tmp_path):
    soundfile.write(tmp_path / "short.wav", tone(0.25, 16_000), 16_000)
    soundfile.write(tmp_path / "long.wav", tone(4.0, 16_000), 16_000)
    short = load_clip([tmp_path / "short.wav"])
    assert len(short) == 16_000
    assert not short[4000:].any()
    assert len(load_clip([tmp_path / "long.wav"], max_seconds=3.0)) == 48_000


def test_expand_wav_clips_come_at_their_own_rate_after_a_tenth_of_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 16_000, 300), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", tone(1.0, 48_000, 600), 48_000, subtype="FLOAT")
    joined = load_clip([tmp_path / "a.wav", tmp_path / "b.wav"])
    assert len(joined) == 16_000 + 1_600 + 16_000
    assert not joined[16_000:17_600].any()
    np.testing.assert_allclose(joined[18_000:33_000], tone(1.0, 16_000, 600)[400:15_400], atol=1e-3)


def broken_files(folder):
    good = tone(1.0, 16_000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio " * 50)
    (folder / "folder.flac").mkdir()
    soundfile.write(folder / "nosamples.wav", good[:0], 16_000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16_000) == 5, np.nan, good), 16_000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", good, 16_000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:40])
    (folder / "link.wav").symlink_to(folder / "gone.wav")


@pytest.mark.parametrize(
    "name",
    ["empty.wav", "text.wav", "folder.flac", "nosamples.wav", "nan.wav", "cut.flac", "link.wav", "absent.wav"],
)
def test_unusable_files_raise_one_error_that_names_file_and_reason(tmp_path, name):
    broken_files(tmp_path)
    with pytest.raises(AudioError) as error:
        load_audio(tmp_path / name)
    assert error.value.path == str(tmp_path / name)
    assert error.value.reason


def test_the_mean_of_the_channels_is_an_option(tmp_path):
    left, right = tone(1.0, 16_000, 300), tone(1.0, 16_000, 900)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right, 0 * left], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", channel="mean"), (left + right) / 3, atol=1e-6)


def test_of_a_pair_beyond_the_limit_the_head_is_kept_or_the_time_is_shared(tmp_path):
    for name, hertz in (("a", 300), ("b", 900)):
        soundfile.write(tmp_path / f"{name}.wav", tone(4.0, 16_000, hertz), 16_000, subtype="FLOAT")
    pair = [tmp_path / "a.wav", tmp_path / "b.wav"]
    head = load_clip(pair, max_seconds=4.1)
    np.testing.assert_allclose(head[:64_000], tone(4.0, 16_000, 300), atol=1e-6)
    assert not head[64_000:].any()  # nothing of the second clip, as published
    shared = load_clip(pair, max_seconds=4.1, expand_cut="share")
    np.testing.assert_allclose(shared[:32_000], tone(2.0, 16_000, 300), atol=1e-6)
    assert not shared[32_000:33_600].any()
    np.testing.assert_allclose(shared[33_600:], tone(2.0, 16_000, 900), atol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "limit", "shares"),
    [([5, 5], 20, [5, 5]), ([10, 10], 10, [5, 5]), ([2, 10], 10, [2, 8]), ([10, 1, 10], 11, [5, 1, 5]), ([3], 0, [0])],
)
def test_what_a_short_clip_leaves_goes_to_the_longer_ones(lengths, limit, shares):
    assert share_time(lengths, limit) == shares


@pytest.mark.parametrize("short_by", [0, 1, 800, 1_599, 1_600, 1_601, 8_000])
@pytest.mark.parametrize("expand_cut", ["head", "share"])
def test_a_clip_that_ends_just_before_the_limit_is_followed_by_as_much_as_fits(tmp_path, short_by, expand_cut):
    limit = 3 * 16_000
    soundfile.write(tmp_path / "a.wav", np.full(limit - short_by, 0.5), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", tone(4.0, 16_000), 16_000, subtype="FLOAT")
    joined = load_clip([tmp_path / "a.wav", tmp_path / "b.wav"], 3.0, expand_cut=expand_cut)
    assert len(joined) == limit
    if expand_cut == "head":
        assert (joined[: limit - short_by] == 0.5).all()
        assert not joined[limit - short_by : limit - short_by + 1_600].any()


@pytest.mark.parametrize(
    ("factor", "container", "subtype"),
    [
        (32_768, "WAV", "FLOAT"),
        (32_768, "WAV", "DOUBLE"),
        (2**23, "AIFF", "FLOAT"),
        (2**31, "W64", "FLOAT"),
        (128, "AU", "FLOAT"),
    ],
)
@pytest.mark.parametrize("is_rounded", [False, True])
def test_floats_that_hold_integers_are_refused_with_the_way_to_mend_them(
    tmp_path, factor, container, subtype, is_rounded
):
    wave = 2 * tone(1.0, 16_000) * factor
    soundfile.write(tmp_path / "a", np.rint(wave) if is_rounded else wave, 16_000, subtype, format=container)
    for look in (load_audio, decode_all):
        with pytest.raises(AudioError, match=r"wrong scale: float samples up to .* divide them, by 32768"):
            look(tmp_path / "a")


def test_whole_numbers_beyond_1_are_another_scale_however_faint_and_floats_a_bit_beyond_1_are_not(tmp_path):
    soundfile.write(tmp_path / "faint.wav", np.rint(6 * tone(1.0, 16_000)), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="wrong scale: float samples up to 3,"):
        load_audio(tmp_path / "faint.wav")
    for name, wave in (
        ("loud", 8 * tone(1.0, 16_000)),
        ("square", np.sign(tone(1.0, 16_000))),
        ("silent", np.zeros(99)),
    ):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="FLOAT")
        np.testing.assert_allclose(load_audio(tmp_path / f"{name}.wav"), wave, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_of_a_long_file_only_the_head_is_decoded(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        for _ in range(60):  # 10 min; libsndfile crashes when it gets that much Vorbis at once
            file.write(tone(10.0, 16_000))
    decoded, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda *args, **kwargs: decoded.append(read(*args, **kwargs)) or decoded[-1]
    )
    tracemalloc.start()
    assert len(load_audio(path)) == 480_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, decoded)) < 1.01 * 480_000
    assert peak < 3 * 4 * 480_000  # bytes; the whole would be 38 MB


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_a_cut_file_is_refused_however_little_is_missing(tmp_path, suffix):
    source = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    soundfile.write(whole, source, 16_000)
    for share in (0.3, 0.9):
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        for look in (load_audio, decode_all):
            with pytest.raises(AudioError, match=r"cut\."):
                look(cut)
    assert decode_all(whole).frames == 48_000


def test_a_header_of_unknown_length_is_believed(tmp_path):
    """ffmpeg writes WAV to a pipe with sizes of 2^32 - 1."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(load_audio(path)) == 16_000


@pytest.mark.parametrize("rate", [22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_speech_is_resampled_as_librosa_does(tmp_path, mini_world, rate):
    spoken = Annotations(mini_world / "ann/test_asr.json")[0]["path"]
    source = librosa.resample(load_audio(f"{mini_world}/audio{spoken}"), orig_sr=16_000, target_sr=rate)
    soundfile.write(tmp_path / "a.wav", source, rate, subtype="FLOAT")
    expected = librosa.resample(source, orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    actual = load_audio(tmp_path / "a.wav")
    n = min(len(actual), len(expected))
    assert np.mean((actual[:n] - expected[:n]) ** 2) < 1e-6 * np.mean(expected**2)


def test_formats_that_cannot_seek_are_read_too(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 8_000), 8_000, subtype="GSM610")
    assert abs(len(load_audio(tmp_path / "a.wav")) - 32_000) < 2_000
    assert decode_all(tmp_path / "a.wav").seconds == pytest.approx(2.0, abs=0.1)


def test_what_is_not_heard_is_not_decoded(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(4.0, 16_000), 16_000)
    pair = [tmp_path / "a.wav", tmp_path / "absent.wav"]
    assert len(load_clip(pair, max_seconds=3.0)) == 48_000
    with pytest.raises(AudioError, match="absent"):
        load_clip(pair, max_seconds=3.0, expand_cut="share")


@pytest.mark.parametrize("container", ["RF64", "W64", "AU", "AIFF", "CAF"])
def test_rarer_containers_are_refused_when_cut(tmp_path, container):
    whole, cut = tmp_path / "whole.x", tmp_path / "cut.x"
    soundfile.write(whole, tone(1.0, 16_000), 16_000, format=container, subtype="PCM_16")
    cut.write_bytes(whole.read_bytes()[:20_000])
    assert decode_all(whole).frames == 16_000
    with pytest.raises(AudioError):
        decode_all(cut)
