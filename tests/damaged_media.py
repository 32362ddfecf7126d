"""Sound files damaged in every way that storage, downloads and tools have.

Everything follows from the seed, to the byte. `must_fail` parts the kinds of damage: what a reader can
see (no audio, cut, a checksum that does not hold) from what it cannot (a flipped bit of a PCM sample).
"""

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from whole_media import EXTENSIONS, encode, header_end, ogg_pages, sound, wav_bytes, whole_files

Generator = np.random.Generator
Change = Callable[[bytes, str, Generator], bytes]  # (file, extension, generator) -> damaged file

_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize 48044\n"
_HTML = "<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>{}</body></html>" + "\n" * 600


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
    return lambda data, ext, rng: encode(np.zeros((0, 1), np.float32), 16_000, container, subtype)  # noqa: ARG005


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
    sources = whole_files(seed)
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
