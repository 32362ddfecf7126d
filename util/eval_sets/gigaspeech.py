"""GigaSpeech test: segments of long recordings, from GigaSpeech.json, or already cut with a table.

github.com/SpeechColab/GigaSpeech, TEST: 40 h, about 25,600 segments, 19,930 of them speech.
Licence by its Hugging Face card: Apache 2.0, for research after terms are accepted.
GigaSpeech.json: {"audios": [{"path": "audio/youtube/P0000/YOU....opus", "segments": [{"sid",
"begin_time", "end_time" (s), "text_tn", "subsets": ["{TEST}"]}]}]}. Cut sets come as a Kaldi file
(`SID TEXT` a line) or CSV with sid and text_tn (Hugging Face), and SID.wav somewhere below a folder.
Texts keep their tags (<COMMA>, <MUSIC>, ...): how they count is the scorer's business. The corpus'
own Kaldi recipe leaves out what is no speech; --speech-only does the same.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import soundfile

from salmonn.audio.decode import AudioError, inspect_header
from salmonn.common.errors import UserError
from salmonn.common.files import make_folder, replacing, visible
from util.eval_sets.base import Item, MissingError, Request, folder
from util.eval_sets.tables import csv_rows, lines, source

_NO_SPEECH = re.compile(r"<(?:SIL|MUSIC|NOISE|OTHER)>")  # garbage_tags of the corpus' Kaldi recipe


class _Segment(msgspec.Struct):
    sid: str
    begin_time: float
    end_time: float
    text_tn: str
    subsets: list[str]


class _Audio(msgspec.Struct):
    path: str
    segments: list[_Segment]


class _Corpus(msgspec.Struct):
    audios: list[_Audio]


def read(request: Request) -> Iterator[Item]:
    """Speech recognition; what is no speech is counted, and left out by choice."""
    if request.cut_to and (request.table or request.audio):
        raise UserError("--cut-to reads GigaSpeech.json and audio/ in --root: give no --table and --audio")
    for item in _cut(request, request.cut_to) if request.cut_to else _already_cut(request):
        if _NO_SPEECH.search(item.references[0]):
            fate = "left out" if request.speech_only else "kept; --speech-only leaves them out, as Kaldi's recipe does"
            request.notes[f"segments are marked as silence, music, noise or other: {fate}"] += 1
            if request.speech_only:
                continue
        yield item


def _already_cut(request: Request) -> Iterator[Item]:
    if not request.table or not request.audio:
        raise MissingError("give --cut-to DIR, or --table FILE (Kaldi text or CSV) with --audio DIR (SID.wav)")
    # Hugging Face's clips lie in a folder per archive
    clips = {path.stem: path for path in sorted(folder(request.audio).rglob("*.wav"))}
    for path, line, sid, text in _texts(request.table):
        yield Item(sid, clips.get(sid, request.audio / f"{sid}.wav"), (text,), "asr", source(path, line))


def _texts(table: Path) -> Iterator[tuple[Path, int, str, str]]:
    """(file, line, segment, text) of a Kaldi file, a CSV or a folder of these."""
    for path in visible(table, "*.csv") if table.is_dir() else [table]:
        if path.suffix == ".csv":
            for line, row in csv_rows(path, ["sid", "text_tn"]):
                yield path, line, row["sid"], row["text_tn"]
        else:
            for line, text in lines(path):
                sid, *words = text.split(None, 1)
                yield path, line, sid, "".join(words)


def _cut(request: Request, target: Path) -> Iterator[Item]:
    """Cut the segments of TEST out of their recordings; what was cut before is not cut again."""
    metadata = request.root / "GigaSpeech.json"
    for audio in _decode(metadata):
        wanted = [segment for segment in audio.segments if "{TEST}" in segment.subsets]
        clips = [target / Path(audio.path).stem / f"{segment.sid}.flac" for segment in wanted]
        missing = [(segment, clip) for segment, clip in zip(wanted, clips, strict=True) if not clip.exists()]
        recording = request.root / audio.path
        if missing and recording.exists():
            _cut_recording(recording, missing)
        for segment, clip in zip(wanted, clips, strict=True):
            yield Item(segment.sid, clip, (segment.text_tn,), "asr", f"{metadata}, segment {segment.sid}")


def _decode(metadata: Path) -> list[_Audio]:
    """Only the fields that are needed, for the file has gigabytes."""
    try:
        return msgspec.json.decode(metadata.read_bytes(), type=_Corpus).audios
    except FileNotFoundError as error:
        raise MissingError(f"{metadata}: no such file") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{metadata}: {error}") from error


def _cut_recording(recording: Path, segments: list[tuple[_Segment, Path]]) -> None:
    try:
        rate = inspect_header(recording).rate  # refuses what is damaged
        make_folder(segments[0][1].parent)
        with soundfile.SoundFile(recording) as file:
            for segment, clip in segments:
                begin, end = round(segment.begin_time * rate), round(segment.end_time * rate)
                if not 0 <= begin < end <= file.frames + rate // 10:  # the last segment may be rounded up
                    raise UserError(
                        f"{recording}: segment {segment.sid} is {segment.begin_time} to {segment.end_time} s, "
                        f"the recording has {file.frames / rate:.2f} s"
                    )
                file.seek(begin)
                with replacing(clip) as temporary:
                    soundfile.write(temporary, file.read(end - begin), rate, format="FLAC")
    except (AudioError, OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cutting {recording}: {error}") from error
