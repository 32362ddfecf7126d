"""util/samples_to_learn.py: when a curve has left the plateau, recipes that load, and a run of them end to end."""

import json
import math
import re
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.samples_to_learn import experiment
from experiments.samples_to_learn.criterion import HALF_WAY_ACCURACY, at_samples, half_way, left_plateau
from experiments.samples_to_learn.experiment import ObservedRunner, fill_cache, residual_writers, scale_
from experiments.samples_to_learn.kept import (
    aligned_folder,
    differences,
    doubts,
    made_by,
    read_curves,
    recipe_as_written,
)
from experiments.samples_to_learn.recipes import Recipe, Study, chosen, load_study, recipe_config, stage0_config
from experiments.samples_to_learn.report import markdown, summarise
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.training.runner import Runner
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT
from util import samples_to_learn

RECIPES = ROOT / "configs/mini/recipes.yaml"
AFTER_STAGE0 = ROOT / "configs/mini/recipes_after_stage0.yaml"
SMALL = ROOT / "configs/small/recipes.yaml"
ready = cache(load_study)  # of a file that no test changes: twenty configs are read for it


def curve_of(*ratios: float, accuracies: tuple[float, ...] = ()) -> list[dict]:
    """Points 100 samples apart with these ratios of the loss to the shuffled loss, which is 2."""
    accuracies = accuracies or (0.0,) * len(ratios)
    return [
        {"samples": 100 * i, "loss": 2 * ratio, "loss_shuffled": 2.0, "accuracy": accuracy}
        for i, (ratio, accuracy) in enumerate(zip(ratios, accuracies, strict=True), start=1)
    ]


def test_a_curve_that_stays_with_its_control_never_leaves():
    assert left_plateau(curve_of(1.0, 0.99, 0.95, 0.9)) == math.inf
    assert left_plateau([]) == math.inf


def test_a_curve_leaves_where_it_crosses_between_two_validations():
    assert left_plateau(curve_of(1.0, 0.9, 0.7, 0.5)) == pytest.approx(250)  # 0.8 is in the middle of 0.9 and 0.7


def test_a_curve_that_came_back_has_left_only_the_last_time():
    assert left_plateau(curve_of(1.0, 0.6, 0.6, 0.9, 0.7, 0.5)) == pytest.approx(450)
    assert left_plateau(curve_of(1.0, 0.6, 0.6, 0.9)) == math.inf


def test_one_validation_is_not_enough_to_have_left():
    assert left_plateau(curve_of(1.0, 0.9, 0.5)) == math.inf


def test_a_curve_below_from_the_beginning_left_at_its_first_validation():
    assert left_plateau(curve_of(0.5, 0.4, 0.3)) == 100


def test_a_task_is_judged_by_its_own_losses():
    curve = [
        {**whole, "tasks": {"asr": late}}
        for whole, late in zip(curve_of(0.5, 0.5, 0.5, 0.5), curve_of(1.0, 0.9, 0.7, 0.6), strict=True)
    ]
    assert left_plateau(curve) == 100
    assert left_plateau(curve, "asr") == pytest.approx(250)


def test_half_of_the_accuracy_must_be_kept_too():
    curve = curve_of(
        1, 1, 1, 1, accuracies=(0.5, HALF_WAY_ACCURACY + 0.1, HALF_WAY_ACCURACY - 0.1, HALF_WAY_ACCURACY + 0.1)
    )
    assert half_way(curve) == math.inf
    curve += [{**curve[-1], "samples": 500}]
    assert half_way(curve) == pytest.approx(350)


def test_a_value_is_found_between_the_points_that_have_one_and_nowhere_else():
    curve = [{"samples": 100, "cpu_seconds": 10, "rate": 0.8}, {"samples": 150, "cpu_seconds": 15}]
    curve += [{"samples": 200, "cpu_seconds": 30, "rate": 0.4}]
    assert at_samples(curve, 150, "rate") == pytest.approx(0.6)
    assert at_samples(curve, 25, "rate", by="cpu_seconds") == pytest.approx(0.5)
    assert math.isnan(at_samples(curve, 99, "rate"))
    assert math.isnan(at_samples(curve, 201, "rate"))


