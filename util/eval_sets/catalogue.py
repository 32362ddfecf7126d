"""All test sets by name."""

from functools import partial

from util.eval_sets import (
    captions,
    choices,
    covost2,
    gigaspeech,
    iemocap,
    inspec,
    librimix,
    librispeech,
    slurp,
    voxceleb1,
    wikiqa,
)
from util.eval_sets.base import EvalSet

_LIBRISPEECH = "LibriSpeech, unpacked test-*.tar.gz of openslr.org/12"
_AUDIOCAPS = "AudioCaps test.csv (github.com/cdjkim/audiocaps) and test/, your clips"
_WHERE = ("table", "audio")


def _covost2(language: str, task: str) -> EvalSet:
    download = f"Common Voice 4's en/ with clips/, and covost_v2.en_{language}[.test].tsv in it"
    return EvalSet(partial(covost2.read, language=language, task=task), download, _WHERE)


def _audiocaps(task: str) -> EvalSet:
    read = partial(captions.read_audiocaps, task=task)
    return EvalSet(read, _AUDIOCAPS, (*_WHERE, "name"), name="{youtube_id}.wav")


SETS = {
    "librispeech": EvalSet(librispeech.read_speech, _LIBRISPEECH, ("split",), "test-clean"),
    "librispeech_phones": EvalSet(
        librispeech.read_phones,
        f"{_LIBRISPEECH}; --lexicon librispeech-lexicon.txt of openslr.org/11",
        ("split", "lexicon"),
        "test-clean",
    ),
    "librispeech_aligned_phones": EvalSet(
        librispeech.read_aligned_phones,
        f"{_LIBRISPEECH}; --table LS_testclean_pr.json of github.com/bytedance/SALMONN/issues/103",
        ("split", "table"),
        "test-clean",
    ),
    "librispeech_gender": EvalSet(
        librispeech.read_gender, f"{_LIBRISPEECH}, with its SPEAKERS.TXT", ("split",), "test-clean"
    ),
    "gigaspeech": EvalSet(
        gigaspeech.read,
        "GigaSpeech.json and audio/ with --cut-to DIR; or cut clips by --table and --audio",
        (*_WHERE, "cut_to", "speech_only"),
    ),
    "covost2_zh": _covost2("zh-CN", "translation_ec"),
    "covost2_de": _covost2("de", "translation_en2de"),
    "covost2_ja": _covost2("ja", "translation_en2ja"),
    "audiocaps": _audiocaps("audiocaption"),
    "audiocaps_story": _audiocaps("audio_story_telling"),
    "clotho": EvalSet(
        captions.read_clotho,
        "Clotho's clotho_captions_evaluation.csv and evaluation/ of zenodo.org/records/4783391",
        _WHERE,
    ),
    "musiccaps": EvalSet(
        captions.read_musiccaps,
        "musiccaps-public.csv (huggingface.co/datasets/google/MusicCaps) and audio/, your clips",
        ("split", *_WHERE, "name"),
        "eval",
        "{ytid}.wav",
    ),
    "iemocap": EvalSet(
        iemocap.read, "IEMOCAP_full_release with its SessionN folders (on request from USC)", ("split",), "Session5"
    ),
    "librimix": EvalSet(
        librimix.read,
        "Libri2Mix, made by github.com/JorisCos/LibriMix (16k, max, mix_clean), and LibriSpeech beside it",
        (*_WHERE, "librispeech"),
    ),
    "voxceleb1": EvalSet(
        voxceleb1.read, "VoxCeleb1's veri_test2.txt and wav/ of vox1_test_wav.zip; --table veri_test.txt", _WHERE
    ),
    "slurp": EvalSet(
        slurp.read,
        "the repository pswietojanski/slurp, with slurp_real.tar.gz unpacked in its audio/",
        (*_WHERE, "question"),
    ),
    "inspec": EvalSet(inspec.read, "Hulth2003 with Test/, or test.jsonl; wav/ID.wav by your text-to-speech", _WHERE),
    "wikiqa": EvalSet(
        wikiqa.read, "WikiQACorpus with WikiQA-test.tsv; wav/QuestionID.wav by your text-to-speech", _WHERE
    ),
    "mmau": EvalSet(
        choices.read_mmau,
        "mmau-test-mini.json (github.com/Sakshi113/MMAU) with test-mini-audios/; or parquet files in data/",
        ("split", *_WHERE, "cut_to"),
        "test-mini",
    ),
    "mmar": EvalSet(
        choices.read_mmar,
        "MMAR-meta.json (huggingface.co/datasets/BoJack/MMAR) with audio/; or parquet files in data/",
        (*_WHERE, "cut_to"),
    ),
    "air_bench": EvalSet(
        choices.read_air_bench, "AIR-Bench-Dataset (huggingface.co/datasets/qyang1021) with Foundation/", _WHERE
    ),
    "muchomusic": EvalSet(
        choices.read_muchomusic,
        "muchomusic.csv (zenodo.org/records/12709974), sdd/audio/, musiccaps/musiccaps-public.csv and musiccaps/audio/",
        ("table", "name"),
        name="[{ytid}]-[{start_s}-{end_s}].wav",
    ),
    "mini_choices": EvalSet(choices.read_mini, "the miniature world, output/mini/world"),
}
