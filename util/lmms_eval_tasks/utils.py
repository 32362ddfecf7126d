"""What mini_asr.yaml needs: the clip of an entry, and lmms-eval's own word error rate."""

from lmms_eval.tasks.librispeech.utils import librispeech_wer


def clip(entry: dict) -> list[str]:
    """The entry's file."""
    return [f"output/mini/world/audio{entry['path']}"]


def said_and_heard(entry: dict, answers: list[str]) -> dict:
    """What lmms-eval's LibriSpeech keeps of an answer."""
    return {"wer": {"gt": entry["text"], "pred": answers[0], "task": "asr_en"}}


def word_error_rate(pairs: list[dict], _args: object = None) -> float:
    """In per cent."""
    return librispeech_wer(pairs, None)
