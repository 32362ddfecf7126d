"""How long an mp3 is by its frames: libsndfile believes the tag in the first of them, or guesses."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from salmonn.audio.joined import HEAD, require_no_file, require_no_file_within
from salmonn.audio.view import Bytes

_MPEG_1 = 3
_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG 1; half of it in MPEG 2, a quarter in 2.5
_KBITS = {  # by (is it MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_TAG_WITHIN = 64  # bytes of the first frame
_CHECKED = 6  # bytes of a frame's header and checksum; up to the tag all others are 0
# how a frame begins, but for a few: with no version, layer and bitrate that there is not
_LIKE_A_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xeb]")
# how frames of an AAC begin, like those of an mp3
_ADTS = (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9")
_MOST_TRIES = 100_000  # what looks like a frame between frames, and is none: more is another file than an mp3
TAG_HEAD = 32  # bytes by which a tag is known, and its size
_OLD_ID3 = 128  # bytes


class Mp3(NamedTuple):
    """The frames of an mp3, without the one that only holds the length tag."""

    parts: list[range]  # their bytes, without the tags between them
    frames: int
    frame_samples: int
    is_told: bool  # whether a tag says how many there are, and not fewer than there are

    @property
    def samples(self) -> int:
        """Length of the whole."""
        return self.frames * self.frame_samples


_Kind = tuple[int, int, int, bool]  # version, layer, Hz, mono


class _Header(NamedTuple):
    size: int  # bytes of the frame
    samples: int
    kind: _Kind


def read_mp3(data: Bytes) -> Mp3 | None:
    """Walk over the frames of an mp3; None for what is none. Raises ValueError where the kind of frames changes."""
    position, tries = after_tags(data), iter(range(_MOST_TRIES))
    if not position and not _header(data[:4]):
        return None
    if not _two_in_a_row(data, position):
        position = _resume(data, position, tries)
    start, frames, first = position, 0, _header(data[position : position + 4])
    if not first:
        return None
    told = _told_frames(data[start : start + _TAG_WITHIN])
    run = stop = start if told is None else start + first.size  # the frame of a tag is no sound
    parts: list[range] = []
    last = start  # frame; cut, it reaches beyond where it ends
    while position + 4 <= len(data):
        header = _header(data[position : position + 4])
        if header and header.kind == first.kind:
            last, position = position, position + header.size
            frames += position <= len(data)
            stop = min(position, len(data))
        elif (behind := after_tags(data, position)) > position:
            parts.append(range(run, stop))
            run = position = behind
        else:
            if data[position : position + 2] in _ADTS:
                require_no_file(data[position : position + HEAD])
            position = _resume(data, position, tries, first.kind)
            require_no_file_within(data, last, position)
    parts.append(range(run, stop))
    if told is None:
        return Mp3(parts, frames, first.samples, False)
    return Mp3(parts, frames - 1, first.samples, frames - 2 <= told)  # some count one less


def after_tags(data: bytes | Bytes, position: int = 0) -> int:
    """Where the tags (ID3, APE) that begin at a byte end."""
    while head := data[position : position + TAG_HEAD]:
        if head.startswith(b"ID3"):  # the size has 7 bits a byte
            position += 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
        elif head.startswith(b"APETAGEX"):
            position += TAG_HEAD + int.from_bytes(head[12:16], "little")
        elif head.startswith(b"TAG"):
            position += _OLD_ID3
        else:
            break
    return position


def before_tags(file: BinaryIO) -> int:
    """Where the tags at the end of a file (APE, then ID3) begin; its size where it has none."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - _OLD_ID3 - TAG_HEAD)
    file.seek(start)
    tail = file.read()
    if tail[-_OLD_ID3:].startswith(b"TAG"):
        end, tail = end - _OLD_ID3, tail[:-_OLD_ID3]
    foot = tail[-TAG_HEAD:]
    if foot.startswith(b"APETAGEX"):  # the size is without the tag's own head, which it may have
        end -= int.from_bytes(foot[12:16], "little") + (foot[23] >> 7) * TAG_HEAD
    return max(0, end)


def _resume(data: Bytes, position: int, tries: Iterator[int], kind: _Kind | None = None) -> int:
    """The byte at which frames (of this kind) go on: where two stand in a row."""
    while (position := data.search(_LIKE_A_FRAME, 3, position + 1)) >= 0:
        if next(tries, None) is None:
            raise ValueError("damaged: too much between the frames of the mp3")
        if found := _two_in_a_row(data, position):
            if kind and found != kind:
                raise ValueError("changes its rate or channels midway, as files that were put together")
            return position
    return len(data)


def _two_in_a_row(data: Bytes, position: int) -> _Kind | None:
    """The kind of the frame at a byte, if another follows."""
    header = _header(data[position : position + 4])
    following = header and _header(data[position + header.size : position + header.size + 4])
    return header.kind if header and following and header.kind == following.kind else None


def _told_frames(head: bytes) -> int | None:
    """What the tag in a first frame says; 0 where it does not say, None where there is no tag."""
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0:
        return None if b"VBRI" not in head else 0  # which libmpg123 does not read
    if any(head[_CHECKED:at]):  # damaged: to libmpg123 it is a frame like any other, and it guesses the length
        return None
    return int.from_bytes(head[at + 8 : at + 12]) if head[at + 7] & 1 else 0


@lru_cache(maxsize=4096)
def _header(head: bytes) -> _Header | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> (_MPEG_1 - version + 1) // 2
    samples = 384 if layer == 1 else 576 if layer == 3 and version != _MPEG_1 else 1152
    slot = 4 if layer == 1 else 1
    size = slot * (samples // 8 // slot * _KBITS[version == _MPEG_1, layer][bitrate - 1] * 1000 // hertz + padding)
    return _Header(size, samples, (version, layer, hertz, head[3] >> 6 == 3))
