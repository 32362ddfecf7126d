"""What the small model's stages are trained with, and what is told to who talks to it."""

import json
import math
import shlex
import sys

import pytest
from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.config.loading import load_config
from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.tokenizer import load_tokenizer
from tests.fixtures.lightweight import write_llm
from tests.fixtures.paths import ROOT
from tests.fixtures.small import arguments
from util import jobs, small
from util.small_model import job, parts

pytestmark = pytest.mark.usefixtures("installed_packages")


def test_it_computes_in_bfloat16_where_the_processor_does(tmp_path, monkeypatch):
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--options", "stage1:model.llm_dtype=float16"))
    monkeypatch.chdir(ROOT)
    for units, expected in ((True, ["bfloat16", "bf16"]), (False, ["float32", "off"])):
        monkeypatch.setattr(job, "computes_bfloat16", lambda units=units: units)
        config = load_config("configs/small/stage2.yaml", made.options("stage2"))
        assert [config.model.llm_dtype, config.run.amp_dtype if config.run.amp else "off"] == expected
        assert config.model.encoder_dtype == expected[0]
        assert made.options("stage1")[-1] == "model.llm_dtype=float16"  # what the user says counts


def samples(config: DictConfig, processes: int) -> int:
    return config.run.iters_per_epoch * config.run.batch_size_train * processes


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_a_stage_has_the_same_samples_on_any_number_of_processes(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--processes", processes))
    for name in ("stage0", "stage1", "stage2"):
        plain = load_config(f"configs/small/{name}.yaml")
        config = load_config(f"configs/small/{name}.yaml", made.options(name))
        assert 0 <= samples(config, processes) - samples(plain, 2) < config.run.batch_size_train * processes
        for of, planned in ((config.run, plain.run), (config.run.optims, plain.run.optims)):
            for key in {"valid_every_steps", "warmup_steps"} & of.keys():
                assert of[key] == math.ceil(2 * planned[key] / processes)
    assert not [option for option in made.options("evaluate") if "iters_per_epoch" in option]
    two = job.Small(arguments(monkeypatch, "--out", tmp_path)).options("stage1")
    assert not [option for option in two if option.startswith("run.iters_per_epoch")]


@pytest.mark.parametrize(("written", "processes", "expected"), [(None, 2, 20), (5, 2, 3), (5, 1, 5), (12, 2, 6)])
def test_stage_3_trains_each_story_once_that_was_written(written, processes, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--stories", 40, "--processes", processes))
    if written is not None:
        write_json(made.annotations("stage3_train"), {"annotation": [{}] * written})
    assert load_config("configs/small/stage3.yaml", made.options("stage3")).run.iters_per_epoch == expected


def test_some_of_the_stories_are_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--stories", 40))
    file, results = made.annotations("stage3_train"), [(3, 1), (None, 1), (3, 2), (40, 0)]
    write_json(file, {"annotation": [{}] * 9})  # of a try that was stopped

    def run(_title: str, command: list[str], _processes: int) -> tuple[float, int]:
        assert command[command.index("--out") + 1] == str(file)
        assert not file.exists()
        n, code = results.pop(0)
        if n is not None:
            write_json(file, {"annotation": [{}] * n})
        return 0.0, code

    monkeypatch.setattr(parts, "run_command", run)
    parts.write_stories(made)
    assert "stage 3 trains on the 3 of 40 stories that were kept" in capsys.readouterr().out
    for code in (1, 2):
        with pytest.raises(UserError, match=rf"stories for stage 3 failed \(exit code {code}\)"):
            parts.write_stories(made)
    parts.write_stories(made)
    assert results == []


def test_what_is_for_all_is_told_to_every_config_and_to_who_talks_to_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = ["all:model.max_seconds=20", "all:run.seed=3", "stage1:run.seed=4"]
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--options", *given))
    assert made.max_seconds == 20
    for name in ("stage0", "stage1", "stage2", "stories", "stage3", "evaluate", "decode"):
        config = load_config(f"configs/small/{name}.yaml", made.options(name))
        assert (config.model.max_seconds, config.run.seed) == (20, 4 if name == "stage1" else 3)


@pytest.mark.parametrize("bos", [None, "<|endoftext|>", "<|im_start|>"])
def test_a_prompt_begins_with_chatmls_first_token_whether_or_not_it_is_the_tokenizers_bos(bos, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_llm(tmp_path / "llm", "qwen2.5")
    settings = json.loads((tmp_path / "llm/tokenizer_config.json").read_text())
    (tmp_path / "llm/tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos}))
    given = ["--out", tmp_path, "--llm", tmp_path / "llm"]
    for name in ("stage1", "decode"):
        options = job.Small(arguments(monkeypatch, *given)).options(name)
        model = load_config(f"configs/small/{name}.yaml", options).model
        tokenizer = load_tokenizer(model)
        laid_out = build_llm_inputs(
            tokenizer, [1], [model.prompt_template.replace("{}", "<Speech><SpeechHere></Speech>")], [[]]
        )
        begins = tokenizer.decode(laid_out.token_ids[0]).removeprefix("<|endoftext|>")
        assert begins.startswith("<|im_start|>user\n<Speech>")
    own = job.Small(arguments(monkeypatch, *given, "--options", "all:model.prompt_template=so: {}"))
    assert load_config("configs/small/decode.yaml", own.options("decode")).model.prompt_template == "so: {}"


def test_what_comes_next_names_the_model_that_was_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(parts, "run_all", lambda _: None)
    monkeypatch.setattr(jobs, "ROOT", tmp_path / "root")  # without .venv

    def told(*given: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["small.py", *map(str, given)])
        small.main()
        return capsys.readouterr().out.partition("Then talk to it:\n")[2].splitlines()

    talks = [f"  python -m salmonn.{name} --cfg-path configs/small/decode.yaml" for name in ("chat", "web")]
    assert told() == talks
    chat, web = told("--out", tmp_path / "a b", "--whisper", tmp_path / "w", "--llm", tmp_path / "l")
    assert web == chat.replace("chat", "web")
    words = shlex.split(chat)
    model = load_config(words[words.index("--cfg-path") + 1], words[words.index("--options") + 1 :]).model
    assert model.ckpt == str(tmp_path / "a b/stage3/checkpoint_best.pth")
    assert (model.whisper_path, model.llama_path) == (str(tmp_path / "w"), str(tmp_path / "l"))
    assert "--options model.max_seconds=20" in told("--options", "all:model.max_seconds=20", "stage1:run.seed=3")[0]
