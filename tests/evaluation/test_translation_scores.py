"""BLEU against sacrebleu's own corpus score."""

import random

import pytest
import sacrebleu

from salmonn.evaluation.metrics import METRICS, Texts, measure, translation
from salmonn.evaluation.metrics.base import RESAMPLES

GERMAN = "Der Hund, der rote, läuft schnell; die Katze schläft. Das Haus (am Fluss) hat 1,5 Türen!".split()
CHINESE = [*"红狗在房子旁边跑步，蓝猫睡觉。", "BBC", "12"]
JAPANESE = [*"赤い犬が家のそばを走る、青い猫は眠る。"]


def generated(pieces: list[str], joint: str, n: int = 60) -> Texts:
    """Outputs near their references, one to three references a clip, some outputs short or empty."""
    rng = random.Random(1)
    outputs, references = [], []
    for _ in range(n):
        base = rng.choices(pieces, k=rng.randint(2, 25))
        references.append(
            [joint.join(p for p in base if rng.random() > drop) for drop in (0, 0.2)][: rng.randint(1, 2)]
        )
        outputs.append(joint.join(p for p in base if rng.random() > rng.choice((0, 0.3, 0.9, 1))))
    return Texts(outputs, references)


def by_sacrebleu(texts: Texts, tokenizer: str) -> float:
    width = max(map(len, texts.references))
    streams = [[refs[i] if i < len(refs) else None for refs in texts.references] for i in range(width)]
    return sacrebleu.corpus_bleu(list(texts.outputs), streams, tokenize=tokenizer).score


@pytest.mark.parametrize(
    ("metric", "tokenizer", "pieces", "joint"),
    [
        (METRICS["bleu"], "13a", GERMAN, " "),
        (METRICS["bleu_zh"], "zh", CHINESE, ""),
    ],
)
def test_bleu_equals_sacrebleus_corpus_score(metric, tokenizer, pieces, joint):
    texts = generated(pieces, joint)
    measured = measure(metric, texts, [True] * len(texts.outputs))
    assert measured.value == by_sacrebleu(texts, tokenizer)
    assert 10 < measured.value < 95
    low, high = measured.interval
    assert low < measured.value < high
    half = texts.take(range(0, 60, 2))
    finished = measure(metric, texts, [i % 2 == 0 for i in range(60)]).finished
    assert finished == by_sacrebleu(half, tokenizer)
    assert metric.show(33.123) == "33.12"
    assert tokenizer in metric.title


def test_bleu_is_smoothed_as_by_sacrebleu_where_no_four_words_match():
    texts = Texts(["a dog runs far away", "rain"], [["a dog sits far off"], ["wind"]])
    value = measure(METRICS["bleu"], texts, [True] * 2).value
    assert value == by_sacrebleu(texts, "13a") > 0


def test_bleu_of_a_corpus_without_a_match_is_zero():
    assert measure(METRICS["bleu"], Texts(["x y", ""], [["a b"], ["c"]]), [True] * 2).value == 0.0


@pytest.mark.parametrize("installed", [True, False])
def test_japanese_is_told_by_its_tokenizer(installed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(translation, "find_spec", lambda _: installed or None)
    metric = translation.bleu("ja")
    assert metric.title == ("BLEU4 (ja-mecab)" if installed else "BLEU4 (char)")
    if not installed:
        texts = generated(JAPANESE, "")
        measured = measure(metric, texts, [True] * len(texts.outputs))
        assert measured.value == by_sacrebleu(texts, "char")
        assert measured.details["tokenizer"] == "char"
        assert "pip install 'sacrebleu[ja]'" in measured.details["note"]


def test_japanese_words_are_mecabs_where_it_is_installed():
    pytest.importorskip("MeCab")
    texts = generated(JAPANESE, "")
    assert measure(METRICS["bleu_ja"], texts, [True] * 60).value == by_sacrebleu(texts, "ja-mecab")


def test_the_bootstrap_agrees_with_sacrebleus():
    texts = generated(GERMAN, " ", 200)
    low, high = measure(METRICS["bleu"], texts, [True] * 200).interval
    single = [[refs[0] for refs in texts.references], [refs[-1] for refs in texts.references]]
    score = sacrebleu.metrics.BLEU().corpus_score(list(texts.outputs), single, n_bootstrap=RESAMPLES)
    assert (high - low) / 2 == pytest.approx(score._ci, rel=0.15)
