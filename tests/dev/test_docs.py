"""What the documents say is there: links, files, keys, tests, sizes; and their examples work."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dev import readme_outputs
from salmonn.config.foreign import LEFT_OUT, RENAMED
from salmonn.config.keys import known_keys
from salmonn.config.loading import load_config
from salmonn.data.annotations import Annotations
from salmonn.evaluation import METRICS, EvalTask
from salmonn.evaluation.tasks import check_names, load_tasks
from salmonn.model import prompts
from salmonn.model.tokenizer import load_tokenizer
from tests.fixtures.lightweight import write_llm
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG
from util.benchmarks.memory import Case, largest_batch, longest, model_without_values, predicted

PAGES = [ROOT / name for name in ("README.md", "README.ko.md", "ann/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OPTION = re.compile(r"(?:model|datasets|run|generate|evaluate)\.[A-Za-z0-9_.]+=")


def read(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: str | Path, language: str) -> list[str]:
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", read(page), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_resolve(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield str(page.relative_to(ROOT)), shlex.split(line, comments=True)


def test_commands_name_files_and_keys_that_there_are():
    seen = 0
    for page, words in commands():
        for word in words:
            if word.endswith(".py") or word.startswith("configs/"):
                assert (ROOT / word).is_file() or word.startswith("configs/qwen/"), (page, word)
                seen += 1
            if OPTION.match(word):
                assert word.partition("=")[0] in known_keys(), (page, word)
    assert seen > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_in_the_text_are_known(page: Path):
    sections, known = "model|datasets|run|generate|evaluate", [*known_keys(), *RENAMED, *LEFT_OUT]
    for name in re.findall(rf"`(?:--options )?((?:{sections})\.[A-Za-z0-9_.]+)(?:=[^`]*)?`", page.read_text("utf-8")):
        is_known = name in known or any(key.startswith(name.rstrip("*")) for key in known)
        assert is_known or name.endswith((".py", ".md")) or name in NOT_KEYS, name


NOT_KEYS = ("model.train", "model.lora_scaling", "model.svg")


def test_the_tests_that_prove_the_differences_are_there():
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(\w+)`", read("docs/differences.md"))
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in read(f"tests/{file}"), f"{file}::{name}"


def test_the_readme_shows_what_training_looks_like():
    assert "(docs/mini_curves.png)" in read("README.md")


def test_a_newcomer_reads_the_readme_in_five_minutes():
    assert len(read("README.md").splitlines()) <= 260


def test_memory_in_the_training_guide_is_what_is_predicted():
    rows = re.findall(
        r"^\| `(configs/\S+)` \| (\d+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", read("docs/training.md"), re.M
    )
    assert len(rows) == 8
    known = {}
    for name, clips, *shown in rows:
        config = load_config(ROOT / name)
        assert int(clips) == config.run.batch_size_train
        parts = (config.model.llama_path, config.model.second_per_window)
        if parts not in known:
            known[parts] = model_without_values(config.model)
        for value, (answer, checkpointing) in zip(
            shown, ((300, False), (60, False), (300, True), (60, True)), strict=True
        ):
            case = Case("cuda", 2, config.model.llm_quantization, config.run.amp, checkpointing, gradients_stay=True)
            needed = predicted(known[parts], case, longest(known[parts], int(clips), answer))
            assert f"{sum(needed.values()) / 1e9:.1f}" == value, (name, answer, checkpointing)


def test_largest_batches_in_performance_md_are_what_is_predicted():
    rows = re.findall(r"^\| `(configs/\S+)` \| (\S+) \| (\d+) \| (\d+) \| (\d+) \|$", read("docs/performance.md"), re.M)
    assert len(rows) == 4
    for name, quantization, answer, *shown in rows:
        config = load_config(ROOT / name)
        model = model_without_values(config.model)
        for checkpointing, most in zip((False, True), shown, strict=True):
            case = Case("cuda", 2, quantization, config.run.amp, checkpointing, gradients_stay=True)
            assert largest_batch(model, case, int(answer), 32e9) == int(most), (name, quantization, answer)


def sections_with_figures() -> dict[str, str]:
    """Of docs/performance.md those with a table of figures, which links to elsewhere are not."""
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", read("docs/performance.md"), re.M))
    rows = {title: re.findall(r"^\|.*\d.*\|$", text, re.M) for title, text in sections.items()}
    return {title: sections[title] for title in sections if rows[title] and title != "What each option gives"}


@pytest.mark.parametrize("title", sections_with_figures())
def test_figures_of_performance_md_have_a_command_a_machine_and_a_day(title: str):
    text = sections_with_figures()[title]
    assert re.search(r"`(OMP_NUM_THREADS=1 )?python ", text), "no command"
    assert re.search(r"Xeon|EPYC|H100|any machine", text), "no machine"
    assert re.search(r"20\d\d-\d\d-\d\d", text), "no day"
    assert "not kept" not in re.sub(r"[^.]*\(performance_history\.md#[^.]*\.", "", text), "belongs in the history"


def commands_of_performance_md() -> Iterator[list[str]]:
    for found in re.findall(
        r"`(?:OMP_NUM_THREADS=1 )?python ((?:util|experiments)/[^`]+)`", read("docs/performance.md")
    ):
        yield shlex.split(found)


def test_the_commands_of_performance_md_have_the_options_that_there_are(monkeypatch: pytest.MonkeyPatch):
    seen = []
    for script, *arguments in commands_of_performance_md():
        assert (ROOT / script).is_file(), script
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        monkeypatch.setattr("sys.argv", [script, *arguments])
        if "--help" not in arguments:
            module.parse_arguments()
        seen.append(script)
    assert len(seen) > 8


def test_every_room_has_one_line():
    """The README draws the rooms, docs/architecture.md says more of each."""
    rooms = {f"{path.name}/" for path in (ROOT / "salmonn").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "salmonn").glob("*.py") if path.name != "__init__.py"}
    (tree,) = [block for block in blocks("README.md", "") if "train.py  " in block]
    assert all(tree.count(f" {room}") == 1 for room in rooms)
    rows = re.findall(r"^\| `salmonn/(\S+)` \| \S.* \| `(tests/\S+)` \|$", read("docs/architecture.md"), re.M)
    assert sorted(name for name, _ in rows) == sorted(rooms)
    assert all((ROOT / tests).exists() for _, tests in rows)


def test_the_files_that_the_architecture_names_are_there():
    named = re.findall(r"`((?:[a-z_0-9]+/)+[\w.]*|\w+\.py)`", read("docs/architecture.md"))
    assert len(named) > 50
    for name in named:
        assert any((ROOT / folder / name).exists() for folder in ("", "salmonn", "salmonn/evaluation")), name


def test_no_room_imports_what_stands_above_all_rooms():
    above = re.compile(r"^\s*(?:from|import) (?:util|experiments|dev|tests)\b", re.M)
    assert [path.name for path in (ROOT / "salmonn").rglob("*.py") if above.search(path.read_text("utf-8"))] == []


def test_both_languages_show_the_same_blocks_and_numbers():
    english, korean = read("README.md"), read("README.ko.md")
    assert re.findall(r"^```.*?^```$", english, re.DOTALL | re.M) == re.findall(
        r"^```.*?^```$", korean, re.DOTALL | re.M
    )
    for rows in zip(english.splitlines(), korean.splitlines(), strict=True):
        if rows[0].startswith("|"):
            assert len({tuple(re.findall(r"\d[\d.]*", row)) for row in rows}) == 1, rows


@pytest.mark.parametrize("page", readme_outputs.FILES)
def test_every_output_and_picture_of_a_run_is_made_by_a_command_beside_it(page: str):
    made = [found["shown"] for found in readme_outputs.OUTPUT.finditer(read(page))]
    layouts = [block for block in blocks(page, "") if re.match(r"(train\.py|data/\S+) {2}", block)]
    assert len(layouts) == (2 if page.startswith("README") else 0)
    assert sorted(blocks(page, "")) == sorted(made + layouts)
    pictures = {found["file"]: found["command"] for found in readme_outputs.PICTURE.finditer(read(page))}
    assert set(re.findall(r"\(((?:docs/)?mini_\w+\.png)\)", read(page))) <= pictures.keys()
    assert all(f"docs/{Path(file).name}" in command.split() for file, command in pictures.items())


# ---- docs/extending.md


@pytest.fixture
def here(tmp_path: Path, mini_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root after `make quickstart`."""
    (tmp_path / "output/mini").mkdir(parents=True)
    (tmp_path / "output/mini/world").symlink_to(mini_world)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_task_of_the_example_has_prompts_data_and_a_score(here: Path):
    exec(blocks("docs/extending.md", "python")[0], {})
    tasks_file = here / "output/mine/tasks.yaml"
    tasks_file.write_text(blocks("docs/extending.md", "yaml")[0])
    (task,) = load_tasks(tasks_file)
    entries = Annotations(here / task.annotation)
    assert {entries[i]["task"] for i in range(len(entries))} == set(task.accepts)
    assert len(prompts.load_train_prompts(here / "output/mine/train_prompt.json", "{}")["word_count"]) == 2
    assert "word_count" in prompts.load_test_prompts(here / "output/mine/test_prompt.json", "{}")


