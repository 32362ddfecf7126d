"""Checkpoints hold the published names, load strictly, and are written whole or not at all."""

import json

import pytest
import torch

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.golden import golden_config
from tests.fixtures.paths import GOLDEN


@pytest.fixture
def model():
    return SALMONN.from_config(golden_config("base"))


def test_a_saved_checkpoint_loads_back_bit_identical(model, tmp_path):
    save_checkpoint(tmp_path / "a.pth", model, epoch=3)
    content = checkpoint.read(tmp_path / "a.pth")
    assert content["epoch"] == 3
    assert content["model"].keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.zero_()
    checkpoint.load_parameters(model, tmp_path / "a.pth")
    assert all(torch.equal(p, wanted[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, ""),
        ({"epoch": 3, "step": 900}, ", epoch 3, step 900"),
        ({"epoch": 3, "config": {"run": {"exp_name": "stage1"}}}, ", epoch 3, of the run stage1"),
        ({"epoch": "3", "config": {"run": None}}, ""),  # what others may have written there
        ({"config": [1]}, ""),
    ],
)
def test_what_a_model_starts_from_is_logged(model, tmp_path, caplog, more, told):
    parameters = checkpoint.own_values(model)
    torch.save({"model": parameters, **more}, tmp_path / "a.pth")
    with caplog.at_level("INFO"):
        checkpoint.load_parameters(model, tmp_path / "a.pth")
    n = sum(value.numel() for value in parameters.values())
    assert f"starting from {tmp_path}/a.pth: {n:,} parameters in {len(parameters)} tensors{told}" in caplog.messages


@pytest.mark.parametrize("size", ["13b", "7b"])
def test_published_extras_are_known(size):
    extras = json.loads((GOLDEN / "full_size_keys.json").read_text())[f"salmonn_{size}_non_trainable_extras"]
    keys = json.loads((GOLDEN / "full_size_keys.json").read_text())[f"salmonn_{size}"]
    assert all(checkpoint.PUBLISHED_EXTRAS.fullmatch(key) for key in extras)
    assert not any(checkpoint.PUBLISHED_EXTRAS.fullmatch(key) for key in keys)


def test_missing_unexpected_and_misshapen_keys_are_named(model, tmp_path):
    save_checkpoint(tmp_path / "a.pth", model)
    content = checkpoint.read(tmp_path / "a.pth")
    del content["model"]["ln_speech.weight"]
    content["model"]["ln_spech.weight"] = torch.zeros(3)
    content["model"]["speech_llama_proj.bias"] = torch.zeros(7)
    torch.save(content, tmp_path / "b.pth")
    with pytest.raises(UserError) as error:
        checkpoint.load_parameters(model, tmp_path / "b.pth")
    message = str(error.value)
    assert "missing: ln_speech.weight" in message
    assert "unexpected: ln_spech.weight" in message
    assert "shape of speech_llama_proj.bias: [7] in the file, [48] in the model" in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_refused_with_one_message(model, tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth"):
        checkpoint.load_parameters(model, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "value", [3, "x", torch.eye(2).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)]
)
def test_a_value_that_is_no_plain_tensor_is_named(tmp_path, value):
    torch.save({"model": {"speech_llama_proj.bias": value}}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth is not a .*dense tensors, e\.g\. speech_llama_proj"):
        checkpoint.read(tmp_path / "odd.pth")


def test_what_the_system_says_of_a_disk_is_told_in_its_words():
    with pytest.raises(UserError, match=r"^/proc/self/mem cannot be read: Input/output error$"):
        checkpoint.read("/proc/self/mem")  # a file whose first byte cannot be read


def test_pickled_code_is_not_run(model, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"model": {"x": Evil()}}, tmp_path / "a.pth")
    with pytest.raises(UserError):
        checkpoint.load_parameters(model, tmp_path / "a.pth")
    assert not (tmp_path / "owned").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(model, tmp_path):
    save_checkpoint(tmp_path / "a.pth", model, epoch=1)
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "a.pth", model, epoch=lambda: None)  # cannot be pickled
    assert checkpoint.read(tmp_path / "a.pth")["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]
