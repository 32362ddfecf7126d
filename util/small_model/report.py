"""What came out: the test sets, Whisper's own decoder beside the model, summary.json and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from salmonn.audio.decode import SAMPLE_RATE, load_audio
from salmonn.common.files import read_json, read_json_lines, write_json, write_text
from salmonn.data.integrity import check_files
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.metrics.base import Texts, interval_of, value_of
from salmonn.evaluation.metrics.word_errors import word_errors
from salmonn.evaluation.normalisers import normaliser
from salmonn.evaluation.report.tables import table
from util.small_model import sources, texts

SPEECH = {  # test set: what it is, whatever is trained on
    "corpus": "other sentences of the corpus",
    "prompt": "telephone prompts of one woman (Allison), of whom other prompts are trained on",
    "word": "single words of the same woman",
    "librivox": "five sentences of a LibriVox reader",
    "speaker": "short phrases of a few other people",
}
IN_SUMMARY = {
    "corpus": "corpus", "prompt": "real_prompts", "word": "real_words", "librivox": "librivox",
    "speaker": "unseen_speakers", "agreement": "whisper_real_prompts",
}  # fmt: skip
AGREEMENT = {
    "agreement": "telephone prompts of one woman that nobody has written down, against what Whisper's own decoder "
    "hears there: agreement with it, not correctness",
}
TASKS = {
    "language": "which of five languages (one speaker each, the same as in training, English and Spanish of one woman: "
    "it may be the speaker that is known)",
    "music_speech": "music or speech; the music: other parts of pieces that are trained on",
    "voice": "a woman or a man, of synthetic voices that are all trained on",
    "QA": "questions about what is said",
}
RECOGNITION = SPEECH | AGREEMENT
SETS = RECOGNITION | TASKS
KNOWN_RUN = 4  # words in sequence, of which it is counted how many were trained on
WHISPER_SECONDS, WHISPER_TOKENS, WHISPER_BATCH = 30.0, 80, 16
SHOWN = 10  # answers, of each set
_NOTHING: dict[str, dict[str, Any]] = {"scores": {}, "intervals": {}, "scored_clips": {}}  # of a set that is empty


def write_eval_tasks(out: Path, annotations: Path) -> None:
    """The tasks file of `evaluate.py --mode table3` for those sets that are not empty."""
    chosen: dict[str, Any] = {}
    for name, title in SETS.items():
        file = annotations / f"test_{name}.json"
        if not read_json(file)["annotation"]:
            continue
        is_speech = name not in TASKS
        chosen[name] = {
            "title": f"speech recognition: {title}" if is_speech else title,
            "annotation": str(file),
            "accepts": ["asr" if is_speech else name],
            "normaliser": "english",
            "metrics": ["wer" if is_speech else "exact"],
        }
    OmegaConf.save(OmegaConf.create(chosen), out / "eval_tasks.yaml")


@torch.no_grad()
def whisper_answers(whisper: Path, paths: Sequence[str]) -> list[str]:
    """What Whisper's own decoder hears, greedily, in the first 30 s of each clip."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    features = WhisperFeatureExtractor.from_pretrained(whisper)
    tokenizer = AutoTokenizer.from_pretrained(whisper, trust_remote_code=False)
    heard: list[str] = []
    for start in range(0, len(paths), WHISPER_BATCH):
        wavs = [load_audio(path, WHISPER_SECONDS) for path in paths[start : start + WHISPER_BATCH]]
        inputs = features(wavs, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        ids = model.generate(inputs, max_new_tokens=WHISPER_TOKENS, num_beams=1)
        heard += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return heard


def whisper_errors(whisper: Path, annotations: Path, prefix: Path) -> dict[str, float]:
    """Word error rates of Whisper's own decoder on the speech sets, without clips that cannot be read."""
    normalise = normaliser("english", str(whisper)).function
    rates = {}
    for name in SPEECH:
        entries = read_json(annotations / f"test_{name}.json")["annotation"]
        said_in = {str(prefix / entry["path"]): entry["text"] for entry in entries}
        readable = {verdict.path for verdict in check_files(said_in, "decode", jobs=1) if verdict.ok}
        clips = [clip for clip in said_in if clip in readable]
        if clips:
            heard = normalise(whisper_answers(whisper, clips))
            said = [[text] for text in normalise([said_in[clip] for clip in clips])]
            edits, words = zip(*word_errors(Texts(heard, said)), strict=True)
            rates[name] = sum(edits) / sum(words)
    return rates


def _nearness(annotations: Path, trained: Sequence[str]) -> dict[str, Any]:
    """How near the sentences of each test set are to what was trained on; None of sets without any."""
    found: dict[str, Any] = {}
    for name in RECOGNITION:
        tested = _texts(annotations / f"test_{name}.json")
        stand_inside = texts.inside(tested, trained)
        share = sum(text in stand_inside for text in tested) / len(tested) if tested else None
        found[f"{IN_SUMMARY[name]}_inside_training"] = share
        found[f"{IN_SUMMARY[name]}_known_{KNOWN_RUN}grams"] = texts.known_runs(tested, trained, KNOWN_RUN)
    return found


def _texts(file: Path) -> list[str]:
    return [texts.spoken(entry["text"]) for entry in read_json(file)["annotation"]]


def summarise(out: Path, whisper: Mapping[str, float], minutes: Mapping[str, float]) -> dict[str, Any]:
    """Everything in one flat object, None where there is nothing to tell; `minutes` of each part."""
    summary: dict[str, Any] = {}
    reports = _reports(out)
    for name in SETS:
        metric, report = "exact" if name in TASKS else "wer", reports.get(name, _NOTHING)
        for suffix in ("", "_shuffled"):
            # of a single clip there is no shuffled audio and no interval
            summary[f"{_key(name)}{suffix}"] = report["scores"].get(f"{metric}{suffix}")
            summary[f"{_key(name)}{suffix}_interval"] = report["intervals"].get(f"{metric}{suffix}")
        summary[f"clips_{IN_SUMMARY.get(name, name)}"] = report["scored_clips"].get(metric, 0)
    summary |= {f"wer_whisper_{IN_SUMMARY[name]}": whisper.get(name) for name in SPEECH}
    trained = _texts(out / "ann/stage1_train.json")  # the later stages ask about some of the same clips
    summary |= _nearness(out / "ann", trained)
    for name in RECOGNITION:
        if summary[_key(name)] is not None and summary[f"{IN_SUMMARY[name]}_inside_training"]:
            summary |= _not_inside(out, name, trained)
    return summary | {"minutes": round(sum(minutes.values()), 1), "minutes_of_parts": dict(minutes)}


def _key(name: str) -> str:
    """Of a test set's score in the summary."""
    kind = "accuracy" if name in TASKS else "agreement_errors" if name in AGREEMENT else "wer"
    return f"{kind}_{IN_SUMMARY.get(name, name)}"


def _not_inside(out: Path, name: str, trained: Sequence[str]) -> dict[str, Any]:
    """Word errors of those sentences of a set alone that stand in no trained text."""
    folder = out / "results/table3" / name
    scored = read_json(folder / "statistics.json")["wer"]
    said = [texts.spoken(line["references"][0]) for line in read_json_lines(folder / "predictions.jsonl", "an answer")]
    stand_inside = texts.inside(said, trained)
    pairs = zip(scored["rows"], scored["values"], strict=True)
    counted = np.array([values for row, values in pairs if said[row] not in stand_inside]).reshape(-1, 2)
    key = f"{_key(name)}_not_inside"
    return {
        key: value_of(METRICS["wer"], counted),
        f"{key}_interval": interval_of(METRICS["wer"], counted),
        f"clips_{IN_SUMMARY[name]}_not_inside": len(counted),
    }


def write_report(
    out: Path, summary: dict[str, Any], used: Sequence[sources.Source], trained_on: str, of_a_folder: bool
) -> None:
    """summary.json and report.md; `of_a_folder`: trained on a corpus whose speakers are not known here."""
    write_json(out / "summary.json", summary)
    reports = _reports(out)
    parts = [
        "# A SALMONN on real parts",
        f"Whisper's encoder and a chat model, both frozen; Q-Former, projection and LoRA trained in stages 0 to 3 on "
        f"{trained_on}. *Shuffled*: every question answered once more with the audio of another clip, which a model "
        "that listens is far worse with. In brackets 95 % intervals over clips.",
        "## Speech recognition: word error rates",
        table(["heard", "clips", "this model", "shuffled", "Whisper's own decoder"], _speech_rows(summary, reports)),
        *([_of_other_people(of_a_folder)] if reports.keys() & {"librivox", "speaker"} else []),
        "### How near the test is to what was trained on",
        f"Of the sentences those that stand in a trained text word for word, as single words inevitably do; of the "
        f"different sequences of {KNOWN_RUN} words those that stand in a trained text.",
        table(
            ["heard", "sentences inside", f"{KNOWN_RUN} words inside", "word errors of the other sentences"],
            _nearness_rows(summary, reports),
        ),
        "## Questions: share of right answers",
        table(["question", "clips", "this model", "shuffled"], _task_rows(summary, reports)),
        "## Answers",
        *(f"{SETS[name]}:\n\n{_answers(out, name)}" for name in reports),
        "## Training",
        *(f"![stage {i}](stage{i}/training_curves.png)" for i in range(4)),
        table(["part", "minutes"], [[part, f"{n:.1f}"] for part, n in summary["minutes_of_parts"].items()]),
        "## Where it comes from",
        table(["what", "package", "licence"], [[one.what, one.name, one.licence] for one in used]),
    ]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _of_other_people(of_a_folder: bool) -> str:
    if of_a_folder:
        return (
            "Whether the LibriVox reader and the other people are heard in the corpus, too, was not looked at: "
            "LibriSpeech is made of LibriVox."
        )
    return "Of the LibriVox reader and of the other people nothing is trained on; the other voices are."


def _reports(out: Path) -> dict[str, dict[str, Any]]:
    paths = {name: out / "results" / "table3" / name / "report.json" for name in SETS}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def _speech_rows(summary: Mapping[str, Any], reports: Mapping[str, Any]) -> list[list[str]]:
    return [
        [title, str(summary[f"clips_{IN_SUMMARY[name]}"])]
        + [_with_interval(summary, f"{_key(name)}{suffix}") for suffix in ("", "_shuffled")]
        + [_share(summary.get(f"wer_whisper_{IN_SUMMARY[name]}"))]
        for name, title in RECOGNITION.items()
        if name in reports
    ]


def _nearness_rows(summary: Mapping[str, Any], reports: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, title in RECOGNITION.items():
        if name in reports:
            shares = [summary[f"{IN_SUMMARY[name]}_{what}"] for what in ("inside_training", f"known_{KNOWN_RUN}grams")]
            key = f"{_key(name)}_not_inside"
            of_others = _with_interval(summary, key) if key in summary else "as above"
            rows.append([title, *map(_share, shares), of_others])
    return rows


def _task_rows(summary: Mapping[str, Any], reports: Mapping[str, Any]) -> list[list[str]]:
    return [
        [title, str(summary[f"clips_{name}"])]
        + [_with_interval(summary, f"{_key(name)}{suffix}") for suffix in ("", "_shuffled")]
        for name, title in TASKS.items()
        if name in reports
    ]


def _with_interval(summary: Mapping[str, Any], key: str) -> str:
    interval = summary[f"{key}_interval"]
    return _share(summary[key]) + (f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _answers(out: Path, name: str) -> str:
    lines = list(read_json_lines(out / "results" / "table3" / name / "predictions.jsonl", "an answer"))[:SHOWN]
    rows = [
        [f"[{Path(line['path']).name}](data/{line['path']})", line["references"][0], line["text"]] for line in lines
    ]
    return table(["listen", "truth", "answer"], rows)