def beside_options(study: Study, name: str) -> dict:
    return recipe_as_written(study, name) | {"options": []}


@pytest.mark.parametrize(
    ("of_all", "option", "told"),
    [
        (True, "model.whisper_silence=null", "whisper_silence = 1.0 in stage 0, null in stage 1"),
        (False, "model.max_seconds=30", "max_seconds = 12.0 in stage 0, 30.0 in stage 1"),
        (False, "model.whisper_path=x", r'whisper_path = ".*whisper-tiny\.en" in stage 0, "x" in stage 1'),
    ],
)
def test_a_stage_0_that_hears_otherwise_is_refused(tmp_path, of_all, option, told):
    study = {"config": f"{ROOT}/configs/small/stage1.yaml", "valid_every_samples": 320}
    study["recipes"] = {"published": {}, "aligned": {"stage0": f"{ROOT}/configs/small/stage0.yaml"}}
    (study if of_all else study["recipes"]["aligned"])["options"] = [option]
    file = tmp_path / "recipes.yaml"
    file.write_text(json.dumps(study))
    with pytest.raises(UserError, match=rf"recipes\.yaml: aligned: model\.{told}.*stage0_options"):
        load_study(file)
    file.write_text(json.dumps(study | {"stage0_options": [option]}))
    load_study(file)


def test_each_way_of_hearing_has_a_stage_0_of_its_own(tmp_path):
    study = ready(ROOT / "configs/small/recipes_faster.yaml")
    folders = {name: aligned_folder(study, name, 1, tmp_path) for name in study.recipes}
    assert folders["published"] == folders["filled"] != folders["own_length"] == folders["own_length_tokens"]
    assert folders["own_length_spelled"] == folders["own_length"]
    run, short = stage0_config(study, "published").run, stage0_config(ready(SMALL), "spelled").run
    assert (run.iters_per_epoch, run.batch_size_train, run.optims) == (300, 32, short.optims)


def test_each_world_compares_a_few_recipes_by_itself():
    few = {RECIPES: ["stage0_muon", "spelled_tiny", "winner"], SMALL: ["stage0_short", "spelled"]}
    for recipes, after_stage0 in few.items():
        study = ready(recipes)
        assert chosen(study, [], recipes) == ["published", "ctc_beside", *after_stage0]
        assert chosen(study, ["all"], recipes) == list(study.recipes)
        assert chosen(study, [after_stage0[-1], "published"], recipes) == [after_stage0[-1], "published"]


def test_the_winner_of_the_miniature_world_is_the_best_found_after_stage_0(tmp_path):
    study, best_study, best = ready(RECIPES), ready(AFTER_STAGE0), "gently_overlap_half"
    assert aligned_folder(study, "winner", 1, tmp_path) == aligned_folder(best_study, best, 1, tmp_path)
    winner, found = recipe_config(study, "winner"), recipe_config(best_study, best)
    assert winner.model == found.model
    assert winner.run.optims.muon_lr_factor == found.run.optims.muon_lr_factor


def test_what_runs_without_only_is_said_in_the_file(world, monkeypatch, capsys):
    text, made = (world / "recipes.yaml").read_text(), []
    monkeypatch.setattr(experiment, "fill_cache", lambda _, names, __: made.append(names))
    monkeypatch.setattr(experiment, "measure", lambda _, name, seed, *__: made.append((name, seed)))

    def runs(*more: str) -> list:
        made.clear()
        arguments = ["--recipes", str(world / "recipes.yaml"), "--out", str(world / "out"), "--seeds", "4", *more]
        monkeypatch.setattr(sys, "argv", ["samples_to_learn.py", *arguments])
        with pytest.raises(UserError, match="holds no finished run"):  # none is made here
            samples_to_learn.main()
        return made[:]

    (world / "recipes.yaml").write_text(f"default: [plain]\n{text}  plain: {{}}\n")
    assert runs() == [["plain"], ("plain", 4)]
    assert runs("--only", "all") == [["aligned", "plain"], ("aligned", 4), ("plain", 4)]
    (world / "recipes.yaml").write_text(text)
    assert runs() == [["aligned"], ("aligned", 4)]  # a file without a default: all
    monkeypatch.setattr(sys, "argv", ["samples_to_learn.py", "--help"])
    with pytest.raises(SystemExit):
        samples_to_learn.main()
    assert "all" in capsys.readouterr().out.partition("--only")[2]
    monkeypatch.setattr(sys, "argv", ["samples_to_learn.py", "--recipes", f"{world}/recipes.yaml", "--only", "sprout"])
    with pytest.raises(UserError, match=r"--only, .*recipes\.yaml: no recipe is called sprout; there are aligned"):
        samples_to_learn.main()
    (world / "recipes.yaml").write_text(f"default: [plain, aligned]\n{text}")
    with pytest.raises(UserError, match=r"recipes\.yaml: default: no recipe is called plain; there"):
        load_study(world / "recipes.yaml")


