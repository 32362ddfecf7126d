"""Models on the Hugging Face Hub, against a small hub on this machine: published, fetched, refused in words."""

import errno
import json

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.repocard import ModelCard

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from salmonn.model import hub as hub_module
from salmonn.model.card import model_card
from salmonn.model.hub import UnreachableError, fetched, is_hub_name
from salmonn.model.lineage import LINEAGE, Training, lineage_of, written
from tests.fixtures.golden import golden_config
from tests.fixtures.hub import COMMIT, Hub

pytest_plugins = ["tests.fixtures.hub"]

RUNS = [Training("stage1", "one.json", ("asr", "audiocaption"), 1234), Training("stage2", "two.json", ("QA",), 9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SALMONN:
    """A tiny model that was loaded from a checkpoint which tells its runs."""
    config = golden_config("base")
    path = tmp_path_factory.mktemp("run") / "checkpoint_best.pth"
    content = {"model": checkpoint.own_values(SALMONN.from_config({**config, "ckpt": ""})), LINEAGE: written(RUNS)}
    torch.save(content, path)
    return SALMONN.from_config({**config, "ckpt": str(path)})


def test_what_is_published_is_fetched_again_by_its_name(model, hub: Hub, monkeypatch):
    assert model.push_to_hub("kim/tiny-ears", licence="apache-2.0") == f"{hub.url}/kim/tiny-ears"
    assert set(hub.models["kim/tiny-ears"]) == {"model.safetensors", "config.json", "README.md"}
    assert hub.private == {"kim/tiny-ears": True}
    parts = {key: model.config[key] for key in ("llama_path", "whisper_path", "beats_path")}
    parts |= {key: model.config[key] for key in ("prompt_path", "test_prompt_path")}
    again = SALMONN.from_pretrained("kim/tiny-ears", **parts)
    wanted = checkpoint.own_values(model)
    assert all(torch.equal(value, wanted[name]) for name, value in checkpoint.own_values(again).items())
    assert lineage_of(again._origin()) == RUNS
    n_asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it is in the cache now
    SALMONN.from_pretrained("kim/tiny-ears", **parts)
    assert len(hub.asked) == n_asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    SALMONN.from_pretrained("kim/tiny-ears", revision=COMMIT, **parts)
    with pytest.raises(UserError, match="names files that are not here"):
        SALMONN.from_pretrained("kim/tiny-ears", llama_path="nowhere")


def test_of_this_machines_folders_nothing_is_published(model, hub: Hub):
    model.push_to_hub("kim/tiny-ears")
    stored = json.loads(hub.models["kim/tiny-ears"]["config.json"])["model"]
    assert not [value for value in stored.values() if isinstance(value, str) and value.startswith("/")]
    assert all(str(value).count("/") == 0 for key, value in stored.items() if key.endswith("_path"))
    files = hub.models["kim/tiny-ears"]
    assert str(model.config.ckpt).encode() not in files["README.md"] + files["config.json"]


def message_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as refused:
        call(*args, **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_why_a_model_cannot_be_fetched_is_told_in_a_line(hub: Hub, monkeypatch):
    hub.models |= {"kim/there": {}, "kim/gated": {}}
    hub.gated.add("kim/gated")
    assert "has no such model, or not for you" in message_of(SALMONN.from_pretrained, "kim/absent")
    assert "its terms have to be accepted first" in message_of(SALMONN.from_pretrained, "kim/gated")
    assert "has no revision 'v9'" in message_of(SALMONN.from_pretrained, "kim/there", revision="v9")
    assert "it has no config.json" in message_of(SALMONN.from_pretrained, "kim/there")
    assert "no possible name on the hub" in message_of(SALMONN.from_pretrained, "kim/--there..")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in message_of(SALMONN.from_pretrained, "kim/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert "is no folder here, and the hub" in message_of(SALMONN.from_pretrained, "kim/absent")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (LocalEntryNotFoundError("no way"), UnreachableError, "does not give or take it"),
        (HTTPError("407 of a proxy"), UnreachableError, "407 of a proxy"),
        (OSError(errno.ENOSPC, "No space left on device", "weights"), UserError, "disk says: [Errno 28] No space"),
        (PermissionError(errno.EACCES, "Permission denied", "cache"), UserError, "disk says: [Errno 13] Permission"),
        (RuntimeError("a part is damaged"), UserError, "a part is damaged"),
    ],
)
def test_a_hub_out_of_reach_is_no_full_disk(error, kind, told, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub_module, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError) as refused:
        fetched("kim/ears")
    assert type(refused.value) is kind
    assert told in str(refused.value)
    assert ("hf auth login" in str(refused.value)) == ("disk" not in told)


@pytest.mark.parametrize("name", ["tiny", "kim/tiny/ears", "kim/a b", "", "/", "kim/ohr\u00e9"])
def test_a_name_that_no_model_can_have_is_refused_before_anything_is_sent(model, hub: Hub, name):
    assert "is called USER/NAME" in message_of(model.push_to_hub, name)
    assert hub.asked == []


def test_a_hub_that_does_not_take_it_is_told(model, hub: Hub):
    hub.refuses = True
    assert "kim/tiny-ears was not published: " in message_of(model.push_to_hub, "kim/tiny-ears")


def test_what_lies_here_or_could_is_not_asked_for_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    assert not is_hub_name("output/folder")  # a folder of this name was mistyped
    assert not is_hub_name(tmp_path / "folder")
    assert not is_hub_name("folder")
    assert not is_hub_name("../folder")
    assert is_hub_name("kim/tiny-ears")
    with pytest.raises(UserError, match="is not on the hub, so it has no revision 'v1'"):
        SALMONN.from_pretrained("output", revision="v1")


@pytest.mark.parametrize(("lineage", "licence"), [(RUNS, "apache-2.0"), ([], ""), ([Training("v1.pth"), *RUNS], "mit")])
def test_a_card_says_what_it_is_needs_and_was_trained_on(lineage, licence):
    section = {"llama_path": "weights/vicuna", "whisper_path": "weights/whisper", "beats_path": ""}
    text = model_card("kim/ears", section, lineage, licence)
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.license, data.library_name) == (licence or "other", "salmonn")
    assert data.to_dict().get("license_name") == (None if licence else "not-stated")
    assert "- language model: `vicuna`" in text
    assert "BEATs" not in text
    assert ("1,234 iterations on `one.json` (asr, audiocaption)" in text) == bool(lineage)
    assert ("of which nothing is known" in text) == (len(lineage) == 3)
    assert ("has named no licence" in text) == (not licence)
    assert 'SALMONN.from_pretrained("kim/ears", llama_path="...", whisper_path="...", prompt_path=""' in text
