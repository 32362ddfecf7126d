"""Sound files of all kinds, and the same files damaged in every way that storage, downloads and tools have.

Everything follows from the seed, to the byte. `must_fail` parts the kinds of damage: what a reader can
see (no audio, cut, a checksum that does not hold) from what it cannot (a flipped bit of a PCM sample).
"""

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

Generator = np.random.Generator
Change = Callable[[bytes, str, Generator], bytes]  # (file, extension, generator) -> damaged file

EXTENSIONS = ("wav", "flac", "mp3", "ogg", "opus", "aiff")
_MP3_HEADER = 100  # bytes, all of them in the first frame, which holds the length
_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize 48044\n"
_HTML = "<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>{}</body></html>" + "\n" * 600


# ---- whole files


def make_good(folder: Path, n: int, seed: int) -> list[str]:
    """Write n clips that any reader must take, of all formats in turn; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [(ext, data) for ext, files in _sources(seed).items() for data in files] + _rarities(seed)
    paths = []
    for i in range(n):
        ext, data = sources[i % len(sources)]
        paths.append(str(folder / f"good{i:04}.{ext}"))
        Path(paths[-1]).write_bytes(data)
    return paths


@lru_cache(maxsize=2)
def _sources(seed: int) -> dict[str, list[bytes]]:
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
                files[ext].append(_encode(wave, rate, container, subtype))
    return files


def _rarities(seed: int) -> list[tuple[str, bytes]]:
    """Whole files as not every program writes them: no length, tags before and behind the samples."""
    wave = sound(np.random.default_rng(seed), 16_000, 1)
    wav, mp3 = wav_bytes(wave, 16_000, "PCM_16"), _sources(seed)["mp3"][2]
    return [
        ("wav", wav_bytes(wave, 16_000, "PCM_16", size=0xFFFFFFFF)),  # written to a pipe
        ("wav", wav[:36] + b"LIST\x0f\0\0\0INFOISFT\x03\0\0\0abc\0" + wav[36:]),
        ("wav", wav + b"LIST\x0e\0\0\0INFOISFT\x02\0\0\0ab"),
        ("mp3", b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038) + mp3 + b"TAG" + bytes(125)),
        ("mp3", mp3.replace(b"Info", bytes(4), 1).replace(b"Xing", bytes(4), 1)),
    ]


def flac_without_length(seed: int) -> bytes:
    """A whole FLAC as an encoder leaves it that writes to a pipe: its number of samples is 0, "unknown"."""
    flac = _sources(seed)["flac"][4]
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


def _encode(wave: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
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


# ---- damage to the bytes of a whole file


def _cut_in_header(data: bytes, ext: str, rng: Generator) -> bytes:
    return data[: rng.integers(1, header_end(data, ext))]


def _cut_in_body(data: bytes, ext: str, rng: Generator) -> bytes:
    start = header_end(data, ext)
    return data[: start + int((len(data) - start) * rng.uniform(0.02, 0.9))]


def _cut_at_tail(data: bytes, _: str, rng: Generator) -> bytes:
    return data[: -rng.integers(2, 60)]


def _hole(data: bytes, ext: str, rng: Generator) -> bytes:
    """A part of the middle is missing."""
    start, end = _stretch(data, ext, rng)
    return data[:start] + data[end:]


def _flip(data: bytes, start: int, end: int, rng: Generator) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(start, end)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flip_in_header(data: bytes, ext: str, rng: Generator) -> bytes:
    return _flip(data, 0, header_end(data, ext), rng)


def _flip_in_body(data: bytes, ext: str, rng: Generator) -> bytes:
    return _flip(data, header_end(data, ext), len(data), rng)


def _zeros_within(data: bytes, ext: str, rng: Generator) -> bytes:
    start, end = _stretch(data, ext, rng)
    return data[:start] + bytes(end - start) + data[end:]


def _noise_within(data: bytes, ext: str, rng: Generator) -> bytes:
    start, end = _stretch(data, ext, rng)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _stretch(data: bytes, ext: str, rng: Generator) -> tuple[int, int]:
    """Where a stretch of 30 to 50 % of the samples begins and ends, well within them."""
    first = header_end(data, ext)
    start, length = rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.5)
    return first + int(start * (len(data) - first)), first + int((start + length) * (len(data) - first))


def _zeros_at_start(data: bytes, ext: str, rng: Generator) -> bytes:
    end = max(header_end(data, ext), int(len(data) * rng.uniform(0.1, 0.4)))
    return bytes(end) + data[end:]


def _zeros_at_end(data: bytes, ext: str, rng: Generator) -> bytes:
    """The rest of a file that was made at its full size and never written to its end."""
    first = header_end(data, ext)
    start = first + int((len(data) - first) * rng.uniform(0.2, 0.7))
    return data[:start] + bytes(len(data) - start)


def _all_zeros(data: bytes, _: str, __: Generator) -> bytes:
    return bytes(len(data))


def _garbage_behind(data: bytes, _: str, rng: Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 3000)))


def _twice(data: bytes, _: str, __: Generator) -> bytes:
    return data + data


def _without_page(which: str) -> Change:
    def change(data: bytes, _: str, rng: Generator) -> bytes:
        pages = list(ogg_pages(data))
        headers = sum(struct.unpack_from("<q", page, 6)[0] == 0 for page in pages)
        audio = range(headers, len(pages))
        number = {"first": audio[0], "last": audio[-1], "middle": audio[len(audio) // 2], "header": headers - 1}[which]
        if which == "middle" and len(audio) > 2:
            number = int(rng.choice(audio[1:-1]))
        return b"".join(page for i, page in enumerate(pages) if i != number)

    return change


def _without_mp3_length(then: Change) -> Change:
    """No tag says how long the file is, as most encoders other than LAME leave it."""

    def change(data: bytes, ext: str, rng: Generator) -> bytes:
        return then(data.replace(b"Info", bytes(4), 1).replace(b"Xing", bytes(4), 1), ext, rng)

    return change


def _patch(start: int, value: bytes) -> Change:
    return lambda data, ext, rng: data[:start] + value + data[start + len(value) :]  # noqa: ARG005


# ---- files made wrong


def _wav(subtype: str = "PCM_16", **header: int) -> Change:
    def change(_: bytes, __: str, rng: Generator) -> bytes:
        return wav_bytes(sound(rng, 16_000, 1), 16_000, subtype, **header)

    return change


def _wav_with_sample(value: float, subtype: str = "FLOAT") -> Change:
    def change(_: bytes, __: str, rng: Generator) -> bytes:
        wave = sound(rng, 16_000, 1).astype(np.float64)
        wave[rng.integers(len(wave), size=3)] = value
        return wav_bytes(wave, 16_000, subtype)

    return change


def _no_samples(container: str, subtype: str) -> Change:
    return lambda data, ext, rng: _encode(np.zeros((0, 1), np.float32), 16_000, container, subtype)  # noqa: ARG005


def _bytes(make: Callable[[Generator], bytes]) -> Change:
    return lambda data, ext, rng: make(rng)  # noqa: ARG005


def _text(rng: Generator) -> bytes:
    return " ".join(f"this is no audio {number}" for number in rng.integers(1000, size=200)).encode()


def _zip(rng: Generator) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.wav"), rng.bytes(5000))
    return buffer.getvalue()


def _jpeg(rng: Generator) -> bytes:
    return b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + rng.bytes(8000) + b"\xff\xd9"


# ---- what lies there instead of a file


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "part.wav").write_bytes(b"RIFF")


def _loop(path: Path) -> None:
    path.symlink_to(path.name + ".other")
    path.with_name(path.name + ".other").symlink_to(path.name)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "folder": _folder,
    "dangling link": lambda path: path.symlink_to("gone.wav"),
    "loop of links": _loop,
    "link to a folder": lambda path: path.symlink_to("."),
    "link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": lambda path: os.mkfifo(path),  # a naive reader waits for ever
    "absent": lambda path: None,  # noqa: ARG005
}
NAMES = {"name too long": "n{:0300}.wav", "name with a zero byte": "n\0{}.wav"}

OGG = ("ogg", "opus")
CHECKED = ("flac", *OGG)  # all their samples stand under checksums

# (kind, extensions, whether any reader must refuse it, change)
CHANGES: list[tuple[str, tuple[str, ...], bool, Change]] = [
    ("cut in header", EXTENSIONS, True, _cut_in_header),
    ("cut in body", EXTENSIONS, True, _cut_in_body),
    ("cut at tail", ("wav", "flac", "ogg", "opus", "aiff"), True, _cut_at_tail),
    ("cut at tail", ("mp3",), False, _cut_at_tail),  # the last of its frames, 0.03 s
    ("hole", EXTENSIONS, True, _hole),
    ("bit flip in header", ("wav", "flac", "mp3", "aiff"), False, _flip_in_header),  # few of its bits matter
    ("bit flip in header", OGG, True, _flip_in_header),
    ("bit flip in body", ("wav", "mp3", "aiff"), False, _flip_in_body),
    ("bit flip in body", CHECKED, True, _flip_in_body),
    ("zeros within", ("wav", "aiff"), False, _zeros_within),  # silence
    ("zeros within", ("mp3", *CHECKED), True, _zeros_within),
    ("noise within", ("wav", "mp3", "aiff"), False, _noise_within),
    ("noise within", CHECKED, True, _noise_within),
    ("zeros at start", ("wav", "aiff", *CHECKED), True, _zeros_at_start),
    ("zeros at start", ("mp3",), False, _zeros_at_start),  # padding, then a part of a stream: legal
    ("zeros at end", ("wav", "aiff"), False, _zeros_at_end),
    ("zeros at end", ("mp3", *CHECKED), True, _zeros_at_end),
    ("all zeros", EXTENSIONS, True, _all_zeros),
    ("empty", EXTENSIONS, True, _bytes(lambda rng: b"")),  # noqa: ARG005
    ("garbage behind", EXTENSIONS, False, _garbage_behind),
    ("twice", EXTENSIONS, False, _twice),
    ("first page missing", OGG, True, _without_page("first")),
    ("middle page missing", OGG, True, _without_page("middle")),
    ("last page missing", OGG, True, _without_page("last")),
    ("header page missing", OGG, True, _without_page("header")),
    ("cut in body, length unknown", ("mp3",), False, _without_mp3_length(_cut_in_body)),
    ("hole, length unknown", ("mp3",), False, _without_mp3_length(_hole)),
    ("tag larger than the file", ("mp3",), True, lambda data, ext, rng: b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + data),  # noqa: ARG005
    ("0 Hz", ("flac",), True, _patch(18, b"\0\0\x02")),
    ("metadata larger than the file", ("flac",), True, _patch(5, b"\xff\xff\xff")),
    ("no samples", ("wav",), True, _bytes(lambda rng: wav_bytes(np.zeros((0, 1)), 16_000, "PCM_16"))),  # noqa: ARG005
    ("no samples", ("flac",), True, _no_samples("FLAC", "PCM_16")),
    ("no samples", ("ogg",), True, _no_samples("OGG", "VORBIS")),
    ("no samples", ("mp3",), True, _no_samples("MP3", "MPEG_LAYER_III")),
    ("NaN sample", ("wav",), True, _wav_with_sample(np.nan)),
    ("infinite sample", ("wav",), True, _wav_with_sample(-np.inf)),
    ("sample beyond float32", ("wav",), True, _wav_with_sample(1e200, "DOUBLE")),
    ("sample of 1e30", ("wav",), True, _wav_with_sample(1e30)),
    ("0 Hz", ("wav",), True, _wav(hertz=0)),
    ("3 Hz", ("wav",), True, _wav(hertz=3)),
    ("4 GHz", ("wav",), True, _wav(hertz=4_000_000_000)),
    ("0 channels", ("wav",), True, _wav(channels=0)),
    ("60000 channels", ("wav",), True, _wav(channels=60_000)),
    ("60000 channels, aligned", ("wav",), True, _wav(channels=60_000, align=54_464)),
    ("0 bits", ("wav",), True, _wav(bits=0)),
    ("0 bits and no align", ("wav",), True, _wav(bits=0, align=0)),
    ("4000 bits", ("wav",), True, _wav(bits=4000)),
    ("unknown codec", ("wav",), True, _wav(codec=0x7777)),
    ("more samples said than there", ("wav",), True, _wav(size=1_000_000)),
    ("2 GB of samples said", ("wav",), True, _wav(size=2_000_000_000)),
    ("align of 7", ("wav",), False, _wav(align=7)),  # follows from the other fields; nobody needs it
    ("align of 0", ("wav",), False, _wav(align=0)),
    ("size never written", ("wav",), False, _wav(size=0, riff=0)),  # the rest of the file is meant
    ("wrong size of the whole", ("wav",), False, _wav(riff=3)),
    ("text", ("wav", "mp3", "flac", "ogg", "m4a"), True, _bytes(_text)),
    ("UTF-16 text", ("mp3",), True, _bytes(lambda rng: _text(rng).decode().encode("utf-16"))),  # begins like MP3
    ("web page", ("mp3", "wav"), True, _bytes(lambda rng: _HTML.format(rng.integers(9)).encode())),
    ("LFS pointer", ("wav", "flac"), True, _bytes(lambda rng: _LFS.format(int(rng.integers(1 << 60))).encode())),
    ("JPEG", ("mp3",), True, _bytes(_jpeg)),
    ("ZIP", ("mp3", "wav"), True, _bytes(_zip)),
    ("random bytes", EXTENSIONS, True, _bytes(lambda rng: rng.bytes(int(rng.integers(1, 20_000))))),
    ("random bytes behind a magic number", ("mp3",), True, _bytes(lambda rng: b"\xff\xfb\x90\x64" + rng.bytes(9000))),
    ("random bytes behind a magic number", ("flac",), True, _bytes(lambda rng: b"fLaC" + rng.bytes(9000))),
    ("random bytes behind a magic number", ("ogg",), True, _bytes(lambda rng: b"OggS" + rng.bytes(9000))),
    ("random bytes behind a magic number", ("wav",), True, _bytes(lambda rng: b"RIFF\0\1\0\0WAVE" + rng.bytes(9000))),
    ("AAC", ("m4a",), True, _bytes(lambda rng: b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42isom" + rng.bytes(4000))),
]  # fmt: skip


def _kinds() -> dict[str, tuple[str, bool, Change]]:
    """{kind: (extension, must fail, change)}; a kind's name begins with its extension."""
    return {f"{ext}: {kind}": (ext, must, change) for kind, extensions, must, change in CHANGES for ext in extensions}


KINDS = _kinds()
ALL_KINDS = [*KINDS, *INSTEAD, *NAMES]


def must_fail(kind: str) -> bool:
    """Whether a file damaged in this way can be known to be, so that no reader may take it."""
    return KINDS[kind][1] if kind in KINDS else True


def make_damaged(folder: Path, n: int, seed: int) -> dict[str, str]:
    """Write n damaged files, of all kinds in turn; returns {path: kind of damage}."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = _sources(seed)
    made = {}
    for i in range(n):
        kind, rng = ALL_KINDS[i % len(ALL_KINDS)], np.random.default_rng([seed, i])
        name = NAMES[kind].format(i) if kind in NAMES else f"damaged{i:04}.{KINDS[kind][0] if kind in KINDS else 'wav'}"
        made[f"{folder}/{name}"] = kind
        if kind in KINDS:
            ext, _, change = KINDS[kind]
            files = sources.get(ext, [b""])
            Path(folder / name).write_bytes(change(files[rng.integers(len(files))], ext, rng))
        elif kind in INSTEAD:
            INSTEAD[kind](folder / name)
    return made