def test_every_recipe_is_spoken_of():
    page = (ROOT / "docs/samples_to_learn.md").read_text()
    names = [name for file in (RECIPES, AFTER_STAGE0, SMALL) for name in ready(file).recipes]
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)] == []


def test_the_choice_of_what_runs_is_no_other_run(world):
    text = (world / "recipes.yaml").read_text()
    made = made_by(load_study(world / "recipes.yaml"), "aligned")
    (world / "recipes.yaml").write_text(f"default: [aligned]\n{text}")
    assert differences(made, made_by(load_study(world / "recipes.yaml"), "aligned")) == []


@pytest.mark.parametrize(
    "recipes",
    [path for world in ("mini", "small") for path in sorted((ROOT / "configs" / world).glob("recipes*.yaml"))],
)
def test_the_recipes_are_usable_and_differ_from_the_first_in_what_they_say(recipes):
    study = ready(recipes)
    first, *others = study.recipes
    assert len(others) >= 2
    base = recipe_config(study, first)
    assert base.run.optims.lora_lr_factor == 1
    for name in (name for name, recipe in study.recipes.items() if recipe.stage0):
        before, after = stage0_config(study, name).model, recipe_config(study, name).model
        assert (before.max_seconds, before.whisper_silence) == (after.max_seconds, after.whisper_silence), name
    for name in others:
        assert study.recipes[name].says, name
        assert beside_options(study, name) != beside_options(study, first) or recipe_config(study, name) != base, name


