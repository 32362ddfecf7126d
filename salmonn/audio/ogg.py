"""Whether an Ogg file is whole. Decoders play what is left of a cut or damaged one as if that were all."""

import struct
import zlib
from pathlib import Path

from salmonn.audio.joined import HEAD, require_no_file
from salmonn.audio.mp3 import after_tags
from salmonn.audio.view import Bytes

_HEADER = struct.Struct("<4sBBqII4sB")  # capture, version, flags, granule position, serial, page, crc, segments
_FIRST_PAGE, _LAST_PAGE = 2, 4  # flags of the pages that begin and end a stream
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def is_plain_ogg(path: str | Path) -> bool:
    """Whether an Ogg file is one stream with a marked end. Raises ValueError for damage.

    Every page must be there and hold its checksum. Where the positions begin, and whether the last
    page says that it is the last, is left to those who write (RFC 7845, 4.5): streams are cut and copied.
    """
    streams, flags = 0, 0
    segments = b""
    expected: dict[int, int] = {}  # number of the next page of each stream
    with Path(path).open("rb") as file:
        while head := file.read(_HEADER.size):
            if not head.startswith(b"OggS"):
                rest = Bytes(file, file.tell() - len(head))
                if flags & _LAST_PAGE and rest.find(b"OggS") < 0:
                    at = after_tags(rest)
                    require_no_file(rest[at : at + HEAD])
                    break  # something else was put behind the stream, as a tag
                raise ValueError("damaged: a page of the Ogg stream does not begin where it should")
            if len(head) < _HEADER.size:
                raise ValueError("truncated: it ends within a page of the Ogg stream")
            *_, flags, _, serial, number, checksum, count = _HEADER.unpack(head)
            segments = file.read(count)
            body = file.read(sum(segments))
            if len(segments) < count or len(body) < sum(segments):
                raise ValueError("truncated: it ends within a page of the Ogg stream")
            if _mirrored_crc(head[:22] + bytes(4) + head[26:] + segments + body) != checksum.translate(_MIRRORED):
                raise ValueError("damaged: a page of the Ogg stream does not hold its checksum")
            if flags & _FIRST_PAGE:
                streams += 1
            elif number != expected.get(serial):
                raise ValueError("damaged: a page of the Ogg stream is missing")
            expected[serial] = number + 1
    if segments.endswith(b"\xff") and not flags & _LAST_PAGE:
        raise ValueError("truncated: the last page of the Ogg stream is missing")  # a packet goes on there
    return streams == 1 and bool(flags & _LAST_PAGE)


def _mirrored_crc(page: bytes) -> bytes:
    """Ogg's checksum with the bits of each byte mirrored: so the CRC of zlib is the same polynomial."""
    return (zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big")
