"""Stage 0 as a run: two ranks, resume bit for bit, its validation, what is left out, and stage 1 after it."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.model import checkpoint
from salmonn.model.alignment import Aligner
from salmonn.training import runner
from salmonn.training.validation import report_listening, report_too_long, validate
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.golden import golden_config
from tests.fixtures.lightweight import samples_of, write_llm
from tests.fixtures.mini_world import train_options

SHORT = [
    "run.iters_per_epoch=3", "run.optims.max_epoch=2", "run.batch_size_train=2", "run.batch_size_eval=8",
    "run.log_freq=1", "run.save_every_steps=1", "run.optims.warmup_steps=0", "run.num_workers=0",
]  # fmt: skip


def train(world, output, *options, stage=0, ranks=1, more=()):
    config = ["--cfg-path", f"configs/mini/stage{stage}.yaml", *more, "--options"]
    own = [f"run.encoder_cache={output}/cache", "run.ctc_tasks=[asr]"] if stage == 0 else []
    return run_command("train.py", *config, *train_options(world, output), *SHORT, *own, *options, ranks=ranks)


@pytest.fixture(scope="module")
def whole(mini_world, tmp_path_factory):
    """A run of two ranks that was never disturbed, and what it said."""
    output = tmp_path_factory.mktemp("whole")
    result = train(mini_world, output, ranks=2)
    assert result.returncode == 0, result.stderr
    return output, result.stderr


def test_a_run_trains_the_connector_alone_validates_with_its_control_and_draws_curves(whole):
    folder = whole[0] / "stage0"
    lines = json_lines(folder / "log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    for line in (line for line in lines if line["kind"] == "valid"):
        assert line["loss"] > 0
        assert line["word_error_rate"] > 0
        assert {"loss_shuffled", "accuracy_shuffled", "word_error_rate_shuffled"} <= line.keys()
        assert 0 <= line["too_long"] < line["transcripts"]
        assert line["tasks"].keys() == {"asr"}
    assert (folder / "training_curves.png").stat().st_size > 10_000
    parameters = checkpoint.read(folder / "checkpoint_best.pth")["model"]
    assert not any(name.startswith(("llama_model.", "speech_encoder.", "beats.")) for name in parameters)
    assert {"ctc_blank", "ctc_log_scale", "speech_query_tokens", "speech_llama_proj.weight"} <= parameters.keys()


def test_tasks_without_an_order_are_left_out_and_counted(mini_world, whole):
    for split in ("train", "valid"):
        path = mini_world / f"ann/stage1_{split}.json"
        tasks = [entry["task"] for entry in json.loads(path.read_text())["annotation"]]
        n, others = tasks.count("asr"), tasks.count("audiocaption")
        assert others
        told = f"{n} of {n + others} entries have a task of run.ctc_tasks (asr); left out: audiocaption {others}"
        assert f"{path}: {told}" in whole[1]


SPELLED = ["model.spelled_tokens=True", "model.sound_seconds=0.5", "model.only_filled_windows=True"]


@pytest.mark.parametrize(("stage", "options"), [(0, []), (1, SPELLED)], ids=["stage 0", "stage 1 that reads it"])
def test_a_run_that_goes_on_ends_bit_identical(mini_world, whole, tmp_path, stage, options):
    options = [*options, f"model.ckpt={whole[0]}/stage0/checkpoint_best.pth"] if stage else options
    before = tmp_path / "before.pth"
    ended = train(mini_world, tmp_path / "one", "run.keep_checkpoints=9", *options, stage=stage, ranks=2)
    assert ended.returncode == 0, ended.stderr
    kept = [checkpoint.read(path) for path in (tmp_path / f"one/stage{stage}").glob("checkpoint_last*.pth")]
    torch.save(next(content for content in kept if content["progress"]["iteration"] == 2), before)
    result = train(mini_world, tmp_path / "two", f"run.resume={before}", *options, stage=stage, ranks=2)
    assert result.returncode == 0, result.stderr
    assert "epoch 0, iteration 2, 8 samples seen" in result.stderr
    states = [checkpoint.read(tmp_path / name / f"stage{stage}/checkpoint_last.pth") for name in ("one", "two")]
    one, two = (
        state["model"] | {(i, k): v for i, kept in state["optimizer"]["state"].items() for k, v in kept.items()}
        for state in states
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    if stage:
        assert any("lora_B" in name and value.any() for name, value in one.items() if isinstance(name, str))
        assert one["sound_proj.weight"].any()


def test_stage_1_goes_on_from_it_with_lora_anew_and_says_so_once(mini_world, whole, tmp_path):
    path = whole[0] / "stage0/checkpoint_best.pth"
    result = train(mini_world, tmp_path, f"model.ckpt={path}", "run.optims.max_epoch=1", stage=1)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(f"{path} is of stage 0: the connector goes on from it, LoRA starts anew") == 1
    parameters = checkpoint.read(tmp_path / "stage1/checkpoint_best.pth")["model"]
    assert "ctc_blank" not in parameters
    assert any("lora_B" in name for name in parameters)


def test_stage_1_finds_what_stage_0_has_encoded_where_there_is_room_for_whole_entries(mini_world, whole, tmp_path):
    entries = json.loads((mini_world / "ann/stage1_valid.json").read_text())["annotation"]
    n_heard = sum(entry["task"] == "asr" for entry in entries)
    options = [f"run.encoder_cache={whole[0]}/cache", "run.encoder_cache_gb=1", "run.optims.max_epoch=1"]
    result = train(mini_world, tmp_path, *options, stage=1)
    assert result.returncode == 0, result.stderr
    [found] = re.findall(r"encoder cache: (\d+) clips found", result.stderr)
    assert int(found) >= n_heard > 0


def test_stage_1_may_go_on_spelling_beside_its_answers(mini_world, whole, tmp_path):
    path = whole[0] / "stage0/checkpoint_best.pth"
    options = [f"model.speech_llama_proj_model={path}", "run.ctc_weight=0.3"]
    windows = ["model.second_per_window=0.1", "model.second_stride=0.1"]  # others than stage 0 had, and meant so
    result = train(mini_world, tmp_path, *options, *windows, stage=1, ranks=2)
    assert result.returncode == 0, result.stderr
    assert "was trained to hear otherwise" in result.stderr
    spelled = checkpoint.read(tmp_path / "stage1/checkpoint_best.pth")["model"]
    assert not torch.equal(spelled["ctc_blank"], checkpoint.read(path)["model"]["ctc_blank"])
    assert any("lora_B" in name and value.any() for name, value in spelled.items())
    [*_, last] = [line for line in json_lines(tmp_path / "stage1/log.jsonl") if line["kind"] == "valid"]
    assert "word_error_rate" not in last  # its validation is of the answer


def test_a_checkpoint_without_part_of_the_connector_is_refused_before_the_model_is_loaded(mini_world, whole, tmp_path):
    content = checkpoint.read(whole[0] / "stage0/checkpoint_best.pth")
    del content["model"]["ln_audio.weight"]
    torch.save(content, tmp_path / "damaged.pth")
    result = train(mini_world, tmp_path, f"model.ckpt={tmp_path}/damaged.pth", stage=1)
    assert result.returncode == 2
    assert "missing: ln_audio.weight" in result.stderr
    assert "lora" not in result.stderr


def test_a_dry_run_takes_a_step_and_counts_the_entries_that_take_part(mini_world, whole, tmp_path):
    result = train(mini_world, tmp_path, more=["--dry-run"])
    assert result.returncode == 0, result.stderr
    n = int(whole[1].partition("stage1_train.json: ")[2].split()[0])
    assert f"datasets.train_ann_path: {n} entries" in result.stdout
    assert "Llama of 3 layers, 128 wide, input embeddings only" in result.stdout
    assert "a new run, from untrained connector)" in result.stdout
    assert "one step    of a tiny model of this shape: loss " in result.stdout


def test_files_with_nothing_to_align_are_refused_before_the_model_is_loaded(mini_world, tmp_path):
    result = train(mini_world, tmp_path, "run.ctc_tasks=[phone_recognition]")
    assert result.returncode == 2
    assert "has a task of run.ctc_tasks = phone_recognition; it has " in result.stderr
    assert "Traceback" not in result.stderr


class Ignored:
    def add(self, _samples, judged):
        pass


def test_a_validation_in_which_no_transcript_fits_names_the_keys(tmp_path):
    section = {**OmegaConf.to_container(golden_config("base")), "ckpt": "", **write_llm(tmp_path, "llama3.2")}
    model = Aligner.from_config(section)
    samples = {**samples_of(model, [0, 1]), "id": ["a", "b"], "unreadable": [], "text": ["a b c d e f g h i " * 9] * 2}
    with pytest.raises(UserError, match=r"set model\.second_per_window"):
        validate(model, [samples], Ignored())


def test_the_shuffled_control_parts_from_the_right_audio_once_a_toy_is_learned(tmp_path, caplog):
    torch.manual_seed(0)
    windows = {"ckpt": "", "second_per_window": 0.04, "second_stride": 0.04}
    section = {**OmegaConf.to_container(golden_config("base")), **windows, **write_llm(tmp_path, "llama3.2")}
    model = Aligner.from_config(section)
    samples = {**samples_of(model, [0, 1]), "id": ["a", "b"], "unreadable": []}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    untrained = validate(model, [samples], Ignored())
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        model(samples)["loss"].backward()
        optimizer.step()
    result = validate(model, [samples], Ignored())
    assert result["loss"] < 0.5 * untrained["loss"]
    assert result["loss_shuffled"] > 3 * result["loss"]
    assert result["word_error_rate"] < 0.3 < result["word_error_rate_shuffled"]
    assert result["accuracy"] > 0.7
    assert result["too_long"] == 0
    with caplog.at_level("INFO"):
        report_listening({**result, "too_long": 1}, 0, past_warmup=True)
    assert "greedy CTC: word error rate" in caplog.text
    assert "more tokens" not in caplog.text  # that is told once a run
    assert "NOT LISTENING" not in caplog.text


@pytest.mark.parametrize(("n", "level", "advice"), [(3, "INFO", False), (7, "WARNING", True)])
def test_transcripts_that_are_too_long_are_told_with_their_share_and_advice_where_they_are_many(
    caplog, n: int, level: str, advice: bool
):
    with caplog.at_level("INFO"):
        report_too_long({"too_long": n, "transcripts": 123})
    (record,) = caplog.records
    assert record.levelname == level
    assert f"{n} of 123 transcripts ({100 * n / 123:.1f} %) have more tokens" in record.getMessage()
    assert ("model.second_per_window" in record.getMessage()) is advice


def test_transcripts_that_are_too_long_are_told_once_a_run(monkeypatch, caplog):
    values = {"loss": 1.0, "accuracy": 0.5, "loss_shuffled": 2.0, "accuracy_shuffled": 0.1}
    values |= {"word_error_rate": 0.5, "word_error_rate_shuffled": 1.0, "too_long": 3, "transcripts": 123, "tasks": {}}
    monkeypatch.setattr(runner, "eval_loader", lambda *_, **__: iter(()))
    monkeypatch.setattr(runner, "validate", lambda *_: dict(values))
    run = runner.Runner.__new__(runner.Runner)
    run.run_config = load_config("configs/mini/stage0.yaml").run
    run.model, run.quarantine, run.device, run.failure, run.told_too_long = None, None, torch.device("cpu"), None, False
    run.stop_request, run.log = SimpleNamespace(name=""), SimpleNamespace(write=lambda *_, **__: None)
    with caplog.at_level("INFO"):
        for epoch in range(3):
            run.validate(range(123), epoch, epoch)
    assert caplog.text.count("3 of 123 transcripts") == 1