def test_what_every_stage_0_has_stands_once(tmp_path):
    file = tmp_path / "recipes.yaml"
    stage0 = f"{{stage0: {ROOT}/configs/mini/stage0.yaml, stage0_options: [run.optims.max_epoch=1]}}"
    file.write_text(
        f"config: {ROOT}/configs/mini/stage1.yaml\nstage0_options: [run.batch_size_train=48, run.optims.max_epoch=7]\n"
        f"recipes:\n  short: {stage0}\n  long: {{stage0: {ROOT}/configs/mini/stage0.yaml}}\n"
    )
    study = load_study(file)
    short, long = (stage0_config(study, name, ["run.seed=3"]).run for name in study.recipes)
    assert (short.batch_size_train, short.optims.max_epoch, short.seed) == (48, 1, 3)
    assert (long.batch_size_train, long.optims.max_epoch) == (48, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("options: [run.optims.lora_factor=2]", "lora_lr_factor"),
        ("speed: 2", "speed"),
        ("options: [run.batch_size_train=100]", "does not divide"),
        ("frame_dropout: 1", "below 1"),
        ("stage0_frame_dropout: -0.1", "at least 0"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_told_at_once(tmp_path, change, message):
    file = tmp_path / "recipes.yaml"
    file.write_text(f"config: {ROOT}/configs/mini/stage1.yaml\nrecipes:\n  odd:\n    {change}\n")
    with pytest.raises(UserError, match=message):
        load_study(file)


def test_the_scale_of_the_residual_stream_changes_no_logit(mini_world):
    llm = AutoModelForCausalLM.from_pretrained(mini_world / "weights" / "llama").eval()
    llm.config.rms_norm_eps = 0.0
    for module in llm.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0  # the only thing that knows the scale
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = llm(ids).logits
        scale_(residual_writers(llm), 1 / 16)
        torch.testing.assert_close(llm(ids).logits, before)


def test_weights_in_8_bits_stay_as_they_are():
    scale_([torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)], 1.0)


def test_speed_and_each_seeds_word_errors_are_shown_beside_the_first_recipe():
    study = ready(RECIPES)

    def curves(speed: float, *rates: float) -> dict[int, list[dict]]:
        points = [{**point, "cpu_seconds": 50.0, "tasks": {}} for point in curve_of(1.0)]
        told = {"samples_per_cpu_second": speed} if speed else {}
        return {seed: [points[0] | told | {"word_error_rate": rate}] for seed, rate in enumerate(rates, start=1)}

    of = {"published": curves(40.0, 0.1, 0.3), "half_batch": curves(60.0, 0.2, 0.08), "no_warmup": curves(0, 0.5, 0.5)}
    _, compared, on_the_way = markdown(summarise(study, of)).split("\n\n")
    _, faster, unknown = compared.splitlines()[-3:]
    assert [cell.strip() for cell in faster.split("|")[-5:-1]] == ["60.0, 60.0", "1.50", *2 * ["14.0 % (20.0, 8.0)"]]
    assert [cell.strip() for cell in unknown.split("|")[-5:-3]] == ["-", "-"]  # runs of before it was counted
    cells = [cell.strip() for cell in on_the_way.splitlines()[-2].split("|")[1:-1]]
    assert cells == ["half_batch", "2.000, 2.000", "14.0 % (20.0, 8.0)", "2.000, 2.000", "50"]


def test_a_cache_is_filled_once_for_each_way_of_encoding(mini_world, tmp_path, monkeypatch):
    built = []
    namespace = SimpleNamespace(eval=SimpleNamespace)
    monkeypatch.setattr(experiment, "build_model", lambda *of: built.append(of[:2]) or namespace)
    monkeypatch.setattr(experiment, "open_datasets", lambda *_: {})
    monkeypatch.setattr(experiment, "open_cache", lambda *_: None)
    study = ready(ROOT / "configs/mini/recipes_faster.yaml")
    options = [*train_options(mini_world, tmp_path), "model.ckpt=", "run.encoder_cache=cache"]
    fill_cache(study, ["published", "own_length", "own_length_tokens", "int8"], options)
    assert [model.whisper_silence for model, _ in built] == [None, 0.0]


def test_recipes_that_want_the_same_stage_0_share_one(tmp_path):
    study = ready(AFTER_STAGE0)
    pairs = [("frame_dropout_both", "frame_dropout_stage0"), ("overlap_half", "gently_overlap_half")]
    own = {"half_windows", "overlap_third", "layer_norm", *pairs[0], *pairs[1]}
    folders = {name: aligned_folder(study, name, 1, tmp_path) for name in study.recipes}
    assert {name for name, folder in folders.items() if folder != folders["stage0_muon"]} == own
    assert all(folders[one] == folders[other] for one, other in pairs)
    assert len(set(folders.values())) == 1 + len(own) - len(pairs)
    assert aligned_folder(study, "muon", 2, tmp_path) != folders["muon"]
    assert aligned_folder(study, "muon", 1, tmp_path, ["model.llama_path=x"]) != folders["muon"]
    assert aligned_folder(study, "muon", 1, tmp_path, ["run.log_freq=9"]) == folders["muon"]  # stage 1's alone


def test_a_run_of_before_is_known_again():
    recipe = {"stage0": "stage0.yaml", "stage0_options": ["a"]}
    study = Study(options=["x"], recipes={"old": Recipe(**recipe), "new": Recipe(**recipe, curriculum="asr")})
    before = {"options": ["x"], "tasks": [], "projection_scale": 1.0, "llm_scale": 1.0, **recipe}
    assert recipe_as_written(study, "old") == before
    assert recipe_as_written(study, "new") == before | {"curriculum": "asr"}


@pytest.fixture
def world(tmp_path):
    """A file of recipes, its configs, annotations and prompts, to be changed: its folder."""
    for stage, more in ((0, "run: {objective: ctc}"), (1, "run: {batch_size_train: 4}")):
        ann = f"train_ann_path: {tmp_path}/train.json, valid_ann_path: {tmp_path}/valid.json"
        model = f"prompt_path: {tmp_path}/prompts.json"
        (tmp_path / f"stage{stage}.yaml").write_text(f"model: {{{model}}}\ndatasets: {{{ann}}}\n{more}\n")
    for name in ("train", "valid", "other"):
        write_entries(tmp_path / f"{name}.json", name)
    (tmp_path / "prompts.json").write_text("{}")
    recipes = f"config: {tmp_path}/stage1.yaml\nrecipes:\n  aligned: {{stage0: {tmp_path}/stage0.yaml}}\n"
    (tmp_path / "recipes.yaml").write_text(recipes)
    return tmp_path


def write_entries(path, text):
    path.write_text(json.dumps({"annotation": [{"path": "a.wav", "text": text, "task": "asr"}]}))


def write_run(out, made):
    (out / "aligned-1").mkdir(parents=True)
    (out / "aligned-1/curve.json").write_text(json.dumps({"made_by": made, "seed": 1, "curve": [{"samples": 1}]}))


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("stage1.yaml", "batch_size_train: 4", "batch_size_train: 8", "configuration"),
        ("stage0.yaml", "objective: ctc", "objective: ctc, ctc_negatives: 9", "configuration of stage 0"),
        ("recipes.yaml", "recipes:", "valid_clips: 7\nrecipes:", "what is measured"),
        ("recipes.yaml", "recipes:", "word_errors_every: 96\nrecipes:", "what is measured"),
        ("recipes.yaml", "recipes:", "half_way_accuracy: 0.5\nrecipes:", "what is measured"),
        ("recipes.yaml", "recipes:", "max_samples: 96\nrecipes:", "what is measured"),
        ("train.json", "train", "again", "annotations, annotations of stage 0"),
        ("prompts.json", "{}", "{ }", "files of the model"),
    ],
)
def test_a_run_of_other_configs_data_or_measurements_is_refused(world, file, old, new, told):
    study, out = load_study(world / "recipes.yaml"), world / "out"
    write_run(out, made_by(study, "aligned", ["run.log_freq=9"]))
    experiment.measure(study, "aligned", 1, out, ["run.log_freq=9"])
    text = (world / file).read_text()
    assert old in text
    (world / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"otherwise: {told} differ. Remove it"):
        experiment.measure(load_study(world / "recipes.yaml"), "aligned", 1, out, ["run.log_freq=9"])
    assert doubts(load_study(world / "recipes.yaml"), out) == [
        f"Made otherwise than this command would make them: aligned-1 (options, {told})."
    ]


