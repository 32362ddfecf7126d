"""`util/convert.py inspect` tells what is in a checkpoint, a folder or a BEATs file, and what is wrong with it."""

import json
from pathlib import Path

import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from tests.fixtures.convert import GOLDEN_PTH, written
from tests.fixtures.paths import GOLDEN
from util.conversion.describe import describe

EXTRAS = 4  # of the published writer in it
FULL_SIZE = json.loads((GOLDEN / "full_size_keys.json").read_text())


def test_inspect_tells_what_a_trained_checkpoint_holds(command, trained_pth):
    output = command("inspect", trained_pth)
    for fact in (
        "stage2, epoch 3, step 900, best validation accuracy 0.75",
        "trained on ann/stage2_train.json",
        "48 wide, 2 layers; fits none of the published",
        "LoRA of rank 8 on self_attn.q_proj, self_attn.v_proj; alpha 32, scaling 4",
        "65,696 parameters in 69 tensors, float32",
        "yes, optimiser and position are in it",
        "complete: no key is missing",
    ):
        assert fact in output, fact


def test_inspect_knows_the_published_extras_and_reads_folders(command, config_file, tmp_path):
    assert f"{EXTRAS} tensors that the published writer leaves" in command("inspect", GOLDEN_PTH)
    command("to-folder", GOLDEN_PTH, tmp_path / "folder", "--cfg-path", config_file)
    output = command("inspect", tmp_path / "folder")
    assert "SALMONN folder" in output
    assert "no, for use only" in output


def test_inspect_knows_what_only_spells(command, spelling_pth):
    output = command("inspect", spelling_pth)
    assert "65,696 parameters in 69 tensors" in output
    assert "ctc_blank, ctc_log_scale" in output
    assert "stage 0" not in output
    assert "extras" not in output
    assert "complete: no key is missing" in output


def test_inspect_tells_a_checkpoint_of_stage_0_from_one_without_its_lora(command, stage0_pth, tmp_path):
    output = command("inspect", stage0_pth)
    assert "none: of stage 0, from whose connector stage 1 starts (model.ckpt), with a new LoRA" in output
    assert "complete: no key is missing" in output
    content = checkpoint.read(stage0_pth)
    del content["model"]["ln_speech.weight"]
    with pytest.raises(UserError, match=r"missing: ln_speech.weight$"):
        command("inspect", written(tmp_path / "part.pth", content["model"], config=content["config"]))
    del content["model"]["ctc_blank"]
    with pytest.raises(UserError, match="unexpected: ctc_log_scale\n  missing: all LoRA parameters"):
        command("inspect", written(tmp_path / "half.pth", content["model"], config=content["config"]))


@pytest.mark.parametrize(
    ("size", "fits"), [("13b", "5120 wide, 40 layers; fits Vicuna 13B"), ("7b", "4096 wide, 32 layers; fits Vicuna 7B")]
)
def test_inspect_tells_the_published_sizes_apart_without_a_configuration(command, tmp_path, size, fits):
    output = command("inspect", published(tmp_path, size))
    assert fits in output
    assert "1280 wide; fits large, -v2, -v3" in output
    assert "768 wide; fits all published files" in output
    assert f"{FULL_SIZE['num_trainable_parameters'][f'salmonn_{size}']:,} parameters" in output
    assert "52 tensors that the published writer" in output if size == "13b" else "extras" in output
    assert "complete" in output


def test_inspect_names_missing_unexpected_and_misshapen_keys(command, tmp_path):
    path = published(
        tmp_path,
        "13b",
        without=(
            "ln_speech.weight",
            "llama_model.base_model.model.model.layers.7.self_attn.v_proj.lora_B.default.weight",
        ),
        **{"ln_spech.weight": [1280], "ln_audio.bias": [7]},
    )
    with pytest.raises(UserError) as error:
        command("inspect", path)
    message = str(error.value)
    assert "missing: ln_speech.weight" in message
    assert "missing: llama_model.base_model.model.model.layers.7.self_attn.v_proj.lora_B.default.weight" in message
    assert "unexpected: ln_spech.weight" in message
    assert "shape of ln_audio.bias: [7] in the file, [768] in the model" in message
    assert len(message.splitlines()) == 5


def published(folder: Path, size: str, without: tuple[str, ...] = (), **more: list[int]) -> Path:
    """A file with the published names and shapes, and no values."""
    shapes = {**FULL_SIZE[f"salmonn_{size}"], **FULL_SIZE[f"salmonn_{size}_non_trainable_extras"], **more}
    return written(
        folder / f"{size}.pth",
        {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name not in without},
    )


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("lora_rank", 4, "lora_A.default.weight: [8, 48] in the file, [4, 48] in the model"),
        ("lora_target_modules", ["q_proj", "k_proj"], "missing: all LoRA parameters of k_proj"),
        ("lora", False, "unexpected: llama_model."),
        ("qformer_num_layers", 3, "missing: speech_Qformer.bert.encoder.layer.2."),
        ("num_speech_query_token", 2, "speech_query_tokens: [1, 1, 48] in the file, [1, 2, 48] in the model"),
    ],
)
def test_a_configuration_that_does_not_fit_its_parameters_is_told(command, trained_pth, tmp_path, key, value, problem):
    content = checkpoint.read(trained_pth)
    content["config"]["model"][key] = value
    torch.save(content, trained_pth)
    for arguments in (("inspect", trained_pth), ("to-folder", trained_pth, tmp_path / "folder")):
        with pytest.raises(UserError) as error:
            command(*arguments)
        assert problem in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_inspect_verifies_beats_files(command, tmp_path):
    content = checkpoint.read(GOLDEN / "base" / "beats.pt")
    name = tmp_path / "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    torch.save(content, name)
    output = command("inspect", name)
    assert "iter3+ by the file's name" in output
    assert "fine-tuned, 527 classes" in output
    assert "encoder_layers 2 (published 12)" in output
    assert "complete" in output
    pretrained = {k: v for k, v in content["model"].items() if not k.startswith("predictor.")}
    assert "none: pretrained" in command(
        "inspect", written(tmp_path / "BEATs_iter3.pt", pretrained, cfg=content["cfg"])
    )
    del pretrained["encoder.layers.1.fc1.weight"]
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.1\.fc1\.weight"):
        command("inspect", written(tmp_path / "part.pt", pretrained, cfg=content["cfg"]))


def test_inspect_tells_of_values_that_are_no_numbers(tmp_path):
    content = torch.load(GOLDEN_PTH, weights_only=True)
    content["model"]["ln_speech.bias"][0] = float("nan")
    torch.save(content, tmp_path / "broken.pth")
    _, problems = describe(tmp_path / "broken.pth")
    assert any("holds NaN or infinite values in 1 of " in problem for problem in problems)


def test_beats_of_the_published_size_is_recognised(command, tmp_path):
    from salmonn.model.beats import PUBLISHED_SIZES, BEATs

    with torch.device("meta"):
        parameters = BEATs(PUBLISHED_SIZES).state_dict()
    output = command("inspect", written(tmp_path / "BEATs_iter3_plus.pt", parameters, cfg=PUBLISHED_SIZES))
    assert "yes, every size" in output
