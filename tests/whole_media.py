"""Whole sound files of all kinds, in memory and on disk. Everything follows from the seed, to the byte."""

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

Generator = np.random.Generator

EXTENSIONS = ("wav", "flac", "mp3", "ogg", "opus", "aiff")
_MP3_HEADER = 100  # bytes, all of them in the first frame, which holds the length


def make_good(folder: Path, n: int, seed: int) -> list[str]:
    """Write n clips that any reader must take, of all formats in turn; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [(ext, data) for ext, files in whole_files(seed).items() for data in files] + _rarities(seed)
    paths = []
    for i in range(n):
        ext, data = sources[i % len(sources)]
        paths.append(str(folder / f"good{i:04}.{ext}"))
        Path(paths[-1]).write_bytes(data)
    return paths


@lru_cache(maxsize=2)
def whole_files(seed: int) -> dict[str, list[bytes]]:
    """Encoded clips by extension, each of which tells its length. Files are copies of them: hundreds take no time."""
    rng = np.random.default_rng(seed)
    files: dict[str, list[bytes]] = {ext: [] for ext in EXTENSIONS}
    for rate, channels in ((8000, 1), (11025, 2), (16_000, 1), (22_050, 1), (32_000, 2), (44_100, 2), (48_000, 1)):
        wave = sound(rng, rate, channels)
        for subtype in ("PCM_16", "PCM_24", "FLOAT"):
            files["wav"].append(wav_bytes(wave, rate, subtype))
        for ext, container, subtype in (
            ("flac", "FLAC", "PCM_16"), ("flac", "FLAC", "PCM_24"), ("mp3", "MP3", "MPEG_LAYER_III"),
            ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("aiff", "AIFF", "PCM_16"),
        ):  # fmt: skip
            if subtype != "OPUS" or rate in (8000, 16_000, 48_000):
                files[ext].append(encode(wave, rate, container, subtype))
    return files


def _rarities(seed: int) -> list[tuple[str, bytes]]:
    """Whole files as not every program writes them: no length, tags before and behind the samples."""
    wave = sound(np.random.default_rng(seed), 16_000, 1)
    wav, mp3 = wav_bytes(wave, 16_000, "PCM_16"), whole_files(seed)["mp3"][2]
    return [
        ("wav", wav_bytes(wave, 16_000, "PCM_16", size=0xFFFFFFFF)),  # written to a pipe
        ("wav", wav[:36] + b"LIST\x0f\0\0\0INFOISFT\x03\0\0\0abc\0" + wav[36:]),
        ("wav", wav + b"LIST\x0e\0\0\0INFOISFT\x02\0\0\0ab"),
        ("mp3", b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038) + mp3 + b"TAG" + bytes(125)),
        ("mp3", mp3.replace(b"Info", bytes(4), 1).replace(b"Xing", bytes(4), 1)),
    ]


def flac_without_length(seed: int) -> bytes:
    """A whole FLAC as an encoder leaves it that writes to a pipe: its number of samples is 0, "unknown"."""
    flac = whole_files(seed)["flac"][4]
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def sound(rng: Generator, rate: int, channels: int) -> np.ndarray:
    """[N, channels] 1 to 2 s of a sliding tone in noise, which no codec makes very small."""
    t = np.arange(int(rate * rng.uniform(1.05, 2.0))) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 * t + 300 * t**2))
    return (tone[:, None] + 0.05 * rng.standard_normal((len(t), channels))).astype(np.float32).clip(-0.99, 0.99)


def wav_bytes(wave: np.ndarray, rate: int, subtype: str, **header: int) -> bytes:
    """A WAV file; `header` replaces what would be right: hertz, channels, bits, align, codec, size, riff."""
    bits = {"PCM_16": 16, "PCM_24": 24, "FLOAT": 32, "DOUBLE": 64}[subtype]
    if subtype in ("FLOAT", "DOUBLE"):
        body = wave.astype(f"<f{bits // 8}").tobytes()
    else:
        whole = np.round(wave * 2.0 ** (bits - 1)).astype("<i4")
        body = np.ascontiguousarray(whole[..., None].view(np.uint8)[..., : bits // 8]).tobytes()
    body += b"\0" * (len(body) % 2)
    channels = wave.shape[1]
    said = {
        "hertz": rate, "channels": channels, "bits": bits, "align": channels * bits // 8,
        "codec": 1 if subtype.startswith("PCM") else 3, "size": wave.size * bits // 8, "riff": 36 + len(body),
    } | header  # fmt: skip
    speed = said["hertz"] * said["align"] & 0xFFFFFFFF
    fmt = struct.pack("<HHIIHH", said["codec"], said["channels"], said["hertz"], speed, said["align"], said["bits"])
    chunks = (b"WAVEfmt \x10\0\0\0", fmt, b"data", struct.pack("<I", said["size"]), body)
    return b"RIFF" + struct.pack("<I", said["riff"]) + b"".join(chunks)


def encode(wave: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    """A file as libsndfile writes it, always the same."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=container, subtype=subtype)
    data = buffer.getvalue()
    return b"".join(_numbered(page) for page in ogg_pages(data)) if container == "OGG" else data


def ogg_pages(data: bytes) -> Iterator[bytes]:
    """The pages of an Ogg file."""
    start = 0
    while start < len(data):
        segments = data[start + 26]
        end = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])
        yield data[start:end]
        start = end


def _numbered(page: bytes) -> bytes:
    """The page as one of stream 1: libsndfile numbers its streams by chance."""
    page = page[:14] + struct.pack("<II", 1, struct.unpack_from("<I", page, 18)[0]) + bytes(4) + page[26:]
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _crc_table()[crc >> 24 ^ byte]
    return page[:22] + struct.pack("<I", crc) + page[26:]


@lru_cache(maxsize=1)
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = value << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if value >> 31 else 0)
        table.append(value)
    return table


def header_end(data: bytes, ext: str) -> int:
    """Where the header of a whole file ends and its samples begin."""
    if ext == "wav":
        return data.index(b"data") + 8
    if ext == "aiff":
        return data.index(b"SSND") + 16
    if ext == "flac":
        start, last = 4, False
        while not last:
            last, start = data[start] >= 0x80, start + 4 + int.from_bytes(data[start + 1 : start + 4])
        return start
    if ext == "mp3":
        return _MP3_HEADER
    headers = (page for page in ogg_pages(data) if struct.unpack_from("<q", page, 6)[0] == 0)
    return sum(map(len, headers))