def test_validation_clips_of_other_files_are_other_data(world):
    text = (world / "recipes.yaml").read_text()
    (world / "recipes.yaml").write_text(f"valid_files: [{world}/other.json]\n{text}")
    made = made_by(load_study(world / "recipes.yaml"), "aligned")
    write_entries(world / "other.json", "changed")
    assert differences(made, made_by(load_study(world / "recipes.yaml"), "aligned")) == ["annotations"]


def test_where_a_run_is_written_and_by_which_seed_is_no_other_run(world):
    made = made_by(load_study(world / "recipes.yaml"), "aligned")
    for stage in (0, 1):
        config = world / f"stage{stage}.yaml"
        config.write_text(config.read_text().replace("run: {", "run: {seed: 5, output_dir: elsewhere, "))
    assert differences(made, made_by(load_study(world / "recipes.yaml"), "aligned")) == []


def test_a_run_of_an_earlier_version_is_kept_and_told_of(world):
    study, out = load_study(world / "recipes.yaml"), world / "out"
    write_run(out, recipe_as_written(study, "aligned"))
    experiment.measure(study, "aligned", 1, out)  # nothing is made
    assert read_curves(study, out) == {"aligned": {1: [{"samples": 1}]}}
    [line] = doubts(study, out)
    assert line.startswith("Kept from an earlier version, of which it cannot be told")
    assert line.endswith("aligned-1.")
    with pytest.raises(UserError, match="otherwise: options differ"):
        experiment.measure(study, "aligned", 1, out, ["run.log_freq=9"])


