"""Any readable file becomes channel 0 at 16 kHz, 1 to `max_seconds` long."""

import librosa
import numpy as np
import pytest
import soundfile

from salmonn.audio import AudioError, load_audio, load_clip


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
