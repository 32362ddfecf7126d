"""Captions of sounds and music: AudioCaps, Clotho, MusicCaps; all captions of a clip are its references."""

from collections.abc import Iterator

from salmonn.common.errors import UserError
from util.eval_sets.base import Item, Request
from util.eval_sets.tables import bad, csv_rows, named_clip, source

_CLOTHO_CAPTIONS = [f"caption_{i}" for i in range(1, 6)]
_MUSIC_SPLITS = {"eval": ("true",), "train": ("false",), "all": ("true", "false")}


def read_audiocaps(request: Request, task: str) -> Iterator[Item]:
    """AudioCaps test: 975 clips of 10 s with 5 captions each, a row per caption.

    github.com/cdjkim/audiocaps, dataset/test.csv (dataset2.0/ is another set), for academic purposes:
    audiocap_id, youtube_id, start_time, caption. The clips are AudioSet's, fetched from YouTube by everybody
    for himself; hence --name, filled from the first row of a clip. For stories the captions say what
    there is to be heard; nothing is scored against them.
    """
    table = request.table or request.root / "test.csv"
    clips = request.audio or request.root / "test"
    lines_of_ids: dict[str, int] = {}
    captions: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}
    for line, row in csv_rows(table, ["audiocap_id", "youtube_id", "start_time", "caption"]):
        if (before := lines_of_ids.setdefault(row["audiocap_id"], line)) != line:
            raise bad(table, line, f"audiocap_id {row['audiocap_id']} stands already in line {before}")
        key = (row["youtube_id"], row["start_time"])
        captions.setdefault(key, []).append(row["caption"])
        first.setdefault(key, (line, row))
    for key, (line, row) in first.items():
        clip = clips / named_clip(request.name, row, table, line)
        yield Item("_".join(key), clip, tuple(captions[key]), task, source(table, line))


def read_clotho(request: Request) -> Iterator[Item]:
    """Clotho v2.1 evaluation: 1,045 clips of 15-30 s with 5 captions each.

    zenodo.org/records/4783391: clotho_captions_evaluation.csv (file_name, caption_1 .. caption_5) and
    clotho_audio_evaluation.7z, which unpacks to evaluation/. Audio: Creative Commons, per clip, from
    Freesound; captions: Tampere University licence, non-commercial.
    """
    table = request.table or request.root / "clotho_captions_evaluation.csv"
    clips = request.audio or request.root / "evaluation"
    for line, row in csv_rows(table, ["file_name", *_CLOTHO_CAPTIONS]):
        name = row["file_name"]
        if not name:
            raise bad(table, line, "file_name is empty")
        captions = tuple(row[column] for column in _CLOTHO_CAPTIONS)
        yield Item(name, clips / name, captions, "audiocaption", source(table, line))


def read_musiccaps(request: Request) -> Iterator[Item]:
    """MusicCaps: 5,521 clips of 10 s with a caption each, 2,858 of them in the eval split.

    huggingface.co/datasets/google/MusicCaps, musiccaps-public.csv, CC BY-SA 4.0: ytid, start_s, end_s,
    audioset_positive_labels, aspect_list, caption, author_id, is_balanced_subset, is_audioset_eval.
    The clips are AudioSet's, fetched from YouTube by everybody for himself; hence --name.
    """
    if request.split not in _MUSIC_SPLITS:
        raise UserError(f"--split {request.split}: one of {', '.join(_MUSIC_SPLITS)}")
    table = request.table or request.root / "musiccaps-public.csv"
    clips = request.audio or request.root / "audio"
    columns = ["ytid", "start_s", "end_s", "aspect_list", "caption", "is_audioset_eval"]
    for line, row in csv_rows(table, columns):
        in_eval = row["is_audioset_eval"].lower()
        if in_eval not in _MUSIC_SPLITS["all"]:
            raise bad(table, line, f"is_audioset_eval must be True or False, got {row['is_audioset_eval']!r}")
        if in_eval in _MUSIC_SPLITS[request.split]:
            clip = clips / named_clip(request.name, row, table, line)
            name = f"{row['ytid']}_{row['start_s']}"
            yield Item(name, clip, (row["caption"],), "music_description", source(table, line))