def test_a_stage_0_is_shared_by_runs_of_the_same_annotations(world):
    study, out = load_study(world / "recipes.yaml"), world / "out"
    before = aligned_folder(study, "aligned", 1, out)
    assert aligned_folder(study, "aligned", 1, out) == before
    write_entries(world / "train.json", "changed")
    assert aligned_folder(study, "aligned", 1, out) != before


def test_a_curriculum_is_followed_by_everything(monkeypatch):
    monkeypatch.setattr(Runner, "_training_batches", lambda _, dataset: (entry for entry in dataset))
    monkeypatch.setattr(experiment, "easier", lambda dataset, what: [f"{what} {entry}" for entry in dataset])
    runner = ObservedRunner.__new__(ObservedRunner)
    runner.recipe, runner.run_config = (
        Recipe(curriculum="asr", curriculum_samples=8),
        SimpleNamespace(batch_size_train=4),
    )
    assert [*runner._training_batches(["a", "b", "c"])] == ["asr a", "asr b", "a", "b", "c"]


def test_validation_clips_come_from_several_files(tmp_path):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        file.write_text(json.dumps({"annotation": [{"path": "a.wav", "text": file.stem, "task": "asr"}]}))
    datasets = SimpleNamespace(valid_ann_path="none", train_ann_path="none")
    experiment._take_subsets(datasets, Study(valid_files=[*map(str, files)]), [], tmp_path / "run")
    taken = json.loads((tmp_path / "run/valid.json").read_text())["annotation"]
    assert [entry["text"] for entry in taken] == ["one", "two"]


def test_recipes_are_run_once_and_reported(mini_world, tmp_path, monkeypatch):
    recipes, out = tmp_path / "recipes.yaml", tmp_path / "out"
    study = {"config": "configs/mini/stage1.yaml", "max_samples": 16, "valid_every_samples": 8, "valid_clips": 8}
    study |= {"word_errors_every": 16, "options": ["run.batch_size_train=4", "run.num_workers=0"]}
    study |= {"recipes": {"asr_only": {"tasks": ["asr"]}}}
    recipes.write_text(json.dumps(study))
    options = [option for option in train_options(mini_world, tmp_path) if "output_dir" not in option]
    arguments = ["--recipes", str(recipes), "--out", str(out), "--seeds", "7", "--only", "asr_only"]
    result = run_command("util/samples_to_learn.py", *arguments, "--options", *options)
    assert result.returncode == 0, result.stderr
    assert "> 16" in result.stdout
    summary = json.loads((out / "report.json").read_text())
    assert summary["word_errors"]["samples"]["at"] == 16
    assert summary["word_errors"]["samples"]["median"]["asr_only"] > 0.3  # it says nothing yet, or nonsense
    report = summary["recipes"]["asr_only"]
    assert "samples/CPU s, by seed" in result.stdout
    last = report["curves"]["7"][-1]
    assert report["samples_per_cpu_second"] == {"7": pytest.approx(16 / last["cpu_seconds"])}  # no stage 0
    assert [point["samples"] for point in report["curves"]["7"]] == [8, 16]
    assert report["left"] == {"7": None}  # random weights: there is nothing to hear
    trained_on = json.loads((out / "asr_only-7" / "train.json").read_text())["annotation"]
    assert {entry["task"] for entry in trained_on} == {"asr"}
    assert (out / "report.png").stat().st_size > 1000

    monkeypatch.setattr(experiment, "ObservedRunner", None)  # a second run would fail
    monkeypatch.chdir(ROOT)
    experiment.measure(load_study(recipes), "asr_only", 7, out, options)
    with pytest.raises(UserError, match="otherwise: options differ"):
        experiment.measure(load_study(recipes), "asr_only", 7, out, [*options, "run.seed=8"])
    assert read_curves(load_study(recipes), out) == {"asr_only": {7: report["curves"]["7"]}}


