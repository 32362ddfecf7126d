"""Sound files of any kind to mono float32 at 16 kHz; damaged ones are refused.

May import common. Tests: tests/audio/.
"""

from salmonn.audio.decode import load_clip

__all__ = ["load_clip"]