def test_the_corpus_of_the_example_works_as_printed(tmp_path: Path):
    for name in ("configs", "salmonn"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "util", tmp_path / "util", ignore=shutil.ignore_patterns("__pycache__"))
    reader, entry = blocks("docs/extending.md", "python")[1:3]
    (tmp_path / "util/eval_sets/mycorpus.py").write_text(reader)
    with (tmp_path / "util/eval_sets/catalogue.py").open("a") as catalogue:
        catalogue.write(f"\n{entry}")
    clips = tmp_path / "data/MyCorpus/clips"
    clips.mkdir(parents=True)
    soundfile.write(clips / "1.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    for name in ("test", "train"):
        (clips.parent / f"{name}.csv").write_text("file,text\n1.wav,hello\n2.wav,there\n")
    for line in blocks("docs/extending.md", "bash")[1].splitlines():
        words = shlex.split(line)[1:]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, (words, done.stderr)
    for name in ("mycorpus", "mycorpus_train"):
        (first, second) = json.loads((tmp_path / f"ann/{name}.json").read_text())["annotation"]
        assert first == {"path": "/MyCorpus/clips/1.wav", "text": "hello", "task": "asr", "testset_id": "1.wav"}
        assert second["text"] == "there"
    assert len((tmp_path / "ann/verdicts.jsonl").read_text().splitlines()) == 1


def test_the_llm_of_the_example_is_one_that_can_be_loaded(tmp_path: Path):
    (tmp_path / "qwen").mkdir()
    for file in ("stage1.yaml", "base.yaml"):
        (tmp_path / file).symlink_to(ROOT / "configs" / file)
    config_file = tmp_path / "qwen/stage1.yaml"
    config_file.write_text(blocks("docs/extending.md", "yaml")[1])
    write_llm(tmp_path / "llm", "qwen2.5")
    config = load_config(config_file, [f"model.llama_path={tmp_path}/llm"])
    assert load_tokenizer(config.model).eos_token == config.model.end_sym
    assert config.run.batch_size_train == load_config(ROOT / "configs/stage1.yaml").run.batch_size_train


@pytest.mark.usefixtures("here")
def test_the_metric_of_the_example_is_one_more_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METRICS, "polite", None)  # and away again afterwards
    given: list[EvalTask] = []
    monkeypatch.setattr("salmonn.evaluation.evaluate_tasks", lambda *args: given.extend(args[1]))
    exec(blocks("docs/extending.md", "python")[-1], {})
    (task,) = given
    check_names(task, "the example")
    assert Path(task.annotation).is_file()
    assert METRICS["polite"].title == "says please"


def test_example_entries_lie_where_the_page_of_corpora_says(tmp_path):
    example = re.search(r"```json\n(.*?)```", (ROOT / "ann/README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.json").write_text(example[1])
    annotations = Annotations(tmp_path / "example.json", end_sym="</s>")
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    folders = [path.rpartition("/")[0] + "/" for path in re.findall(r"\*file\* `(/\S+)`", page)]
    assert len(folders) >= 10
    for i in range(len(annotations)):
        assert any(annotations[i]["path"].startswith(folder) for folder in folders), annotations[i]["path"]
    assert "audiocap_id" not in annotations[1]["path"]
    assert re.fullmatch(r"/AudioCaps/train/[\w-]{11}\.wav", annotations[1]["path"])  # an id of YouTube
