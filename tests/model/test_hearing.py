"""A checkpoint of other windows is refused: no name and no shape of its parameters shows them."""

import shutil

import pytest
from omegaconf import OmegaConf

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.model import checkpoint, hearing
from salmonn.model.hearing import heard_otherwise, require_same_hearing
from salmonn.model.meta_model import build_meta_model, require_start_fits
from salmonn.training.readiness import all_problems
from tests.fixtures.golden import golden_config
from tests.fixtures.paths import GOLDEN

QUIET = {"max_seconds": 12, "whisper_silence": 1}
PUBLISHED = GOLDEN / "base/salmonn.pth"


@pytest.fixture(autouse=True)
def _tell_anew():
    hearing._warn.cache_clear()
    checkpoint.tell_other_vicuna.cache_clear()


def golden(**changes):
    return model_config(OmegaConf.merge(golden_config("base"), changes))


def test_other_windows_are_refused_with_both_values_and_the_way_out():
    config = golden(second_per_window=0.16, second_stride=0.16)
    with pytest.raises(UserError) as error:
        SALMONN.from_config(config)
    assert str(error.value).splitlines() == [
        f"{config.ckpt} was trained to hear otherwise, which no name and no shape of its parameters shows:",
        "  model.second_per_window: 0.333333 in the file, 0.16 here",
        "  model.second_stride: 0.333333 in the file, 0.16 here",
        "Take its values: --options model.second_per_window=0.333333 model.second_stride=0.333333. If other ones are "
        "meant, name the file as model.speech_llama_proj_model instead of model.ckpt, which only warns",
    ]
    with pytest.raises(UserError, match="trained to hear otherwise"):  # before a weight is read
        require_start_fits(build_meta_model(config), config.ckpt)


def test_who_means_it_is_warned_once(caplog):
    meant = golden(second_per_window=0.16, ckpt="", speech_llama_proj_model=str(PUBLISHED))
    require_start_fits(build_meta_model(meant), PUBLISHED, partial=True)
    SALMONN.from_config(meant)
    [message] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "model.second_per_window: 0.333333 in the file, 0.16 here" in message


def test_what_is_the_same_in_frames_is_no_other_window(caplog):
    SALMONN.from_config(golden(second_per_window=0.34, second_stride=1 / 3))
    assert "hear otherwise" not in caplog.text


@pytest.mark.parametrize(
    ("theirs", "keys"),
    [
        ({"second_per_window": 0.16}, ["second_per_window"]),
        ({"qformer_num_heads": 3}, ["qformer_num_heads"]),
        ({"window_level_Qformer": False}, ["window_level_Qformer"]),
        ({"only_filled_windows": True, "max_seconds": 12, "whisper_silence": 1}, []),
        ({}, []),
        ({"second_per_window": None, "second_stride": "0.1", "qformer_num_heads": float("nan")}, []),
        ({"second_per_window": float("inf")}, []),
    ],
)
def test_what_decides_on_the_meaning_is_compared_where_the_file_tells_it(theirs, keys):
    assert heard_otherwise(theirs, model_config({})) == keys


def test_windows_count_for_nothing_where_one_is_the_whole_clip():
    whole = model_config({"window_level_Qformer": False})
    assert heard_otherwise({"second_stride": 0.1, "window_level_Qformer": False}, whole) == []


@pytest.mark.parametrize("content", [{}, {"config": None}, {"config": {"run": {}}}, {"config": {"model": [1]}}])
def test_a_file_that_does_not_say_is_taken_as_it_is(content, caplog):
    require_same_hearing(model_config({"second_stride": 0.1}), content, "x.pth")
    assert not caplog.records


def test_a_folder_says_it_for_its_weights(tmp_path):
    SALMONN.from_config(golden(ckpt="")).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    with pytest.raises(UserError, match=r"model\.second_stride: 0\.333333 in the file, 0\.1 here"):
        require_same_hearing(golden(second_stride=0.1), {}, weights)
    shutil.copy(weights, tmp_path / "alone.safetensors")
    require_same_hearing(golden(second_stride=0.1), {}, tmp_path / "alone.safetensors")


