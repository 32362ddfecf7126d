"""Another file of sound behind one, as cat and broken recorders leave it: decoders stop where the first ends."""

import re

from salmonn.audio.view import Bytes

HEAD = 16  # bytes by which one is known
_LIKE_A_FILE = re.compile(  # by so many bytes that chance makes none
    rb"RIF[FX]....(?:WAVE|AVI )....|(?:RF64|BW64)....WAVE....|FORM....AIF[FC]....|riff\x2e\x91\xcf\x11.{8}"
    rb"|OggS\0\x02\0{8}..|fLaC[\0\x80]\0\0\x22.{8}|caff\0\x01\0\0desc....|\.snd\0\0\0.{9}|wvpk...\0[\0-\x10]\x04.{6}"
    rb"|\0\0\0.ftyp[ -~]{4}....|\x1a\x45\xdf\xa3.{1,8}\x42\x86\x81|\x30\x26\xb2\x75\x8e\x66\xcf\x11.{8}"
    rb"|#!AMR(?:-WB)?\n.{7}",
    re.DOTALL,
)
_LIKE_FRAMES = re.compile(rb"\xff[\xe2-\xff][^\0\xff]")  # of an mp3 or ADTS: where one is looked for, enough
_JOINED = "another sound file stands behind it, which would not be heard: take them apart, or decode and encode once"


def require_no_file(head: bytes) -> None:
    """Raise ValueError where another file begins with these `HEAD` bytes."""
    if _LIKE_A_FILE.match(head.ljust(HEAD, b"\0")) or _LIKE_FRAMES.match(head):
        raise ValueError(_JOINED)


def require_no_file_within(data: Bytes, start: int, stop: int | None = None) -> None:
    """Raise ValueError where another file begins between two bytes."""
    if data.search(_LIKE_A_FILE, HEAD, start, stop) >= 0:
        raise ValueError(_JOINED)
