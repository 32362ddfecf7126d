"""What came out: the test sets, Whisper's own decoder beside the model, summary.json and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from salmonn.audio.decode import SAMPLE_RATE, load_audio
from salmonn.common.files import read_json, read_json_lines, write_json, write_text
from salmonn.data.integrity import check_files
from salmonn.evaluation.metrics.base import Texts
from salmonn.evaluation.metrics.word_errors import word_errors
from salmonn.evaluation.normalisers import normaliser
from salmonn.evaluation.report.tables import table
from util.small_model import sources

SPEECH = {  # test set: what it is
    "corpus": "of the corpus that was trained on, other sentences",
    "prompt": "real telephone prompts, sentences that were not trained on; their speaker was",
    "word": "real single words, not trained on alone from this speaker",
    "librivox": "LibriVox, neither sentence nor speaker was trained on",
    "speaker": "short phrases of other people, of whom nothing was trained on",
}
IN_SUMMARY = {
    "corpus": "corpus", "prompt": "real_prompts", "word": "real_words", "librivox": "librivox",
    "speaker": "unseen_speakers",
}  # fmt: skip
TASKS = {
    "language": "which of five languages",
    "music_speech": "music or speech",
    "voice": "a woman or a man",
    "QA": "questions about what is said",
}
WHISPER_SECONDS, WHISPER_TOKENS, WHISPER_BATCH = 30.0, 80, 16
SHOWN = 10  # answers, of each set


def write_eval_tasks(out: Path, annotations: Path) -> None:
    """The tasks file of `evaluate.py --mode table3` for those sets that are not empty."""
    chosen: dict[str, Any] = {}
    for name, title in (SPEECH | TASKS).items():
        file = annotations / f"test_{name}.json"
        if not read_json(file)["annotation"]:
            continue
        is_speech = name in SPEECH
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
        texts = {str(prefix / entry["path"]): entry["text"] for entry in entries}
        readable = {verdict.path for verdict in check_files(texts, "decode", jobs=1) if verdict.ok}
        clips = [clip for clip in texts if clip in readable]
        if clips:
            heard = normalise(whisper_answers(whisper, clips))
            said = [[text] for text in normalise([texts[clip] for clip in clips])]
            edits, words = zip(*word_errors(Texts(heard, said)), strict=True)
            rates[name] = sum(edits) / sum(words)
    return rates


def summarise(out: Path, whisper: Mapping[str, float], minutes: Mapping[str, float]) -> dict[str, Any]:
    """Everything in one flat object; `minutes` of each part."""
    summary: dict[str, Any] = {}
    for name, report in _reports(out).items():
        metric = "wer" if name in SPEECH else "exact"
        key = f"wer_{IN_SUMMARY[name]}" if name in SPEECH else f"accuracy_{name}"
        for suffix in ("", "_shuffled"):
            # of a single clip there is no shuffled audio and no interval
            summary[f"{key}{suffix}"] = report["scores"].get(f"{metric}{suffix}")
            summary[f"{key}{suffix}_interval"] = report["intervals"].get(f"{metric}{suffix}")
        summary[f"clips_{IN_SUMMARY.get(name, name)}"] = report["n"]
    summary |= {f"wer_whisper_{IN_SUMMARY[name]}": rate for name, rate in whisper.items()}
    return summary | {"minutes": round(sum(minutes.values()), 1), "minutes_of_parts": dict(minutes)}


def write_report(out: Path, summary: dict[str, Any], used: Sequence[sources.Source], trained_on: str) -> None:
    """summary.json and report.md."""
    write_json(out / "summary.json", summary)
    reports = _reports(out)
    parts = [
        "# A SALMONN on real parts",
        f"Whisper's encoder and a chat model, both frozen; Q-Former, projection and LoRA trained in stages 0 to 3 on "
        f"{trained_on}. *Shuffled*: every question answered once more with the audio of another clip, which a model "
        "that listens is far worse with. In brackets 95 % intervals over clips.",
        "## Speech recognition: word error rates",
        table(["heard", "clips", "this model", "shuffled", "Whisper's own decoder"], _speech_rows(summary, reports)),
        "## Questions: share of right answers",
        table(["question", "clips", "this model", "shuffled"], _task_rows(summary, reports)),
        "## Answers",
        *(f"{(SPEECH | TASKS)[name]}:\n\n{_answers(out, name)}" for name in reports),
        "## Training",
        *(f"![stage {i}](stage{i}/training_curves.png)" for i in range(4)),
        table(["part", "minutes"], [[part, f"{n:.1f}"] for part, n in summary["minutes_of_parts"].items()]),
        "## Where it comes from",
        table(["what", "package", "licence"], [[one.what, one.name, one.licence] for one in used]),
    ]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _reports(out: Path) -> dict[str, dict[str, Any]]:
    paths = {name: out / "results" / "table3" / name / "report.json" for name in (SPEECH | TASKS)}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def _speech_rows(summary: Mapping[str, Any], reports: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name in reports:
        if name in SPEECH:
            key = IN_SUMMARY[name]
            own = [_with_interval(summary, f"wer_{key}{suffix}") for suffix in ("", "_shuffled")]
            whisper = summary.get(f"wer_whisper_{key}")
            shown = "-" if whisper is None else f"{whisper:.1%}"
            rows.append([SPEECH[name], str(summary[f"clips_{key}"]), *own, shown])
    return rows


def _task_rows(summary: Mapping[str, Any], reports: Mapping[str, Any]) -> list[list[str]]:
    return [
        [TASKS[name], str(summary[f"clips_{name}"])]
        + [_with_interval(summary, f"accuracy_{name}{suffix}") for suffix in ("", "_shuffled")]
        for name in reports
        if name in TASKS
    ]


def _with_interval(summary: Mapping[str, Any], key: str) -> str:
    score, interval = summary[key], summary[f"{key}_interval"]
    if score is None:
        return "-"
    return f"{score:.1%}" + (f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")


def _answers(out: Path, name: str) -> str:
    lines = list(read_json_lines(out / "results" / "table3" / name / "predictions.jsonl", "an answer"))[:SHOWN]
    rows = [
        [f"[{Path(line['path']).name}](data/{line['path']})", line["references"][0], line["text"]] for line in lines
    ]
    return table(["listen", "truth", "answer"], rows)