def test_parts_of_other_names_are_told_of_and_other_places_are_not(caplog):
    section = {"whisper_path": "/theirs/whisper-large-v2", "llama_path": "vicuna-13b-v1.1", "beats_path": ""}
    here = {"whisper_path": "openai/whisper-large-V2", "llama_path": "weights/vicuna-13b-v1.5", "beats_path": "b.pt"}
    for _ in range(2):
        require_same_hearing(model_config(here), {"config": {"model": section}}, "x.pth")
    [record] = caplog.records
    assert "model.llama_path vicuna-13b-v1.1 (here weights/vicuna-13b-v1.5)" in record.message
    assert "whisper" not in record.message


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (
            {"max_seconds": 12.0, "whisper_silence": 1.0, "only_filled_windows": True},
            {},
            [
                "model.max_seconds 12 (here 30), model.whisper_silence 1 (here null)",
                "--options model.max_seconds=12 model.whisper_silence=1 model.only_filled_windows=True",
            ],
        ),
        (
            {"whisper_silence": None, "max_seconds": 30},
            {"whisper_silence": 0, "only_filled_windows": True},
            ["model.whisper_silence null (here 0)", "--options model.whisper_silence=null"],
        ),
        (QUIET, {**QUIET, "only_filled_windows": True}, []),
        ({"only_filled_windows": True, "max_seconds": 30.0, "whisper_silence": None}, {}, []),
        ({}, {"max_seconds": 12, "whisper_silence": 1, "only_filled_windows": True}, []),
        ({"max_seconds": None, "whisper_silence": "1"}, {"max_seconds": 12}, []),
    ],
)
@pytest.mark.parametrize("kind", [dict, OmegaConf.create])
def test_what_else_whisper_heard_is_warned_of_where_the_file_tells_it(theirs, ours, told, kind, caplog):
    for _ in range(2):
        require_same_hearing(model_config(ours), {"config": kind({"model": theirs})}, "x.pth")
    assert len(caplog.records) == bool(told)
    assert all(part in caplog.text for part in told)


@pytest.mark.parametrize(("theirs", "says"), [("", "answers nonsense"), ("weights/vicuna-13b", "more than another")])
def test_another_llm_is_told_of_once(theirs, says, tmp_path, caplog):
    """By its positions, or by its name, if the checkpoint tells that."""
    content = checkpoint.read(PUBLISHED)
    content["config"]["model"]["llama_path"] = theirs
    checkpoint.save(tmp_path / "x.pth", content)
    meta_model = build_meta_model(golden(ckpt=str(tmp_path / "x.pth")))
    meta_model.llama_model.config.update({"hidden_size": 5120, "max_position_embeddings": 4096})
    require_start_fits(meta_model, meta_model.config.ckpt)
    meta_model.tell_other_vicuna(content, meta_model.config.ckpt)
    [record] = caplog.records
    assert says in record.message


def test_a_start_is_opened_once_before_its_values_are_read(monkeypatch):
    opened, read = [], checkpoint.read

    def counted(path, *how, **more):
        opened.extend([more] * (str(path) == str(PUBLISHED)))
        return read(path, *how, **more)

    monkeypatch.setattr(checkpoint, "read", counted)
    require_start_fits(build_meta_model(golden()), PUBLISHED)
    assert opened == [{"lazily": True}]
    SALMONN.from_config(golden())
    assert opened == [{"lazily": True}, {"lazily": True}, {}]


def test_stages_of_unlike_windows_are_refused_before_the_first_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("salmonn.training.readiness.run_problems", lambda *_: [])
    (tmp_path / "a.yaml").write_text("model: {second_stride: 0.16}")
    (tmp_path / "b.yaml").write_text("model: {ckpt: output/a/checkpoint_best.pth}")
    first, second = (load_config(tmp_path / f"{name}.yaml") for name in "ab")
    [problem] = all_problems([first, second])
    assert "model.second_stride: 0.16 in the file, 0.333333 here" in problem
    assert all_problems([first, load_config(tmp_path / "b.yaml", ["model.second_stride=0.16"])]) == []