def test_a_stage_0_counts_in_the_cpu_seconds_and_not_in_the_samples(mini_world, tmp_path):
    recipes, out = tmp_path / "recipes.yaml", tmp_path / "out"
    cached = [f"run.encoder_cache={tmp_path}/cache", "run.encoder_cache_gb=0.5", "run.num_workers=0"]
    study = {"config": "configs/mini/stage1.yaml", "max_samples": 16, "valid_every_samples": 8, "valid_clips": 8}
    aligned = [*cached, "run.iters_per_epoch=2", "run.optims.max_epoch=1", "run.batch_size_train=4"]
    study |= {"options": ["run.batch_size_train=4", *cached], "recipes": {"published": {}, "aligned": {}}}
    study["recipes"]["aligned"] = {"says": "after it", "stage0": "configs/mini/stage0.yaml", "stage0_options": aligned}
    study["recipes"]["distilled"] = study["recipes"]["aligned"] | {"distillation": 1, "frame_dropout": 0.1}
    recipes.write_text(json.dumps(study))
    options = [option for option in train_options(mini_world, tmp_path) if "output_dir" not in option]
    arguments = ["--recipes", str(recipes), "--out", str(out), "--seeds", "7", "--options", *options]
    result = run_command("util/samples_to_learn.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "is of stage 0: the connector goes on from it, LoRA starts anew" in result.stderr
    runs = {name: json.loads((out / f"{name}-7/curve.json").read_text()) for name in study["recipes"]}
    assert runs["published"]["stage0"] == {}
    assert runs["aligned"]["stage0"]["samples"] == 8
    assert runs["distilled"]["stage0"] == runs["aligned"]["stage0"]  # trained once
    assert [json.loads((folder / "stage0.json").read_text()) for folder in out.glob("stage0-*-7")] == [
        runs["aligned"]["stage0"]
    ]
    assert runs["distilled"]["curve"] != runs["aligned"]["curve"]
    assert [point["samples"] for point in runs["aligned"]["curve"]] == [8, 16]
    assert runs["aligned"]["curve"][0]["cpu_seconds"] > runs["aligned"]["stage0"]["cpu_seconds"] > 0
    found = [line.partition("encoder cache: ")[2] for line in result.stderr.splitlines() if "clips found" in line]
    assert found
    assert all(", 0 encoded" in line for line in found)  # by no run: it was filled before


def test_what_a_run_does_once_it_is_trained_does_not_count(monkeypatch):
    class Clock:
        now = 0.0

        def tick(self, seconds: float) -> bool:
            self.now += seconds
            return True

    clock = Clock()
    monkeypatch.setattr(experiment.time, "process_time", lambda: clock.now)
    monkeypatch.setattr(experiment.Runner, "prepare", lambda _runner: None)
    monkeypatch.setattr(experiment.Runner, "__init__", lambda _runner, _config: None)
    monkeypatch.setattr(experiment.Runner, "train", lambda _runner: clock.tick(7.0))
    runner = experiment.TimedRunner(None)
    runner.prepare()
    assert runner.train()
    clock.tick(100.0)  # curves are drawn
    assert runner.trained_seconds() == 7.0


def test_validations_inside_an_epoch_leave_the_training_as_it_is(mini_world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = ["run.iters_per_epoch=6", "run.accum_grad_iters=2", "run.optims.max_epoch=1", "run.batch_size_train=2"]

    def trained(name: str, *options: str) -> tuple[list[int], dict]:
        places = [*train_options(mini_world, tmp_path), f"run.exp_name={name}"]
        runner = Runner(load_config("configs/mini/stage1.yaml", [*places, *short, *options]))
        assert runner.run()
        lines = json_lines(tmp_path / name / "log.jsonl")
        validated = [line["step"] for line in lines if line["kind"] == "valid"]
        return validated, runner.model.state_dict()

    at_the_end, expected = trained("plain")
    often, found = trained("often", "run.valid_every_steps=1")
    assert (at_the_end, often) == ([6], [2, 4, 6])  # counted in iterations; the last is the epoch's own
    assert all(torch.equal(found[name], expected[name]) for name in expected)
